"""Block-wise training: which blocks of a model learn, how fast and at which rank (分层训练).

A UNet has as many input blocks as output blocks, and one in the middle; SD 1.x's has 25: input_0 to input_11, middle,
output_0 to output_11. Text encoders have layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from lib_trainer.families.family import Unet
from lib_trainer.refusals import ConfigError

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"

LAYERS = 99
"""Of a text encoder: more than any has."""

PRESETS: dict[str, Callable[[Unet, str, int], bool]] = {
    "all": lambda unet, side, number: True,
    "input": lambda unet, side, number: side == "input",
    "middle": lambda unet, side, number: side == "middle",
    "output": lambda unet, side, number: side == "output",
    "no_input": lambda unet, side, number: side != "input",
    "no_output": lambda unet, side, number: side != "output",
    "deep": lambda unet, side, number: side == "middle" or _is_deep(unet, side, number),
    "shallow": lambda unet, side, number: side != "middle" and not _is_deep(unet, side, number),
}
"""Which blocks of the UNet learn, by side and number. The text encoder's layers always do."""


def _is_deep(unet: Unet, side: str, number: int) -> bool:
    """The output side is the input side's mirror image."""
    return (number if side == "input" else unet.side - 1 - number) >= unet.deep


def parse_blocks(text: str, field: str, unet: Unet, *, signed: bool = False) -> dict[str, float]:
    """'input_0-5=0, middle=0.5' → {'input_0': 0.0, …}; of two entries for a block the later one holds.

    `signed`: numbers may be below 0, as weights of a merge and of a LoRA may, and ranks and rates may not.

    Raises `ConfigError` that names `field` and the entry.
    """
    counts = {"input": unet.side, "output": unet.side, "layer": LAYERS, "middle": 1}
    values: dict[str, float] = {}
    for entry in (part.strip() for part in text.split(",")):
        if not entry:
            continue
        match = re.fullmatch(rf"(input|middle|output|layer)(?:_(\d+)(?:-(\d+))?)?\s*=\s*({NUMBER})", entry)
        if match is None or not math.isfinite(float(match[4])):
            raise ConfigError("blocks.not_understood", field=field, entry=entry)
        if float(match[4]) < 0 and not signed:
            raise ConfigError("blocks.negative", field=field, entry=entry)
        side, first, last, value = match.groups()
        count = counts[side]
        low = int(first) if first else 0
        high = int(last) if last else (low if first else count - 1)
        if high < low or high >= count or (side == "middle" and first):
            raise ConfigError("blocks.not_there", field=field, entry=entry, last=unet.side - 1)
        for number in range(low, high + 1):
            values["middle" if side == "middle" else f"{side}_{number}"] = float(value)
    return values


def learns(preset: str, block: str, unet: Unet) -> bool:
    """Whether a preset lets a block learn."""
    side, _, number = block.partition("_")
    return side == "layer" or PRESETS[preset](unet, side, int(number or 0))
