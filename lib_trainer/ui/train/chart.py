"""The loss curve as SVG: needs no script and no network, follows the page's colours, and costs a few kilobytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lib_trainer.refusals import Decimals, Sentence
from lib_trainer.ui.kit.notices import told
from lib_trainer.work.monitor import LossPoint

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 30, 28
MAX_DRAWN = 400
"""More points than this are narrower than a pixel."""


@dataclass(frozen=True)
class Scale:
    """Maps values to places on the picture."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def chart_html(curve: Sequence[LossPoint]) -> str:
    """Raw and smoothed loss over the steps so far: the progress bar shows how many are to come."""
    if len(curve) < 2:
        return '<div class="trainer-chart trainer-chart-empty">' + drawn(Sentence("drawn.no_loss")) + "</div>"
    thinned = _thin(curve)
    x = Scale(0, max(curve[-1].step, 1), LEFT, WIDTH - RIGHT)
    low, high = _range(thinned)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    raw = " ".join(f"{x(p.step):.1f},{min(max(y(p.loss), TOP), HEIGHT - BOTTOM):.1f}" for p in thinned)
    smoothed = " ".join(f"{x(p.step):.1f},{y(p.smoothed):.1f}" for p in thinned)
    last = curve[-1]
    loss, smooth = Decimals(last.loss, 4), Decimals(last.smoothed, 4)
    label = drawn(Sentence("drawn.loss_at", step=last.step, loss=loss, smoothed=smooth))
    return (
        f'<div class="trainer-chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{grid(x, y, HEIGHT)}{_legend()}"
        f'<polyline class="trainer-raw" points="{raw}"/><polyline class="trainer-smoothed" points="{smoothed}"/>'
        f'<circle class="trainer-last" cx="{x(last.step):.1f}" cy="{y(last.smoothed):.1f}" r="3"/></svg></div>'
    )


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between `low` and `high`: multiples of 1, 2 or 5 times a power of ten, about `about` of them."""
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _thin(curve: Sequence[LossPoint]) -> list[LossPoint]:
    stride = math.ceil(len(curve) / MAX_DRAWN)
    thinned = list(curve[::stride])
    return thinned if thinned[-1] is curve[-1] else [*thinned, curve[-1]]


def _range(points: Sequence[LossPoint]) -> tuple[float, float]:
    """What the axis spans: all of the smoothed line and 98% of the raw one, so that one spike does not flatten it."""
    losses = sorted(point.loss for point in points)
    cut = len(losses) // 100
    smoothed = [point.smoothed for point in points]
    low = min(losses[cut], *smoothed)
    high = max(losses[-1 - cut], *smoothed)
    margin = max((high - low) * 0.05, abs(high) * 0.01, 1e-9)  # a constant loss has a range of its own, too
    return max(low - margin, 0.0) if low >= 0 else low - margin, high + margin


def grid(x: Scale, y: Scale, height: int) -> str:
    """Lines and labels of both axes, on a picture of that height."""
    lines = []
    vertical = ticks(y.low, y.high, 5)
    digits = max(0, -math.floor(math.log10(vertical[1] - vertical[0]) + 1e-9)) if len(vertical) > 1 else 4
    for value in vertical:
        place = f"{y(value):.1f}"
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place}" y2="{place}"/>')
        lines.append(
            f'<text x="{LEFT - 6}" y="{place}" dy="0.35em" text-anchor="end">{_tick_text(value, digits)}</text>'
        )
    for value in ticks(x.low, x.high, 6):
        if value == int(value):
            place = f"{x(value):.1f}"
            lines.append(f'<text x="{place}" y="{height - 10}" text-anchor="middle">{int(value):,}</text>')
    return f'<g class="trainer-grid">{"".join(lines)}</g>'


def _tick_text(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if digits <= 5 else f"{value:.1e}"


def drawn(sentence: Sentence) -> str:
    """A label as HTML, in the page's language."""
    return escape(told(sentence))


def _legend() -> str:
    axis, each = drawn(Sentence("drawn.loss")), drawn(Sentence("drawn.each_step"))
    return (
        f'<g class="trainer-legend"><text x="{LEFT}" y="16" class="trainer-axis">{axis}</text>'
        f'<line class="trainer-raw" x1="{WIDTH - 200}" x2="{WIDTH - 180}" y1="12" y2="12"/>'
        f'<text x="{WIDTH - 174}" y="16">{each}</text>'
        f'<line class="trainer-smoothed" x1="{WIDTH - 100}" x2="{WIDTH - 80}" y1="12" y2="12"/>'
        f'<text x="{WIDTH - 74}" y="16">{drawn(Sentence("drawn.smoothed"))}</text></g>'
    )
