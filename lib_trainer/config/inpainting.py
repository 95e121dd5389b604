"""The options of models that inpaint."""

from __future__ import annotations

from typing import Annotated, Literal

from lib_trainer.options.declare import Section, none_of, option


class InpaintingConfig(Section, frozen=True):
    """Inpainting models"""

    holes: Annotated[
        Literal["random", "masks"],
        option(
            "Holes",
            "Where a model that inpaints learns to fill in: at random places, or what the mask of each picture shows "
            "(at random where it has none). Take masks where one thing is to be put in at places that you choose. "
            "Other models pay no heed to it.",
            names={"masks": "where the masks are"},
            when=none_of("masks.source", "none"),
            advanced=True,
            inpainting=True,
        ),
    ] = "random"
    count: Annotated[
        int,
        option(
            "Random holes",
            "How many random holes of each picture are kept encoded, of which each step draws one. More take longer "
            "to encode. Models that do not inpaint pay no heed to it.",
            low=1,
            high=64,
            step=1,
            advanced=True,
            inpainting=True,
        ),
    ] = 4
