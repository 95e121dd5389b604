"""How a job learns: optimizer, rates, schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from lib_trainer.config.base import ADAPTERS, kinds
from lib_trainer.options.declare import Section, one_of, option

ADAPTERS_ALONE = kinds(*ADAPTERS)
AVERAGING = ("AdamWScheduleFree", "ProdigyPlusScheduleFree")
"""Optimizers that need no schedule: they average instead."""


class OptimizerConfig(Section, frozen=True):
    """Learning"""

    name: Annotated[
        Literal[
            "AdamW",
            "AdamW8bit",
            "PagedAdamW8bit",
            "Lion",
            "Lion8bit",
            "SGDNesterov",
            "SGDNesterov8bit",
            "DAdaptAdamW",
            "DAdaptLion",
            "Adafactor",
            "Prodigy",
            "AdamWScheduleFree",
            "ProdigyPlusScheduleFree",
            "CAME",
            "AdEMAMix",
            "by path",
        ],
        option(
            "Optimizer",
            "AdamW suits nearly everything. 8-bit ones keep a smaller state and need an NVIDIA card and bitsandbytes; "
            "DAdapt… and Prodigy… find the rate themselves (set the rates to 1).",
            names={"by path": "a class by its path"},
        ),
    ] = "AdamW"
    class_path: Annotated[
        str,
        option(
            "Class of the optimizer",
            "Package, module and class of any optimizer that is installed, as in torch.optim.RMSprop.",
            when=one_of("optimizer.name", "by path"),
            width="wide",
        ),
    ] = ""
    arguments: Annotated[
        str,
        option(
            "Arguments of the optimizer",
            "What its own documentation names, as in betas=(0.9, 0.99) eps=1e-8. Empty: its usual values, which are "
            "right nearly always.",
            advanced=True,
            width="wide",
        ),
    ] = ""
    unet_lr: Annotated[
        float,
        option(
            "Learning rate, UNet",
            "The guides' start is 1e-4. 0 leaves the UNet untrained.",
            low=0,
            high=1,
            group=ADAPTERS_ALONE,
        ),
    ] = 1e-4
    text_encoder_lr: Annotated[
        float,
        option(
            "Learning rate, text encoder",
            "The guides' start is 1e-5. 0 leaves the text encoder untrained and keeps its outputs instead.",
            low=0,
            high=1,
            group=ADAPTERS_ALONE,
        ),
    ] = 1e-5
    schedule: Annotated[
        Literal["constant", "cosine", "constant_with_warmup"],
        option("Learning rate schedule", "Cosine falls to zero at the end; warm-up rises from zero at the start."),
    ] = "cosine"
    warmup_steps: Annotated[
        int,
        option(
            "Warm-up steps",
            "Length of the rise in constant_with_warmup.",
            when=one_of("optimizer.schedule", "constant_with_warmup"),
            low=0,
            high=100_000,
            unit="steps",
            step=1,
            advanced=True,
        ),
    ] = 100
    weight_decay: Annotated[
        float,
        option(
            "Weight decay",
            "By how much of the rate weights shrink in each step; raise it where a long run overfits.",
            low=0,
            high=1,
            advanced=True,
        ),
    ] = 0.01
    max_gradient_norm: Annotated[
        float,
        option(
            "Gradient clipping",
            "Gradients are scaled down to this norm. 0 turns clipping off.",
            low=0,
            high=1000,
            advanced=True,
        ),
    ] = 1.0
