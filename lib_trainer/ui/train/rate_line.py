"""A search for a learning rate as HTML: how far it is, the rates that were tried, and what came out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from lib_trainer.refusals import Field, Sentence
from lib_trainer.training.finder import Report
from lib_trainer.training.rate_answer import Tried, rate_text
from lib_trainer.ui.kit.notices import told
from lib_trainer.ui.train.chart import ticks
from lib_trainer.ui.train.status import progress_html
from lib_trainer.work.monitor import JobView

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 170, 44, 12, 26, 26
LEAST_GAIN = -0.5
"""What lies lower is drawn at the edge: a rate that is far too high would flatten all others."""


def rate_html(view: JobView | None) -> str:
    """Empty before the first search."""
    if view is None:
        return ""
    report = view.result if isinstance(view.result, Report) else None
    chart = _chart(report) if report is not None and len(report.tried) > 1 else ""
    line = progress_html(view, "Stopped: there is no answer.")
    return f'<div class="trainer-rate" data-state="{view.state}">{line}{chart}{_notes(view)}</div>'


def rates_found(view: JobView | None) -> dict[str, float]:
    """{option: rate} of the middle of the range that a search has found; empty where there is none."""
    report = view.result if view is not None else None
    return report.at(report.range.middle) if isinstance(report, Report) and report.range is not None else {}


def _notes(view: JobView) -> str:
    return "".join(f'<div class="trainer-rate-note">{escape(told(note))}</div>' for note in view.notes)


def _chart(report: Report) -> str:
    """By how much the error fell at each rate, a line for each length of the runs; the range is shaded."""
    option, rate = next(iter(report.rates.items()))
    shown = [one for one in report.tried if one.gain is not None]
    if not shown:
        return ""
    places = [math.log10(rate * one.factor) for one in report.tried]
    low, high = min(places) - 0.1, max(places) + 0.1
    top = max(0.05, *(one.gain or 0.0 for one in shown)) * 1.15
    bottom = min(-0.05, max(LEAST_GAIN, min(one.gain or 0.0 for one in shown))) * 1.1

    def x(place: float) -> float:
        return LEFT + (place - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(gain: float) -> float:
        return HEIGHT - BOTTOM - (min(max(gain, bottom), top) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    lengths = sorted({one.steps for one in shown})
    lines = "".join(
        _line_of(
            [one for one in shown if one.steps == steps], rate, x, y, "smoothed" if steps == lengths[-1] else "raw"
        )
        for steps in lengths
    )
    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        f'<text x="{LEFT - 4}" y="{y(value):.1f}" dy="0.35em" text-anchor="end">{_signed(value)}</text>'
        for value in ticks(bottom, top, 4)
    ) + "".join(
        f'<text x="{x(place):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{rate_text(10.0**place)}</text>'
        for place in range(math.ceil(low), math.floor(high) + 1)
    )
    label = told(Sentence("drawn.error_fell", option=Field(option)))
    return (
        f'<div class="trainer-chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'{_range(report, rate, x)}<g class="trainer-grid">{grid}</g>'
        f'<g class="trainer-legend"><text x="{LEFT}" y="14" class="trainer-axis">{escape(label)}</text></g>{lines}'
        "</svg></div>"
    )


def _signed(share: float) -> str:
    return f"{share:+.0%}" if share else "0%"


Place = Callable[[float], float]


def _line_of(own: Sequence[Tried], rate: float, x: Place, y: Place, kind: str) -> str:
    """Points with their standard errors, and a line through them."""
    placed = [(x(math.log10(rate * one.factor)), one.gain or 0.0, one.error) for one in own]
    points = " ".join(f"{place:.1f},{y(gain):.1f}" for place, gain, _ in placed)
    bars = "".join(
        f'<line class="trainer-{kind}" x1="{place:.1f}" x2="{place:.1f}" y1="{y(gain - error):.1f}" '
        f'y2="{y(gain + error):.1f}"/>'
        for place, gain, error in placed
        if math.isfinite(error)
    )
    return f'<polyline class="trainer-{kind}" points="{points}"/>{bars}'


def _range(report: Report, rate: float, x: Place) -> str:
    if report.range is None:
        return ""
    first, middle, last = (
        min(max(x(math.log10(rate * one)), LEFT), WIDTH - RIGHT)
        for one in (report.range.low, report.range.middle, report.range.high)
    )
    return (
        f'<rect class="trainer-rate-range" x="{first:.1f}" width="{last - first:.1f}" y="{TOP}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/>'
        f'<line class="trainer-last" x1="{middle:.1f}" x2="{middle:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    )
