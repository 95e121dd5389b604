"""How a network is to be run in so much memory: pure arithmetic, no tensor is touched.

Peaks are counted in elements while the steps are walked through as the executor walks through them; the time is told
by multiply-adds. HW below stands for the pixels of the larger side, which is the picture.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib_trainer.tiling.network import Attention, Down, Network, Out, Plain, Residual, Step, Up

MIN_BAND = 1 << 20
"""Elements: below that the calls cost more than the work in them."""
BAND_SHARE = 32
"""A band of any map holds as many elements as this part of the widest map as large as the picture."""
HALVINGS = 5
UNTILED_COPIES = 4
"""Of its input, that a residual block makes at its widest: itself, normed, activated, and the kernel's own."""


class Tier(enum.Enum):
    """From the fastest to the smallest."""

    RESIDENT = "resident"
    """Every map is kept on the device: about 300·HW elements."""
    RECOMPUTE = "recompute"
    """The maps as large as the picture are computed twice instead of kept: about 200·HW."""
    HOST = "host"
    """Every map is kept in the computer's memory and only its bands are on the device."""


@dataclass(frozen=True)
class Plan:
    """`elements` bounds a band; `height` is the picture's; `window` the latent rows that attention sees on each side.

    `rows`, where given, fixes the height of every band instead. `window` None is exact attention over everything.
    """

    tier: Tier
    elements: int
    height: int
    macs: int = 0
    device_bytes: int = 0
    host_bytes: int = 0
    traffic_bytes: int = 0
    window: int | None = None
    rows: int | None = None

    def bands(self, row_elements: int, height: int) -> list[tuple[int, int]]:
        """(first, last) of each band of a map with that many elements a row: equal, and of even height if possible."""
        wanted = self.rows if self.rows is not None else max(1, self.elements // max(row_elements, 1))
        count = -(-height // min(wanted, height))
        step = -(-height // count)
        if self.rows is not None:
            step = min(wanted, height)
        elif step % 2 and 1 < step < height:
            step += 1 if step < wanted else -1
        return [(first, min(first + step, height)) for first in range(0, height, step)]

    def recomputes(self, height: int) -> bool:
        """Whether the branch of a residual block on a map of that height is computed twice."""
        return self.tier is Tier.RECOMPUTE and height == self.height

    def describe(self) -> str:
        where = f" and {self.host_bytes / 2**30:.1f} GiB of the computer's" if self.host_bytes else ""
        return f"{self.tier.value}, about {self.device_bytes / 2**30:.1f} GiB{where}"


@dataclass
class _Walk:
    """The map that the steps have come to, and the most that was needed so far."""

    batch: int
    channels: int
    height: int
    width: int
    plan: Plan
    macs: int = 0
    kept: int = 0
    work: int = 0
    moved: int = 0
    tokens: int = 0
    """Elements of attention's keys and values, which are on the device in every tier."""
    pending: int = 0
    """Elements of the map under an upsampling that is not kept."""
    taps: int = 4
    """Of the convolution behind an upsampling, for one output pixel."""

    @property
    def pixels(self) -> int:
        return self.batch * self.height * self.width

    @property
    def map(self) -> int:
        return self.pixels * self.channels

    def hold(self, elements: int) -> None:
        self.kept = max(self.kept, elements)

    def move(self, elements: int) -> None:
        self.moved += elements

    def band(self, inputs: int, outputs: int, copies: int = 1) -> None:
        """Working memory of a convolution of one band: window, result, the kernel's own copies of both."""
        row = self.batch * outputs * self.width
        first, last = self.plan.bands(row, self.height)[0]
        window = self.batch * inputs * (last - first + 2) * (self.width + 2)
        self.work = max(self.work, copies * (2 * window + 2 * row * (last - first)) + row * (last - first))


def predict(network: Network, shape: Sequence[int], plan: Plan, itemsize: int) -> Plan:
    """`plan` with its cost for an input (B, C, H, W) whose maps have `itemsize` bytes an element."""
    batch, channels, height, width = shape
    walk = _Walk(batch, channels, height, width, plan, taps=taps(itemsize))
    for step, after in _pairs(network.steps):
        _WALKERS[type(step)](walk, step, after)
    b, c, h, w = network.output_shape(tuple(shape))
    ends = b * c * h * w + batch * channels * height * width
    on_host = plan.tier is Tier.HOST
    resident = walk.tokens + 2 * walk.work if on_host else max(walk.kept, 2 * walk.tokens) + walk.work
    return replace(
        plan,
        macs=walk.macs,
        device_bytes=itemsize * (resident + ends),
        host_bytes=itemsize * walk.kept if on_host else 0,
        traffic_bytes=itemsize * walk.moved if on_host else 0,
    )


def taps(itemsize: int) -> int:
    """Products for one pixel of a doubled map and one channel: 4 by phases in fp32, 9 in half precision."""
    return 4 if itemsize >= 4 else 9


def _pairs(steps: Sequence[Step]) -> Iterator[tuple[Step, Step | None]]:
    for number, step in enumerate(steps):
        yield step, steps[number + 1] if number + 1 < len(steps) else None


def _plain(walk: _Walk, step: Plain, after: Step | None) -> None:
    walk.macs += walk.pixels * step.conv.macs
    walk.channels = step.conv.out
    walk.hold(walk.map)
    walk.band(step.conv.inputs, step.conv.out)
    walk.move(walk.map)


def _residual(walk: _Walk, step: Residual, after: Step | None) -> None:
    before, saving = walk.map, walk.plan.recomputes(walk.height)
    hidden, out = walk.pixels * step.conv1.out, walk.pixels * step.conv2.out
    walk.macs += walk.pixels * (step.conv1.macs + step.conv2.macs)
    walk.band(step.conv1.inputs, step.conv1.out)
    if step.shortcut is not None:
        walk.macs += walk.pixels * (
            step.shortcut.macs if not walk.pending else walk.taps * step.shortcut.out * step.conv1.inputs
        )
    if walk.pending:
        walk.macs += walk.pixels * walk.taps * step.conv1.inputs**2  # the upsampled map once more, for conv1
        walk.hold(walk.pending + max(hidden, out))
        walk.band(step.conv1.inputs, step.conv1.inputs, 2)
    elif step.shortcut is not None:
        walk.hold(max(before, hidden + out) if not saving else before + hidden)
    elif saving:
        walk.macs += walk.pixels * step.conv1.macs
        walk.hold(before)
        walk.band(step.conv1.inputs, step.conv1.out, 2)
    else:
        walk.hold(before + hidden)
    walk.move(2 * before + 2 * hidden + out)
    walk.channels, walk.pending = step.conv2.out, 0


def _attention(walk: _Walk, step: Attention, after: Step | None) -> None:
    tokens, channels = walk.height * walk.width, walk.channels
    seen = tokens
    if walk.plan.window is not None:
        first, last = walk.plan.bands(walk.batch * channels * walk.width, walk.height)[0]
        seen = min(walk.height, 2 * walk.plan.window + last - first) * walk.width
    walk.macs += walk.batch * (4 * tokens * channels**2 + 2 * tokens * seen * channels)
    walk.hold(2 * walk.map)
    walk.tokens = max(walk.tokens, 2 * walk.map)
    walk.band(channels, channels)
    walk.move(3 * walk.map)


def _up(walk: _Walk, step: Up, after: Step | None) -> None:
    below = walk.map
    walk.height, walk.width = 2 * walk.height, 2 * walk.width
    walk.channels = step.conv.out
    walk.macs += walk.pixels * walk.taps * step.conv.out * step.conv.inputs
    walk.band(step.conv.inputs, step.conv.out)
    changes = isinstance(after, Residual) and after.shortcut is not None
    if walk.plan.recomputes(walk.height) and changes:
        walk.pending = below
        walk.hold(below)
    else:
        walk.hold(max(below, walk.map))
        walk.move(below + walk.map)


def _down(walk: _Walk, step: Down, after: Step | None) -> None:
    before = walk.map
    walk.height, walk.width, walk.channels = walk.height // 2, walk.width // 2, step.conv.out
    walk.macs += walk.pixels * step.conv.macs
    walk.hold(before)
    walk.band(4 * step.conv.inputs, step.conv.out)
    walk.move(before + walk.map)


def _out(walk: _Walk, step: Out, after: Step | None) -> None:
    walk.macs += walk.pixels * step.conv.macs
    walk.hold(walk.map)
    walk.band(step.conv.inputs, step.conv.inputs)
    walk.move(walk.map)


_WALKERS: dict[type, Callable[[_Walk, Any, Step | None], None]] = {
    Plain: _plain,
    Residual: _residual,
    Attention: _attention,
    Up: _up,
    Down: _down,
    Out: _out,
}
