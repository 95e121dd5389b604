"""Block-wise training: which blocks of a model learn, how fast and at which rank (分层训练).

SD's UNet has 25 blocks: input_0 to input_11, middle, output_0 to output_11; the text encoder has layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lib_trainer.refusals import ConfigError

SIDES = {"input": 12, "output": 12, "layer": 99, "middle": 1}

PRESETS: dict[str, Callable[[str, int], bool]] = {
    "all": lambda side, number: True,
    "input": lambda side, number: side == "input",
    "middle": lambda side, number: side == "middle",
    "output": lambda side, number: side == "output",
    "no_input": lambda side, number: side != "input",
    "no_output": lambda side, number: side != "output",
    "deep": lambda side, number: side == "middle" or (number >= 7 if side == "input" else number <= 4),
    "shallow": lambda side, number: side != "middle" and (number <= 6 if side == "input" else number >= 5),
}
"""Which blocks of the UNet learn, by side and number. The text encoder's layers always do."""


def parse_blocks(text: str, field: str) -> dict[str, float]:
    """'input_0-5=0, middle=0.5' → {'input_0': 0.0, …}; of two entries for a block the later one holds.

    Raises `ConfigError` that names `field` and the entry.
    """
    values: dict[str, float] = {}
    for entry in (part.strip() for part in text.split(",")):
        if not entry:
            continue
        match = re.fullmatch(r"(input|middle|output|layer)(?:_(\d+)(?:-(\d+))?)?\s*=\s*(\d*\.?\d+)", entry)
        if match is None:
            raise ConfigError("blocks.not_understood", field=field, entry=entry)
        side, first, last, value = match.groups()
        count = SIDES[side]
        low = int(first) if first else 0
        high = int(last) if last else (low if first else count - 1)
        if high < low or high >= count or (side == "middle" and first):
            raise ConfigError("blocks.not_there", field=field, entry=entry)
        for number in range(low, high + 1):
            values["middle" if side == "middle" else f"{side}_{number}"] = float(value)
    return values


def learns(preset: str, block: str) -> bool:
    """Whether a preset lets a block learn."""
    side, _, number = block.partition("_")
    return side == "layer" or PRESETS[preset](side, int(number or 0))
