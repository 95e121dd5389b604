"""Options that belong to one kind of training: embedding, hypernetwork, whole checkpoint, difference."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from lib_trainer.config.base import AVERAGING, kinds
from lib_trainer.options.declare import Group, Section, given, none_of, option


class EmbeddingConfig(Section, frozen=True):
    """Embedding"""

    GROUP: ClassVar[Group] = kinds("embedding", "pivotal")

    names: Annotated[
        str,
        option(
            "Names of the embeddings",
            "The word or words to be learned, separated by commas. Empty: the name of the result.",
            file_name=True,
        ),
    ] = ""
    vectors: Annotated[
        int,
        option(
            "Vectors of each",
            "How many tokens the word takes up in a prompt: more vectors hold more and are harder to combine.",
            low=1,
            high=75,
            step=1,
        ),
    ] = 2
    initial_text: Annotated[
        str,
        option(
            "Words to start from",
            "A description in a few words; it may have no more tokens than there are vectors. Several embeddings take "
            "theirs in order, separated by semicolons. Empty: random vectors.",
        ),
    ] = ""
    learning_rate: Annotated[
        float, option("Learning rate, embedding", "Guides suggest starting at 5e-3.", low=0, high=10)
    ] = 5e-3
    norm_decay: Annotated[
        float,
        option(
            "Decay towards the vocabulary's norm",
            "After each step a vector's length moves by this share towards the usual length of a word's vector. "
            "Vectors that are too long drown out the rest of a prompt.",
            low=0,
            high=1,
            advanced=True,
            when=none_of("optimizer.name", *AVERAGING),
        ),
    ] = 0.01
    format: Annotated[
        Literal["safetensors", "pt"],
        option("File format", "The WebUI reads both.", group=kinds("embedding"), advanced=True),
    ] = "safetensors"


class HypernetworkConfig(Section, frozen=True):
    """Hypernetwork"""

    GROUP: ClassVar[Group] = kinds("hypernetwork")

    layer_structure: Annotated[
        str,
        option(
            "Layer structure",
            "Widths of the layers as multiples of their input, as in '1, 2, 1'; the first and the last are 1.",
        ),
    ] = "1, 2, 1"
    activation: Annotated[
        Literal["linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "mish", "softsign"],
        option("Activation", "Between the layers."),
    ] = "swish"
    initialisation: Annotated[
        Literal["Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal"],
        option("Layer weights start as", "Normal starts from almost nothing."),
    ] = "Normal"
    layer_norm: Annotated[bool, option("Layer normalisation", "After each inner layer.", advanced=True)] = False
    activate_output: Annotated[bool, option("Activate the output", "Also after the last layer.", advanced=True)] = False
    dropout_structure: Annotated[
        str,
        option(
            "Dropout by layer",
            "As many numbers as the layer structure has, the first and the last 0. Empty: none.",
            advanced=True,
        ),
    ] = ""
    sizes: Annotated[
        str,
        option(
            "Sizes",
            "Which widths of attention inputs get layers, as in '320, 640, 768, 1280'. Empty: all that the model has.",
            advanced=True,
        ),
    ] = ""
    learning_rate: Annotated[
        float,
        option("Learning rate, hypernetwork", "Guides suggest starting at 1e-5.", low=0, high=1),
    ] = 1e-5


class FinetuneConfig(Section, frozen=True):
    """Fine-tuning"""

    GROUP: ClassVar[Group] = kinds("checkpoint")

    unet_lr: Annotated[
        float,
        option(
            "Fine-tuning rate, UNet",
            "Guides suggest starting at 3e-6; raise the batch size first, then this, and the steps last.",
            low=0,
            high=1,
        ),
    ] = 3e-6
    text_encoder_lr: Annotated[
        float,
        option(
            "Fine-tuning rate, text encoder",
            "0 leaves the text encoder as it is.",
            low=0,
            high=1,
        ),
    ] = 0.0
    text_encoder_2_lr: Annotated[
        float,
        option(
            "Fine-tuning rate, second text encoder",
            "For models with two text encoders. -1: the rate of the first. Ignored by models with one.",
            low=-1,
            high=1,
            advanced=True,
            family="second_encoder",
        ),
    ] = -1.0
    text_encoder_share: Annotated[
        float,
        option(
            "Text encoder is tuned for",
            "The share of the run after which the text encoder stays as it is.",
            low=0.01,
            high=1,
            step=0.05,
            advanced=True,
            when=given("finetune.text_encoder_lr"),
        ),
    ] = 1.0
    difference_rank: Annotated[
        int,
        option(
            "LoRA of the difference",
            "Also save what has changed as a LoRA of this rank (SVD). 0: do not.",
            low=0,
            high=1024,
            step=1,
        ),
    ] = 0


class DifferenceConfig(Section, frozen=True):
    """Difference"""

    GROUP: ClassVar[Group] = kinds("difference")

    before: Annotated[
        str,
        option(
            "Picture or folder before",
            "What the difference starts from. The folder of pictures holds what it leads to, under the same names "
            "where there are several.",
            place="path",
            width="wide",
        ),
    ] = ""
    base_steps: Annotated[
        int,
        option(
            "Steps for the picture before",
            "Steps in which a LoRA that is not saved learns the picture before. 0: half of all steps.",
            low=0,
            high=1_000_000,
            unit="steps",
            step=1,
        ),
    ] = 0
