"""How strongly a LoRA is meant, as a prompt says it: for each part of the model and each block.

`FILE:0.8` as `<lora:name:0.8>`; `FILE:0.5:0.9` gives the text encoders the first number and the UNet the second, which
is their order in prompts. Named: `FILE:te=0.5:unet=0.9:lbw=…`. `lbw` is what the extension LoRA Block Weight reads: 12,
17, 20 or 26 numbers, or one of its presets; or blocks by name, as in `lbw=input_0-5=0, middle=0.5, layer_11=0`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lib_trainer.families.family import Family, Unet
from lib_trainer.networks.blocks import NUMBER, parse_blocks
from lib_trainer.refusals import ConfigError, both
from lib_trainer.toolbox.layers import Layer

PRESETS: dict[str, tuple[int, ...]] = {
    "NONE": (),
    "ALL": tuple(range(17)),
    "INS": (0, 1, 2, 3),
    "IND": (0, 4, 5, 6),
    "INALL": (0, 1, 2, 3, 4, 5, 6),
    "MIDD": (0, 4, 5, 6, 7, 8, 9, 10, 11),
    "OUTD": (0, 8, 9, 10, 11),
    "OUTS": (0, 12, 13, 14, 15, 16),
    "OUTALL": (0, 8, 9, 10, 11, 12, 13, 14, 15, 16),
}
"""Which of the 17 numbers are 1, as LoRA Block Weight's presets have them; `ALL0.5` is 0.5 everywhere."""

LISTS: dict[int, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    12: (9, (4, 5, 7, 8), (0, 1, 2, 3, 4, 5)),
    17: (12, (1, 2, 4, 5, 7, 8), (3, 4, 5, 6, 7, 8, 9, 10, 11)),
    20: (9, tuple(range(9)), tuple(range(9))),
    26: (12, tuple(range(12)), tuple(range(12))),
}
"""{how many numbers: (blocks of a side, the input blocks, the output blocks that they are for)}.

The base's number comes first, and the middle's between the two. What they leave out is 0.
"""


@dataclass(frozen=True)
class Strength:
    """`text` and `unet` multiply, and so do `base` (the text encoders) and `blocks` where it names the layer's."""

    text: float = 1.0
    unet: float = 1.0
    blocks: Mapping[str, float] = field(default_factory=dict)
    base: float = 1.0

    def of(self, layer: Layer) -> float:
        if layer.part == "unet":
            return self.unet * self.blocks.get(layer.block, 1.0)
        return self.text * self.base * self.blocks.get(layer.block, 1.0)


@dataclass(frozen=True)
class Meant:
    """A file as it is to be taken. `blocks` is read once the family is known."""

    path: Path
    text: float = 1.0
    unet: float = 1.0
    blocks: str = ""

    def strength(self, family: Family, field: str) -> Strength:
        """Raises `ConfigError` naming `field` for blocks that are not understood or not there."""
        base, blocks = parse_weights(self.blocks, family.unet, field)
        return Strength(self.text, self.unet, blocks, base)


def parse_meant(text: str, field: str) -> Meant:
    """Raises `ConfigError` where no file is named or what stands behind it is not understood."""
    rest = text.strip().strip('"')
    named: dict[str, str] = {}
    numbers: list[float] = []
    while match := re.search(rf":({NUMBER}|(?:te|unet|lbw)=[^:]*)$", rest):
        rest, told = rest[: match.start()], match.group(1)
        if "=" in told:
            name, _, value = told.partition("=")
            named[name] = value.strip()
        else:
            numbers.insert(0, float(told))
    if not rest.strip() or len(numbers) > 2:
        raise ConfigError("adapter_file.not_meant", field=field, given=text)
    text_strength, unet = (numbers[0], numbers[-1]) if numbers else (1.0, 1.0)
    try:
        text_strength, unet = float(named.get("te", text_strength)), float(named.get("unet", unet))
    except ValueError:
        raise ConfigError("adapter_file.not_meant", field=field, given=text) from None
    if not (math.isfinite(text_strength) and math.isfinite(unet)):
        raise ConfigError("adapter_file.not_meant", field=field, given=text)
    return Meant(Path(rest.strip().strip('"')).expanduser(), text_strength, unet, named.get("lbw", ""))


def parse_weights(text: str, unet: Unet, field: str) -> tuple[float, dict[str, float]]:
    """The text encoders' factor and {block: factor}. Raises `ConfigError` naming `field`."""
    text = text.strip()
    if not text:
        return 1.0, {}
    if "=" in text:
        return 1.0, parse_blocks(text, field, unet, signed=True)
    if text in PRESETS or text == "ALL0.5":
        half = text == "ALL0.5"
        numbers = [0.5 if half else float(place in PRESETS[text]) for place in range(17)]
    else:
        parts = [part.strip() for part in text.split(",")]
        known = all(re.fullmatch(NUMBER, part) and math.isfinite(float(part)) for part in parts)
        if not known or len(parts) not in LISTS:
            raise ConfigError("adapter_file.weights", field=field, given=text)
        numbers = [float(part) for part in parts]
    side, inputs, outputs = LISTS[len(numbers)]
    if side != unet.side:
        fit = [count for count, (blocks, _, _) in LISTS.items() if blocks == unet.side]
        raise ConfigError("adapter_file.weights_count", field=field, count=len(numbers), fit=both(fit))
    blocks = dict.fromkeys(unet.blocks, 0.0)
    places = [*(f"input_{one}" for one in inputs), "middle", *(f"output_{one}" for one in outputs)]
    return numbers[0], blocks | dict(zip(places, numbers[1:], strict=True))
