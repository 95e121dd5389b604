"""The options of what is held out of training, and of what its loss decides."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from lib_trainer.options.declare import ANYBODY, Group, Section, none_of, one_of, option


class ValidationConfig(Section, frozen=True):
    """Held-out pictures"""

    GROUP: ClassVar[Group] = Group((none_of("validation.pictures", "none"),))

    pictures: Annotated[
        Literal["none", "share", "folder"],
        option(
            "Held-out pictures",
            "Pictures that are measured and never trained: their loss falls while the concept is learned and rises "
            "when the pictures are learned by heart. Worth it from about ten pictures on.",
            names={"share": "a share of the set", "folder": "a folder of their own"},
            group=ANYBODY,
        ),
    ] = "none"
    share: Annotated[
        float,
        option(
            "Held-out share",
            "This share of the pictures is held out, at least one: 0.1, or 0.2 of a small set. Nearly equal pictures "
            "should not stand on both sides.",
            low=0.01,
            high=0.5,
            step=0.05,
            when=one_of("validation.pictures", "share"),
        ),
    ] = 0.1
    folder: Annotated[
        str,
        option(
            "Folder of held-out pictures",
            "Pictures of the same concept with captions, which the set does not have; choose it to train on every "
            "picture of the set.",
            place="path",
            width="wide",
            when=one_of("validation.pictures", "folder"),
        ),
    ] = ""
    every: Annotated[
        int,
        option(
            "Measure every",
            "Lower it where the best step is to be found more closely; each measurement costs a few steps' time. "
            "0 measures after each epoch.",
            low=0,
            high=10_000_000,
            unit="steps",
            step=1,
        ),
    ] = 100
    levels: Annotated[
        int,
        option(
            "Noise levels",
            "How often each picture is measured, at levels spread over the whole range: more of them for fewer "
            "pictures, where the curve is not smooth.",
            low=1,
            high=64,
            step=1,
            advanced=True,
        ),
    ] = 4
    trained: Annotated[
        bool,
        option(
            "Measure trained pictures too",
            "As many pictures of the set are measured in the same way, so that the gap between both curves can be "
            "seen; turn it off to halve the time.",
            advanced=True,
        ),
    ] = True
    keep_best: Annotated[
        bool,
        option(
            "Keep the best",
            "Also write a file with -best at its name's end whenever the held-out loss is lower than before; turn it "
            "off where files are too large for that.",
        ),
    ] = True
    patience: Annotated[
        int,
        option(
            "Stop early after",
            "End the run when so many measurements in a row have brought no lower loss: 3 to 5 where a run is left "
            "alone. 0: never.",
            low=0,
            high=1000,
            unit="measurements",
            step=1,
        ),
    ] = 0
    seed: Annotated[
        int,
        option(
            "Seed of what is held out",
            "Another one holds out other pictures and measures with other noise. Keep it for runs that are compared: "
            "the run's own seed changes neither.",
            low=0,
            high=2**32 - 1,
            step=1,
            advanced=True,
        ),
    ] = 1
