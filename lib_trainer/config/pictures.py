"""The options of what is made of pictures before they are trained."""

from __future__ import annotations

from typing import Annotated, ClassVar

from lib_trainer.options.declare import ANYBODY, Group, Section, any_of, given, one_of, option


class BucketsConfig(Section, frozen=True):
    """Aspect buckets"""

    GROUP: ClassVar[Group] = Group((one_of("buckets.enabled", True),))

    enabled: Annotated[
        bool,
        option(
            "Aspect buckets",
            "Train each picture close to its own shape, with about as many pixels as the training size, instead "
            "of cropping all of them to one shape. Every picture is shown equally often and every batch is full.",
            group=ANYBODY,
        ),
    ] = False
    resolutions: Annotated[
        str,
        option(
            "Further resolutions",
            "Show each picture at these sizes too: sides of squares or width x height, separated by commas (768, "
            "512x768). An epoch grows by the same factor.",
            width="wide",
        ),
    ] = ""
    step: Annotated[
        int,
        option(
            "Bucket step",
            "Sides of buckets are multiples of this. A finer step crops less and makes more buckets; if the model"
            " cannot use it, you are told before the run.",
            low=8,
            high=512,
            unit="px",
            step=32,
            advanced=True,
        ),
    ] = 64
    low: Annotated[
        int,
        option(
            "Shortest side",
            "No side of a bucket is shorter. Lower it for very long pictures. It does not apply to small pictures"
            " that are not enlarged.",
            low=64,
            high=2048,
            unit="px",
            step=64,
            advanced=True,
        ),
    ] = 256
    high: Annotated[
        int,
        option(
            "Longest side",
            "No side of a bucket is longer.",
            low=64,
            high=4096,
            unit="px",
            step=64,
            advanced=True,
        ),
    ] = 2048
    enlarge: Annotated[
        bool,
        option(
            "Enlarge small pictures",
            "Off: a picture with fewer pixels than its bucket is trained at its own size, cut down to whole "
            "steps, so that the blur of enlarging is not learned.",
            advanced=True,
        ),
    ] = True


class AugmentConfig(Section, frozen=True):
    """Variations of the pictures"""

    mirror: Annotated[
        bool,
        option(
            "Mirror pictures",
            "Mirror each picture half of the time. Good for small sets of things that look alike from both sides;"
            " not with writing, partings, eyepatches, or captions that say left or right.",
        ),
    ] = False
    crop: Annotated[
        bool,
        option(
            "Random crops",
            "What does not fit the training size is cut off at random places instead of evenly on both sides.",
            advanced=True,
        ),
    ] = False
    colour: Annotated[
        float,
        option(
            "Colour jitter",
            "Change brightness, contrast and saturation at random by up to this share, and hues a little. For what has "
            "no colour of its own; 0 leaves colours as they are.",
            low=0,
            high=1,
            step=0.05,
            advanced=True,
        ),
    ] = 0.0
    grey: Annotated[
        float,
        option(
            "Black and white",
            "Share of the variations that are grey, so that shapes are learned without their colours.",
            low=0,
            high=1,
            step=0.05,
            advanced=True,
        ),
    ] = 0.0
    count: Annotated[
        int,
        option(
            "Variations",
            "How many random variations of each picture are encoded and kept; each step draws one of them. Used "
            "only with random crops, colour jitter or black and white.",
            low=1,
            high=100,
            step=1,
            advanced=True,
            when=any_of(one_of("augment.crop", True), given("augment.colour"), given("augment.grey")),
        ),
    ] = 4
