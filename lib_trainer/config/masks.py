"""The options of masks: which part of a picture is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from lib_trainer.options.declare import Section, one_of, option

MASKED = one_of("masks.source", "file", "alpha")


class MasksConfig(Section, frozen=True):
    """Loss masks"""

    source: Annotated[
        Literal["none", "file", "alpha"],
        option(
            "Masks",
            "Learn a part of each picture: what is white in a file beside it (a-masklabel.png or a.mask.png for a.png) "
            "or in a folder of masks, or what is not transparent. Use it where the same background or a second person "
            "would be learned along. Pictures without a mask are learned whole.",
            names={"file": "files", "alpha": "transparency of the pictures"},
        ),
    ] = "none"
    folder: Annotated[
        str,
        option(
            "Folder of masks",
            "Pictures of the same names in black and white, in subfolders as in the set or all together. Empty: the "
            "masks lie beside the pictures.",
            place="path",
            width="wide",
            when=one_of("masks.source", "file"),
        ),
    ] = ""
    outside: Annotated[
        float,
        option(
            "Weight outside of the mask",
            "How much the rest of the picture counts, from 0 to 1. Raise it to 0.1 where what is learned does not fit "
            "into its surroundings.",
            low=0,
            high=1,
            step=0.05,
            when=MASKED,
        ),
    ] = 0.0
    normalise: Annotated[
        bool,
        option(
            "Small masks count as much",
            "Divides the loss of a picture by the area of its mask, so that a small mask teaches as much as a large "
            "one. Off: by the area of the picture, as sd-scripts does.",
            when=MASKED,
            advanced=True,
        ),
    ] = True
    prior: Annotated[
        float,
        option(
            "Prior outside of the mask",
            "Holds what is outside of the mask to what the model said before training, with this weight. Set 1 where "
            "the surroundings begin to change. A step takes about half as long again, and no more memory. 0: off.",
            low=0,
            high=100,
            step=0.1,
            when=MASKED,
            advanced=True,
        ),
    ] = 0.0
