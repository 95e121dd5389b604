"""The options of what is made of captions at each step."""

from __future__ import annotations

from typing import Annotated, ClassVar

from lib_trainer.config.base import KINDS, kinds
from lib_trainer.options.declare import ANYBODY, Group, Section, given, option

WHOLE = kinds(*(name for name in KINDS if name != "embedding"))
"""An embedding alone learns nothing of a caption that is left out."""


class CaptionsConfig(Section, frozen=True):
    """Captions at each step"""

    GROUP: ClassVar[Group] = ANYBODY

    shuffle: Annotated[
        bool,
        option(
            "Shuffle tags",
            "Tell a caption's tags in another order at each step, so that no tag's place is learned; for captions of "
            "tags, not for sentences.",
        ),
    ] = False
    keep_tokens: Annotated[
        int,
        option(
            "Keep the first tags",
            "So many tags at the front stay where they are and are never left out; the trigger word and new words stay "
            "without being counted. Captions with the keep-token separator (three bars) keep what is before it, and "
            "behind a second one, instead.",
            low=0,
            high=100,
            unit="tags",
            step=1,
            advanced=True,
        ),
    ] = 0
    tag_dropout: Annotated[
        float,
        option(
            "Leave out tags",
            "Each tag is left out with this chance at each step: 0.05 to 0.1 where a concept hangs on its usual tags.",
            low=0,
            high=1,
            step=0.05,
            advanced=True,
        ),
    ] = 0.0
    never_drop: Annotated[
        str,
        option(
            "Tags never left out",
            "Tags, * wildcards or /expressions/, divided by commas: name here what must always be told, as a class.",
            width="wide",
            advanced=True,
            when=given("captions.tag_dropout"),
        ),
    ] = ""
    only_drop: Annotated[
        str,
        option(
            "Tags alone left out",
            "Where some are named here, divided by commas, only they are left out: what shall belong to the concept "
            "without being asked for.",
            width="wide",
            advanced=True,
            when=given("captions.tag_dropout"),
        ),
    ] = ""
    warmup: Annotated[
        int,
        option(
            "Tag warm-up",
            "Begin with the first tag and tell more of them step by step until all are told after so many steps; for "
            "long captions whose first tags matter most. 0: all from the beginning.",
            low=0,
            high=10_000_000,
            unit="steps",
            step=1,
            advanced=True,
        ),
    ] = 0
    dropout: Annotated[
        float,
        option(
            "Leave out captions",
            "The whole caption is left out with this chance at each step: about 0.1 for a style, or where guidance has "
            "become weak.",
            low=0,
            high=1,
            step=0.05,
            group=WHOLE,
        ),
    ] = 0.0
    dropout_epochs: Annotated[
        int,
        option(
            "Epochs without captions",
            "Every so many epochs one is trained without any caption, as another way to the same end. 0: none.",
            low=0,
            high=100_000,
            unit="epochs",
            step=1,
            advanced=True,
            group=WHOLE,
        ),
    ] = 0
    wildcards: Annotated[
        bool,
        option(
            "Draw from {a|b|c}",
            "Of such a group in a caption one part is told at each step; turn it on where captions are written with "
            "them ({{ and }} stand for single braces then).",
            advanced=True,
        ),
    ] = False
    prefix: Annotated[
        str,
        option(
            "Prefix",
            "Put before every caption, also before the trigger word, where all pictures share a text that the captions "
            "lack; [name] stands for that word.",
            width="wide",
            advanced=True,
        ),
    ] = ""
    suffix: Annotated[
        str,
        option(
            "Suffix",
            "Put behind every caption; use it as the prefix, for what matters less.",
            width="wide",
            advanced=True,
        ),
    ] = ""
