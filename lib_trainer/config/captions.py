"""The options of what is made of captions at each step."""

from __future__ import annotations

from typing import Annotated, ClassVar

from lib_trainer.config.base import KINDS, kinds
from lib_trainer.options.declare import ANYBODY, Group, Section, any_of, given, one_of, option

WHOLE = kinds(*(name for name in KINDS if name != "embedding"))
"""An embedding alone learns nothing of a caption that is left out."""


class CaptionsConfig(Section, frozen=True):
    """Captions at each step"""

    GROUP: ClassVar[Group] = ANYBODY

    shuffle: Annotated[
        bool,
        option(
            "Shuffle tags",
            "Show a caption's tags in a new order at each step, so that their order is not learned; for captions "
            "made of tags, not for sentences.",
        ),
    ] = False
    keep_tokens: Annotated[
        int,
        option(
            "Keep the first tags",
            "This many tags at the front stay where they are and are never left out; the trigger word and new "
            "words stay anyway and are not counted. Captions with the keep-token separator (three bars) keep what"
            " stands before it, and after a second one, instead.",
            low=0,
            high=100,
            unit="tags",
            step=1,
            advanced=True,
            when=any_of(one_of("captions.shuffle", True), given("captions.tag_dropout"), given("captions.warmup")),
        ),
    ] = 0
    tag_dropout: Annotated[
        float,
        option(
            "Leave out tags",
            "Each tag is left out with this probability at each step: 0.05 to 0.1 where a concept depends too "
            "much on its usual tags.",
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
            "Tags, * wildcards or /expressions/, separated by commas: what must always be said, such as a class.",
            width="wide",
            advanced=True,
            when=given("captions.tag_dropout"),
        ),
    ] = ""
    only_drop: Annotated[
        str,
        option(
            "Only these tags are left out",
            "If any are named here, separated by commas, only these are left out: what should belong to the "
            "concept without being asked for.",
            width="wide",
            advanced=True,
            when=given("captions.tag_dropout"),
        ),
    ] = ""
    warmup: Annotated[
        int,
        option(
            "Tag warm-up",
            "Begin with the first tag alone and add more step by step until, after this many steps, all are used;"
            " for long captions whose first tags matter most. 0: all from the beginning.",
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
            "The whole caption is left out with this probability at each step: about 0.1 for a style, or where "
            "guidance has become weak.",
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
            "One in this many epochs is trained without captions: another way to the same end. 0: none.",
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
            "At each step one part of such a group in a caption is used; turn it on where captions contain such "
            "groups ({{ and }} then stand for single braces).",
            advanced=True,
        ),
    ] = False
    prefix: Annotated[
        str,
        option(
            "Prefix",
            "Put in front of every caption, even before the trigger word: for a text that all pictures share and "
            "the captions lack. [name] stands for the trigger word.",
            width="wide",
            advanced=True,
        ),
    ] = ""
    suffix: Annotated[
        str,
        option(
            "Suffix",
            "Put at the end of every caption; like the prefix, for what matters less.",
            width="wide",
            advanced=True,
        ),
    ] = ""
    weights: Annotated[
        bool,
        option(
            "Prompt weights",
            "Read (a tag:1.2), (a tag), [a tag] and BREAK in captions as the WebUI does in prompts; for captions that "
            "were prompts. Off: all of it is text, as tags with brackets in their names need it.",
            advanced=True,
        ),
    ] = False
