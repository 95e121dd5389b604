"""The course of the held-out loss below the loss of the steps: its changes are too small for the same axis."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lib_trainer.refusals import Decimals, Sentence
from lib_trainer.ui.kit.notices import told
from lib_trainer.ui.train.chart import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Scale, drawn, grid
from lib_trainer.work.monitor import HeldOutPoint, RunView

HEIGHT = 180


def held_out_html(points: Sequence[HeldOutPoint], last_step: int, best_step: int | None) -> str:
    """Held-out loss and that of trained pictures by step, with the one of `best_step` marked, whose file is kept; empty
    before two measurements.

    `last_step` is where the axis ends, as in the chart above.
    """
    if len(points) < 2:
        return ""
    values = [value for point in points for value in (point.held_out, point.trained) if value is not None]
    margin = max((max(values) - min(values)) * 0.08, max(values) * 0.001, 1e-9)
    x = Scale(0, max(last_step, points[-1].step, 1), LEFT, WIDTH - RIGHT)
    y = Scale(min(values) - margin, max(values) + margin, HEIGHT - BOTTOM, TOP)
    trained = [(point.step, point.trained) for point in points if point.trained is not None]
    held = [(point.step, point.held_out) for point in points]
    label, mark = Sentence("drawn.held_out_at", step=held[-1][0], loss=Decimals(held[-1][1], 4)), ""
    for step, lowest in (one for one in held if one[0] == best_step):
        label = Sentence("drawn.held_out_lowest", last=label, step=step, loss=Decimals(lowest, 4))
        mark = f'<circle class="trainer-best" cx="{x(step):.1f}" cy="{y(lowest):.1f}" r="4"/>'
    lines = f'<polyline class="trainer-held-out" points="{_places(held, x, y)}"/>'
    if len(trained) > 1:
        lines = f'<polyline class="trainer-measured" points="{_places(trained, x, y)}"/>{lines}'
    return (
        f'<div class="trainer-chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{drawn(label)}">'
        f"{grid(x, y, HEIGHT)}{_legend(trained=len(trained) > 1)}{lines}{mark}</svg></div>"
    )


def advice_html(view: RunView) -> str:
    """What the course says of a run that has ended, below it."""
    lines = "".join(f"<p>{escape(told(note))}</p>" for note in view.notes)
    return f'<div class="trainer-advice" role="status">{lines}</div>' if lines else ""


def _places(points: Sequence[tuple[int, float]], x: Scale, y: Scale) -> str:
    return " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)


def _legend(*, trained: bool) -> str:
    axis = drawn(Sentence("drawn.held_out"))
    own = (
        f'<line class="trainer-measured" x1="{WIDTH - 280}" x2="{WIDTH - 260}" y1="12" y2="12"/>'
        f'<text x="{WIDTH - 254}" y="16">{drawn(Sentence("drawn.trained_pictures"))}</text>'
    )
    return (
        f'<g class="trainer-legend"><text x="{LEFT}" y="16" class="trainer-axis">{axis}</text>'
        f"{own if trained else ''}"
        f'<line class="trainer-held-out" x1="{WIDTH - 140}" x2="{WIDTH - 120}" y1="12" y2="12"/>'
        f'<text x="{WIDTH - 114}" y="16">{drawn(Sentence("drawn.held_out_pictures"))}</text></g>'
    )
