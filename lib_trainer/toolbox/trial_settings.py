"""What trying on the loaded model is told. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from lib_trainer.options.declare import Section, option


class PictureSettings(Section, frozen=True):
    """Pictures"""

    prompt: Annotated[str, option("Prompt", "Of every picture.", width="tall")] = ""
    negative_prompt: Annotated[str, option("Negative prompt", "Of every picture.", width="wide")] = ""
    width: Annotated[int, option("Width", "Of a picture.", unit="pixels", low=64, high=4096, step=8)] = 512
    height: Annotated[int, option("Height", "Of a picture.", unit="pixels", low=64, high=4096, step=8)] = 512
    steps: Annotated[int, option("Sampling steps", "Of a picture.", low=1, high=150)] = 20
    cfg_scale: Annotated[
        float, option("CFG scale", "How closely pictures follow the prompt.", low=1, high=30, step=0.5)
    ] = 7.0
    sampler: Annotated[str, option("Sampler", "The host's.", offers="samplers")] = ""
    picture_seed: Annotated[int, option("Seed of the pictures", "All have the same.", low=0, high=2**32 - 1)] = 1


class GridSettings(PictureSettings, frozen=True):
    """X/Y grid"""

    weights: Annotated[
        str,
        option("Weights", "One column each, in place of the weight above; empty: that one.", width="wide"),
    ] = "0, 0.25, 0.5, 0.75, 1"
    rows: Annotated[
        str,
        option(
            "Weights by block",
            "One row for each line, in place of those above: numbers, a preset, or entries; a column's weight is "
            "that of blocks which a line does not name. Empty: those above.",
            width="tall",
        ),
    ] = ""


class BlockGridSettings(PictureSettings, frozen=True):
    """Grid of blocks"""

    shown: Annotated[
        Literal["both", "off", "alone"],
        option(
            "Blocks",
            "Each block of the LoRA switched off, or alone; above them the whole LoRA, and the model without it.",
            names={"both": "off, and alone", "off": "switched off", "alone": "alone"},
        ),
    ] = "both"
