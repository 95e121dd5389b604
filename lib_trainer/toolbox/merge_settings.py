"""What a merge is told, declared once for the command line and the page. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from lib_trainer.options.declare import one_of, option
from lib_trainer.toolbox.writes import Writes

ModeName = Literal[
    "weighted_sum", "add_difference", "sum_twice", "triple", "train_difference", "smooth_add", "cosine_a", "cosine_b",
    "dare", "ties", "slerp", "average",
]  # fmt: skip
LABELS = {
    "weighted_sum": "weighted sum: (1 − w)A + wB",
    "add_difference": "add difference: A + w(B − C)",
    "sum_twice": "sum twice: (1 − v)((1 − w)A + wB) + vC",
    "triple": "triple sum: (1 − w − v)A + wB + vC",
    "train_difference": "train difference: add of B − C what A lacks",
    "smooth_add": "smooth add: A + w · smoothed(B − C)",
    "cosine_a": "cosine A: B where it differs, after A's structure",
    "cosine_b": "cosine B: B where it differs, after B's structure",
    "dare": "DARE: A + w · a random part of B − A, rescaled",
    "ties": "TIES: A + w · the large changes that agree",
    "slerp": "slerp: along the arc from A to B",
    "average": "average of any number of models",
}
THREE = one_of("mode", "add_difference", "sum_twice", "triple", "train_difference", "smooth_add", "ties", "average")
TWO_WEIGHTS = one_of("mode", "sum_twice", "triple")
MANY = one_of("mode", "ties", "average")


class MergeSettings(Writes, frozen=True):
    """Merge"""

    a: Annotated[
        str, option("Model A", "The checkpoint to begin with.", place="path", width="wide", files="checkpoints")
    ] = ""
    b: Annotated[str, option("Model B", "The second checkpoint.", place="path", width="wide", files="checkpoints")] = ""
    c: Annotated[
        str, option("Model C", "The third one; for differences the model that B was made from.", place="path",
                    width="wide", when=THREE, files="checkpoints")
    ] = ""  # fmt: skip
    more: Annotated[
        tuple[str, ...],
        option("More models", "For averages and TIES.", place="path", width="wide", when=MANY, files="checkpoints"),
    ] = ()
    mode: Annotated[ModeName, option("Mode", "The formula.", names=LABELS, width="wide")] = "weighted_sum"
    weight: Annotated[
        float, option("Weight", "How much of B, or of the difference; w in the formula.", low=-10, high=10, step=0.05)
    ] = 0.5
    second: Annotated[
        float,
        option("Second weight", "How much of C; v in the formula.", low=-10, high=10, step=0.05, when=TWO_WEIGHTS),
    ] = 0.0
    blocks: Annotated[
        str,
        option(
            "Weights by block",
            "26 numbers (20 where a side has nine blocks), or one fewer without BASE; a preset such as GRAD_V; or "
            "entries, as in input_0-5=0, middle=0.5, base=0.2. What is not named has the weight above.",
            width="wide",
        ),
    ] = ""
    second_blocks: Annotated[
        str,
        option("Second weights by block", "The same for the second weight.", width="wide", when=TWO_WEIGHTS),
    ] = ""
    parts: Annotated[
        str, option("Weights by part", "As in unet=0.4, te1=0, te2=0.2; te is every text encoder.")
    ] = ""  # fmt: skip
    vae: Annotated[
        str,
        option(
            "VAE",
            "a, b or c: that model's own; the path of a VAE or checkpoint: that one's; blend: merged like the rest.",
            files="vaes",
        ),
    ] = "a"
    rules: Annotated[
        str,
        option(
            "Rules on names",
            "Lines of pattern = weight (or weight, second weight) on tensors' whole names; a pattern has wildcards "
            "(*attn2*) or is a /regular expression/. The last one that fits holds.",
            advanced=True,
            width="tall",
            flag="rule",
            repeats=True,
        ),
    ] = ""
    shares: Annotated[
        str, option("Shares", "Of each model in an average, as in 0.5, 0.3, 0.2; empty: equal.",
                    when=one_of("mode", "average"))
    ] = ""  # fmt: skip
    seed: Annotated[
        int, option("Seed", "Of what is dropped at random.", low=0, high=2**32 - 1, when=one_of("mode", "dare"))
    ] = 0
    dropped: Annotated[
        float,
        option("Dropped", "Share of the changes that are dropped at random; the others grow in its place.", low=0,
               high=0.99, step=0.05, when=one_of("mode", "dare")),
    ] = 0.5  # fmt: skip
    kept: Annotated[
        float,
        option("Kept", "Share of each model's changes, the largest, that have a vote.", low=0.001, high=1, step=0.05,
               when=one_of("mode", "ties")),
    ] = 0.2  # fmt: skip
    chain: Annotated[
        str,
        option(
            "Chain",
            "A TOML file of several merges, [[step]] by [[step]] with these options; #1 as a model is the first step's "
            "result. Nothing is written in between.",
            place="path",
            advanced=True,
            width="wide",
        ),
    ] = ""


STEP_FIELDS = (
    "a", "b", "c", "more", "mode", "weight", "second", "blocks", "second_blocks", "parts", "rules", "shares", "seed",
    "dropped", "kept",
)  # fmt: skip
"""Options that belong to one step of a chain."""
