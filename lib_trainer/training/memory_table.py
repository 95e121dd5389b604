"""A family's model as far as memory is concerned: its layers, and what steps on it were measured to take.

`bench/memory.py` makes a table, on tensors without contents; `forecast` reckons with it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import msgspec

from lib_trainer.families.family import Family, Part
from lib_trainer.families.known import DEFAULT, FAMILIES
from lib_trainer.ports import Group

TABLES = Path(__file__).with_name("memory_tables")
FULL = 4
"""Bytes of a fp32 number."""


class Layer(msgspec.Struct, frozen=True):
    """Layers that are alike: `kernel` 0 is a Linear; `share` is how many vectors one gives for each latent cell."""

    part: Part
    group: Group
    block: str
    inner: int
    out: int
    kernel: int
    stride: int
    share: float
    count: int = 1


class Weights(msgspec.Struct, frozen=True):
    """Numbers of a part: in Linear and convolution layers, and in all others."""

    products: int
    others: int

    @property
    def all(self) -> int:
        return self.products + self.others


class Work(msgspec.Struct, frozen=True):
    """Bytes that a step takes at its peak: `fixed`; for each byte that learns; for each cell of the batch's latents; of
    a text encoder that learns, or of what reads captions, for each chunk of a caption; of a hypernetwork for each cell
    and width (`wide`) and each chunk and width (`told`); and `least` for each byte that learns, where gradients alone
    decide."""

    fixed: float = 0.0
    learned: float = 0.0
    cell: float = 0.0
    text: float = 0.0
    wide: float = 0.0
    told: float = 0.0
    least: float = 0.0


class Table(msgspec.Struct, frozen=True):
    """A family's model as far as memory is concerned. `steps` is by `work_key`, `quiet` by what is done: encode, decode
    (by cells, of one picture) and sample (of two, for guidance), all in fp32."""

    layers: list[Layer]
    weights: dict[str, Weights]
    attention_sizes: list[int]
    text_width: int
    steps: dict[str, Work]
    quiet: dict[str, Work]
    of: str = DEFAULT.memory

    @property
    def family(self) -> Family:
        return next(family for family in FAMILIES if family.memory == self.of)


@functools.cache
def tables() -> Mapping[str, Table]:
    """By the name of their file."""
    return {path.stem: read_table(path) for path in sorted(TABLES.glob("*.json"))}


def read_table(path: Path) -> Table:
    return msgspec.json.decode(path.read_bytes(), type=Table)


UNLIKE = {"unet": 0.01}
"""Share of a part's numbers that may be missing or too many; of others `UNREAD`."""
UNREAD = 0.05
"""Hosts may hold a text encoder without its last layer, which the UNet does not read: 1 of 24 in SD 2.x."""


def table_for(counts: Mapping[str, int]) -> Table | None:
    """The table of the model that has so many numbers in each part; None for one that is not known."""

    def alike(part: str, count: int, table: Table) -> bool:
        own = table.weights[part].all if part in table.weights else 0
        return abs(count - own) < UNLIKE.get(part, UNREAD) * count

    every = tables().values() if "unet" in counts else ()
    return next((table for table in every if all(alike(part, own, table) for part, own in counts.items())), None)
