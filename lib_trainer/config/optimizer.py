"""How a job learns: optimizer, rates, schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from lib_trainer.config.base import ADAPTERS, AVERAGING, kinds
from lib_trainer.options.declare import Group, Section, given, none_of, one_of, option

ADAPTERS_ALONE = kinds(*ADAPTERS)
PAIRS = kinds("lora", "locon", "pivotal", "difference")
"""Kinds whose adapters are products of two matrices."""
SCHEDULED = Group((none_of("optimizer.name", *AVERAGING),))


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
            width="wide",
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
            "As its own documentation names them, for example betas=(0.9, 0.99) eps=1e-8. Empty: its defaults, "
            "which are nearly always right.",
            advanced=True,
            width="wide",
        ),
    ] = ""
    unet_lr: Annotated[
        float,
        option(
            "Learning rate, UNet",
            "Guides suggest starting at 1e-4. 0 leaves the UNet untrained.",
            low=0,
            high=1,
            group=ADAPTERS_ALONE,
        ),
    ] = 1e-4
    text_encoder_lr: Annotated[
        float,
        option(
            "Learning rate, text encoder",
            "Guides suggest starting at 1e-5. 0 leaves the text encoder untrained and keeps its outputs instead.",
            low=0,
            high=1,
            group=ADAPTERS_ALONE,
        ),
    ] = 1e-5
    text_encoder_2_lr: Annotated[
        float,
        option(
            "Learning rate, second text encoder",
            "For models with two text encoders. -1: the rate of the first. Ignored by models with one.",
            low=-1,
            high=1,
            advanced=True,
            family="second_encoder",
            group=ADAPTERS_ALONE,
        ),
    ] = -1.0
    text_encoder_share: Annotated[
        float,
        option(
            "Text encoder learns for",
            "The share of the run after which the text encoder stays as it is; later steps are faster. Try one "
            "half where prompts lose what they knew.",
            low=0.01,
            high=1,
            step=0.05,
            advanced=True,
            group=ADAPTERS_ALONE,
            when=given("optimizer.text_encoder_lr"),
        ),
    ] = 1.0
    lora_plus: Annotated[
        float,
        option(
            "LoRA+ ratio",
            "How many times faster the second matrix of each adapter learns than the first. The paper's 16 lets a LoRA "
            "learn sooner at a low rate; 1 is plain LoRA.",
            low=1,
            high=64,
            step=1,
            advanced=True,
            group=PAIRS,
        ),
    ] = 1.0
    schedule: Annotated[
        Literal[
            "constant",
            "linear",
            "cosine",
            "cosine_with_restarts",
            "polynomial",
            "warmup_stable_decay",
            "rex",
        ],
        option(
            "Learning rate schedule",
            "How the rate falls. Cosine suits most runs; constant suits runs whose length is not known yet, and "
            "optimizers that find the rate themselves.",
            group=SCHEDULED,
            names={
                "cosine_with_restarts": "cosine with restarts",
                "warmup_stable_decay": "constant, then a decay (WSD)",
                "rex": "REX",
            },
        ),
    ] = "cosine"
    warmup: Annotated[
        float,
        option(
            "Warm-up",
            "Steps over which the rate rises to its set value; a number below 1 is a share of the run. Use a few "
            "percent where a run begins with a jump in the loss.",
            low=0,
            high=100_000,
            step=0.05,
        ),
    ] = 0.0
    cycles: Annotated[
        int,
        option(
            "Cycles",
            "How often the cosine falls, each time from the full rate. Two or three where files of several steps "
            "are compared.",
            low=1,
            high=100,
            step=1,
            advanced=True,
            group=SCHEDULED,
            when=one_of("optimizer.schedule", "cosine_with_restarts"),
        ),
    ] = 1
    power: Annotated[
        float,
        option(
            "Power",
            "1 falls in a straight line, 2 falls sooner, 0.5 later.",
            low=0.05,
            high=10,
            step=0.5,
            advanced=True,
            group=SCHEDULED,
            when=one_of("optimizer.schedule", "polynomial"),
        ),
    ] = 1.0
    decay_share: Annotated[
        float,
        option(
            "Decay at the end",
            "The share of the run in which the rate falls; before that it is constant. A tenth to a fifth is usual.",
            low=0.01,
            high=1,
            step=0.05,
            advanced=True,
            group=SCHEDULED,
            when=one_of("optimizer.schedule", "warmup_stable_decay"),
        ),
    ] = 0.1
    floor: Annotated[
        float,
        option(
            "Floor of the schedule",
            "Share of the rate that is left at the end. 0.1 keeps the last steps of a long run useful.",
            low=0,
            high=1,
            step=0.05,
            advanced=True,
            group=SCHEDULED,
            when=none_of("optimizer.schedule", "constant"),
        ),
    ] = 0.0
    weight_decay: Annotated[
        float,
        option(
            "Weight decay",
            "In each step weights shrink by this times the rate; raise it where a long run overfits.",
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
    ema: Annotated[
        bool,
        option(
            "EMA",
            "Save and preview a running average of what is learned, which is steadier than the last step: for "
            "long runs at a high rate. Needs one more copy of what learns.",
            group=SCHEDULED,
            advanced=True,
        ),
    ] = False
    ema_decay: Annotated[
        float,
        option(
            "EMA decay",
            "Share of the average that stays in each step: 0.99 remembers about a hundred steps.",
            low=0,
            high=0.99999,
            group=SCHEDULED,
            when=one_of("optimizer.ema", True),
            advanced=True,
        ),
    ] = 0.9995
