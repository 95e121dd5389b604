"""The options of preservation without class pictures: the model's own answers are kept beside what is learned."""

from __future__ import annotations

from typing import Annotated

from lib_trainer.options.declare import Section, given, option


class PreserveConfig(Section, frozen=True):
    """Preservation without class pictures"""

    weight: Annotated[
        float,
        option(
            "Preservation, weight",
            "Holds what the model says without your trigger word to what it said before training, on your own "
            "pictures: no class pictures are needed. Set 1 where everything else begins to look like the concept. A "
            "step takes about two and a half times as long, and no more memory. 0: off.",
            low=0,
            high=100,
            step=0.1,
        ),
    ] = 0.0
    caption: Annotated[
        str,
        option(
            "Preservation, caption",
            "What is preserved: a class ('a dog'), or with [filewords] the picture's caption without the trigger word "
            "('dog, [filewords]'). Empty: that caption alone.",
            width="wide",
            when=given("preserve.weight"),
        ),
    ] = ""
