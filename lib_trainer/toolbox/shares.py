"""How much of a model each tensor takes: by block of the UNet, by part, by rules on names.

Lists of block weights are those of merge-block-weighted and supermerger: BASE, then the input blocks, the middle one
and the output blocks, or the same without BASE. What stands before the blocks counts as the first, what stands behind
them as the last.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lib_trainer.families.family import VAE_PREFIX, Family, Unet
from lib_trainer.networks.blocks import parse_blocks
from lib_trainer.refusals import ConfigError, Field

BASE = "base"
LARGEST = 1e6
"""Weight that is allowed: beyond it fp32 ends."""
LONGEST = 12
"""Input blocks of the UNet for which lists of 25 numbers are made."""


def _folded(x: float) -> float:
    """Into 0 to 1, turning back at both ends."""
    x = abs(x) % 2
    return 2 - x if x > 1 else x


def _step(x: float) -> float:
    return 3 * x * x - 2 * x * x * x


def _reversed(curve: Callable[[float], float]) -> Callable[[float], float]:
    return lambda x: 1 - curve(x)


def _times(factor: int) -> Callable[[float], float]:
    return lambda x: _folded(factor * _step(x))


def _waves(count: int) -> Callable[[float], float]:
    return lambda x: _step(_folded(count * x))


SLOPE = 100 / 24
"""Of merge-block-weighted's Hermite curves at both ends."""


def _hermite(x: float) -> float:
    """From 0 to 1, as steep at its ends, and almost flat between."""
    return _step(x) + SLOPE * (x**3 - 2 * x**2 + x + x**3 - x**2)


def _hermite_raised(x: float) -> float:
    """The same from 1/24 on, but for the first block, which merge-block-weighted's list gives 0."""
    return _hermite(x) + (1 - _step(x)) / 24 if x else 0.0


CURVES: dict[str, Callable[[float], float]] = {
    "ALL_A": lambda x: 0.0,
    "ALL_B": lambda x: 1.0,
    "FLAT_25": lambda x: 0.25,
    "FLAT_75": lambda x: 0.75,
    "GRAD_V": lambda x: abs(1 - 2 * x),
    "GRAD_A": lambda x: 1 - abs(1 - 2 * x),
    "COSINE": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "REVERSE_COSINE": lambda x: (1 - math.cos(math.pi * x)) / 2,
    "SMOOTHSTEP": _step,
    "REVERSE_SMOOTHSTEP": _reversed(_step),
    **{f"SMOOTHSTEP*{factor}": _times(factor) for factor in (2, 3, 4)},
    **{f"REVERSE_SMOOTHSTEP*{factor}": _reversed(_times(factor)) for factor in (2, 3, 4)},
    **{f"SMOOTHSTEP/{count}": _waves(count) for count in (2, 3, 4)},
    **{f"REVERSE_SMOOTHSTEP/{count}": _reversed(_waves(count)) for count in (2, 3, 4)},
    "TRUE_CUBIC_HERMITE": _hermite_raised,
    "TRUE_REVERSE_CUBIC_HERMITE": _reversed(_hermite_raised),
    "FAKE_CUBIC_HERMITE": _hermite,
    "FAKE_REVERSE_CUBIC_HERMITE": _reversed(_hermite),
}
"""Presets by their curve over the blocks, from 0 at the first to 1 at the last."""
LISTS: dict[str, tuple[float, ...]] = {
    **{f"WRAP{2 * side:02}": (*[1.0] * side, *[0.0] * (25 - 2 * side), *[1.0] * side) for side in (4, 6, 7, 8)},
    "MID12_50": (*[0.0] * 5, *[0.5] * 14, *[0.0] * 6),
    "OUT07": (*[0.0] * 18, *[1.0] * 7),
    "OUT12": (*[0.0] * 13, *[1.0] * 12),
    "OUT12_5": (*[0.0] * 12, 0.5, *[1.0] * 12),
    "RING08_SOFT": (
        *[0.0] * 5, 0.5, *[1.0] * 3, 0.5, *[0.0] * 5, 0.5, *[1.0] * 3, 0.5, *[0.0] * 5,
    ),
    "RING08_5": (*[0.0] * 6, *[1.0] * 4, *[0.0] * 5, *[1.0] * 4, *[0.0] * 6),
    "RING10_5": (*[0.0] * 5, *[1.0] * 5, *[0.0] * 5, *[1.0] * 5, *[0.0] * 5),
    "RING10_3": (*[0.0] * 6, *[1.0] * 5, *[0.0] * 3, *[1.0] * 5, *[0.0] * 6),
}  # fmt: skip
"""Presets by their 25 numbers."""
PRESETS = (*CURVES, *LISTS)


@dataclass(frozen=True)
class Rule:
    """Tensors whose whole name fits the pattern have these weights; None: as they would have without it."""

    pattern: re.Pattern[str]
    alpha: float
    beta: float | None = None


@dataclass(frozen=True)
class Shares:
    """The weights of every tensor. The last rule that fits holds, then the block or part, then the weight for all."""

    family: Family
    alpha: float
    beta: float = 0.0
    alphas: Mapping[str, float] = field(default_factory=dict)
    betas: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    rules: Sequence[Rule] = ()

    def of(self, name: str) -> tuple[float, float]:
        part = "vae" if name.startswith(VAE_PREFIX) else self.family.part_of(name)
        block = block_of(name, self.family.unet) if part == "unet" else BASE
        if part == "unet":
            alpha = self.alphas.get(block, self.parts.get(part, self.alpha))
        else:
            alpha = self.parts.get(part or "", self.alphas.get(BASE, self.alpha))
        beta = self.betas.get(block, self.beta)
        for rule in self.rules:
            if rule.pattern.fullmatch(name):
                alpha, beta = rule.alpha, beta if rule.beta is None else rule.beta
        return alpha, beta


def block_of(name: str, unet: Unet) -> str:
    """The block that a tensor of a checkpoint counts as; `BASE` for what is not of the UNet."""
    if not name.startswith(unet.prefix):
        return BASE
    match = re.match(r"(input|output)_blocks\.(\d+)\.", name[len(unet.prefix) :])
    if match:
        return f"{match.group(1)}_{match.group(2)}"
    inner = name[len(unet.prefix) :].partition(".")[0]
    if inner == "middle_block":
        return "middle"
    return f"output_{unet.side - 1}" if inner == "out" else "input_0"


def block_weights(text: str, option: str, unet: Unet) -> dict[str, float]:
    """{block: weight} of a list of numbers, a preset's name, or entries such as `input_0-5=0, middle=0.5`.

    Raises `ConfigError` that names the option.
    """
    text = text.strip()
    if not text:
        return {}
    name = preset_name(text)
    blocks = unet.blocks
    if name in CURVES:
        last = len(blocks) - 1
        base = 1.0 if name == "ALL_B" else 0.0  # as supermerger's lists have it
        return {BASE: base, **{block: CURVES[name](number / last) for number, block in enumerate(blocks)}}
    if name in LISTS:
        return dict(zip((BASE, *blocks), (0.0, *_fitted(LISTS[name], unet)), strict=True))
    if "=" in text:
        return _entries(text, option, unet)
    try:
        numbers = tuple(float(number) for number in re.split(r"[,\s]+", text.strip(", ")))
    except ValueError:
        raise ConfigError("merge.blocks", field=option, text=text, count=len(blocks) + 1) from None
    check_range(numbers, option, text)
    own: dict[str, float] = {}
    if len(numbers) in (len(blocks) + 1, 2 * LONGEST + 2):
        own, numbers = {BASE: numbers[0]}, numbers[1:]
    numbers = _fitted(numbers, unet) if len(numbers) == 2 * LONGEST + 1 else numbers
    if len(numbers) != len(blocks):
        raise ConfigError("merge.block_count", field=option, found=len(numbers), count=len(blocks) + 1)
    return {**own, **dict(zip(blocks, numbers, strict=True))}


def preset_name(text: str) -> str:
    """A preset as it is called here: supermerger's lists have REVERSE-SMOOTHSTEP and R_SMOOTHSTEP*2."""
    name = text.upper().replace(" ", "")
    if name.startswith("R_"):
        name = f"REVERSE_{name[2:]}"
    return name.replace("REVERSE-", "REVERSE_")


def _fitted(numbers: Sequence[float], unet: Unet) -> tuple[float, ...]:
    """25 numbers for a UNet with fewer blocks: the first ones of each side, as supermerger takes them."""
    middle = LONGEST
    return (*numbers[: unet.side], *numbers[middle : middle + 1 + unet.side])


def _entries(text: str, option: str, unet: Unet) -> dict[str, float]:
    base: dict[str, float] = {}
    rest = []
    for entry in text.split(","):
        name, _, value = (piece.strip() for piece in entry.partition("="))
        if name == BASE:
            base[BASE] = _number(value, option, entry)
        else:
            rest.append(entry)
    found = parse_blocks(",".join(rest), option, unet, signed=True)
    check_range(found.values(), option, text)
    if any(block.startswith("layer") for block in found):
        raise ConfigError("merge.layers", field=option, text=text, rules=Field("rules", "--rule"))
    return base | found


def part_weights(text: str, option: str, family: Family) -> dict[str, float]:
    """'te1=0.3, te2=0' → {part: weight}; `te` is every text encoder. Raises `ConfigError` that names the option."""
    found: dict[str, float] = {}
    for entry in (piece.strip() for piece in text.split(",")):
        if not entry:
            continue
        name, _, value = (piece.strip() for piece in entry.partition("="))
        named = [part for part in family.parts if part == name or (name == "te" and part != "unet")]
        if not named:
            raise ConfigError("merge.parts", field=option, entry=entry, parts=family.parts)
        found |= dict.fromkeys(named, _number(value, option, entry))
    return found


def rules_of(text: str, option: str) -> tuple[Rule, ...]:
    """Lines of `pattern = weight` or `pattern = weight, second weight`; a pattern has wildcards or is /a regular
    expression/ and fits a whole name. Raises `ConfigError` that names the option."""
    rules = []
    for line in (line.strip() for line in text.splitlines()):
        if not line or line.startswith("#"):
            continue
        pattern, _, values = (piece.strip() for piece in line.rpartition("="))
        numbers = [_number(value, option, line) for value in values.split(",")]
        if not pattern or len(numbers) > 2:
            raise ConfigError("merge.rule", field=option, entry=line)
        regular = pattern[1:-1] if len(pattern) > 2 and pattern[0] == pattern[-1] == "/" else fnmatch.translate(pattern)
        try:
            rules.append(Rule(re.compile(regular), numbers[0], numbers[1] if len(numbers) > 1 else None))
        except re.error as error:
            raise ConfigError("merge.expression", field=option, entry=line, reason=error) from error
    return tuple(rules)


def _number(text: str, option: str, entry: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ConfigError("merge.number", field=option, entry=entry.strip()) from None
    check_range([number], option, entry.strip())
    return number


def check_range(numbers: Iterable[float], option: str, text: str) -> None:
    """Raise `ConfigError` naming the option where one is beyond `LARGEST`, or no number (NaN)."""
    if not all(abs(number) <= LARGEST for number in numbers):
        raise ConfigError("merge.range", field=option, entry=text, most=int(LARGEST))
