"""The panel of a job: its state and name, and how far it is. Escaped markup comes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

from lib_trainer.ui.kit.notices import told
from lib_trainer.work.monitor import JobView

STATES = {"queued": "Running", "running": "Running", "finished": "Done", "stopped": "Stopped", "failed": "Failed"}
MISSING = "–"
"""For a number that is not known."""
Telling = Callable[[Any], str]
"""What is made of a sentence."""


def panel(view: JobView | None, look: str, prefix: str, body: str, telling: Telling = told) -> str:
    """A job's head, and `body` below it; `body` alone where there is none. `look`: how the classes begin.

    The page's script reads whether to poll, and which job it is.
    """
    active = "1" if view and view.active else "0"
    job = escape(view.id) if view else ""
    attributes = f'class="{look}-job" data-prefix="{escape(prefix)}" data-active="{active}" data-job="{job}"'
    if view is None:
        return f"<div {attributes}>{body}</div>"
    badge = "Stopping" if view.stopping else STATES[view.state]
    head = (
        f'<div class="{look}-head"><span class="{look}-badge {look}-{view.state}">{badge}</span>'
        f'<span class="{look}-name">{escape(telling(view.name))}</span></div>'
    )
    return f"<div {attributes}>{head}{body}</div>"


def bar(view: JobView, look: str, *, waiting: str = "Starting", before: str = "") -> str:
    """How far it is, with a line of numbers after `before`; `waiting` before the first number, nothing at its end."""
    if not view.active:
        return ""
    phase = view.progress
    if phase is None:
        return f'<div class="{look}-line">{waiting}</div>'
    percent = 100 * phase.done / phase.total if phase.total else 0
    scale, unit = (1 << 20, "MiB") if phase.unit == "bytes" else (1, phase.unit)
    known = f" · {phase.known} known before" if phase.known else ""
    rate = f"{phase.rate / scale:.1f} {unit}/s · " if phase.rate else ""
    name = escape(told(phase.name))
    line = f"{name} {phase.done // scale:,} / {phase.total // scale:,} {unit}{known} · {rate}"
    return (
        f'<div class="{look}-progress" role="progressbar" aria-label="{name}" '
        f'aria-valuenow="{percent:.0f}" aria-valuemin="0" aria-valuemax="100">'
        f'<div class="{look}-fill" style="width: {percent:.2f}%"></div></div>'
        f'<div class="{look}-line">{before}{line}time left {clock(phase.left)}</div>'
    )


def clock(seconds: float | None) -> str:
    """Seconds as m:ss or h:mm:ss."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
