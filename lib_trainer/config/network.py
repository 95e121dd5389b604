"""Options of LoRA and its relatives."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from lib_trainer.config.base import ADAPTERS, AVERAGING, Kind, kinds
from lib_trainer.families.known import by_family
from lib_trainer.options.declare import ANYBODY, Group, Section, given, none_of, one_of, option

NAMES = {
    "lora": "LoRA",
    "locon": "LoCon (LoRA with convolutions)",
    "loha": "LoHa",
    "lokr": "LoKr",
    "pivotal": "LoRA with an embedding in one file (pivotal tuning)",
    "difference": "LoRA of a difference (pairs of pictures)",
    "embedding": "Embedding (Textual Inversion)",
    "hypernetwork": "Hypernetwork",
    "checkpoint": "Whole checkpoint (fine-tuning, DreamBooth)",
}
CONVOLUTIONS = kinds("locon", "loha", "lokr")
KRONECKER = kinds("lokr")


class NetworkConfig(Section, frozen=True):
    """What is trained"""

    GROUP: ClassVar[Group] = kinds(*ADAPTERS)

    kind: Annotated[
        Kind,
        option(
            "Kind of training",
            "A LoRA is small and learns well; its relatives trade size for detail. An embedding learns a word, a "
            "hypernetwork changes what the attention reads, a whole checkpoint is 2 GB or more.",
            names=NAMES,
            width="wide",
            group=ANYBODY,
            first=1,
        ),
    ] = "lora"
    rank: Annotated[
        int,
        option(
            "Rank (dim)",
            "Size of the low-rank matrices: a higher rank gives more detail and a larger file.",
            low=1,
            high=1024,
            step=1,
        ),
    ] = 32
    alpha: Annotated[
        float,
        option(
            "Alpha",
            "The learned change is scaled by alpha / rank. 0 means alpha = rank.",
            low=0,
            high=4096,
            step=1,
        ),
    ] = 16.0
    conv_rank: Annotated[
        int,
        option(
            "Rank of the convolutions",
            "Of the 3×3 convolutions. 0 leaves all convolutions untrained.",
            low=0,
            high=1024,
            step=1,
            group=CONVOLUTIONS,
        ),
    ] = 8
    conv_alpha: Annotated[
        float,
        option(
            "Alpha of the convolutions",
            "As alpha, for the 3×3 convolutions. 0 means alpha = rank.",
            low=0,
            high=4096,
            step=1,
            group=CONVOLUTIONS,
            when=given("network.conv_rank"),
        ),
    ] = 4.0
    factor: Annotated[
        int,
        option(
            "LoKr factor",
            "Size of the small factor of the Kronecker product: a larger factor makes a smaller file. -1 takes "
            "the square root of each layer's size.",
            low=-1,
            high=256,
            group=KRONECKER,
        ),
    ] = -1
    decompose_both: Annotated[
        bool,
        option("LoKr splits both factors", "Also split the small factor into two thin ones.", group=KRONECKER),
    ] = False
    dora: Annotated[
        bool,
        option(
            "DoRA",
            "Learn the length of each input's weights separately from their direction: better at low ranks, but "
            "slower.",
        ),
    ] = False
    rank_stabilised: Annotated[
        bool,
        option(
            "rs-LoRA",
            "Scale by alpha / √rank instead of alpha / rank, so that large ranks keep learning.",
            advanced=True,
        ),
    ] = False
    dropout: Annotated[
        float,
        option(
            "Dropout",
            "Share of hidden values that are left out in each step.",
            low=0,
            high=0.95,
            step=0.05,
            advanced=True,
        ),
    ] = 0.0
    rank_dropout: Annotated[
        float,
        option(
            "Rank dropout",
            "Share of ranks that are left out in each step.",
            low=0,
            high=0.95,
            step=0.05,
            advanced=True,
        ),
    ] = 0.0
    module_dropout: Annotated[
        float,
        option(
            "Module dropout",
            "Share of layers whose adapter is left out in each step.",
            low=0,
            high=0.95,
            step=0.05,
            advanced=True,
        ),
    ] = 0.0
    max_norm: Annotated[
        float,
        option(
            "Largest norm of a module",
            "After each step, what a module adds to its layer is scaled down to this norm: 1 keeps a LoRA from "
            "burning pictures and makes it easier to combine with others. 0: no limit.",
            low=0,
            high=1000,
            step=0.5,
            advanced=True,
            when=(one_of("network.dora", False), none_of("optimizer.name", *AVERAGING)),
        ),
    ] = 0.0
    continue_from: Annotated[
        str,
        option(
            "Continue from",
            "A file of the same kind to continue from; rank and shapes are taken from it. Layers that do not "
            "learn stay as they are there. Empty: start afresh.",
            advanced=True,
            place="path",
            width="wide",
            group=ANYBODY,
        ),
    ] = ""


class BlocksConfig(Section, frozen=True):
    """Layers"""

    GROUP: ClassVar[Group] = kinds(*ADAPTERS)

    preset: Annotated[
        Literal["all", "input", "middle", "output", "no_input", "no_output", "deep", "shallow"],
        option(
            "Blocks that learn",
            "Which blocks of the UNet: all; the input, middle or output blocks alone; all but the input or the "
            "output blocks; the inner ones (deep) or the outer ones (shallow). Inner are "
            f"{by_family(lambda one: one.unet.inner)}. What does not learn is not in the file.",
            advanced=True,
        ),
    ] = "all"
    rates: Annotated[
        str,
        option(
            "Learning rate by block",
            "Factors on the learning rate, as in 'input_0-5=0, middle=0.5, layer_11=0'. The UNet has the blocks "
            f"middle, and input_N and output_N with N from 0 to {by_family(lambda one: str(one.unet.side - 1))}; "
            f"text encoders have layer_N, N from 0 to {by_family(lambda one: str(one.layers - 1))}. A name without a "
            "number means all of them. 0 leaves a block out.",
            advanced=True,
            width="wide",
        ),
    ] = ""
    ranks: Annotated[
        str,
        option(
            "Rank by block",
            "Ranks that differ from the one above, written the same way: 'middle=64, output_3-5=16'. 0 leaves a "
            "block out.",
            advanced=True,
            width="wide",
        ),
    ] = ""
