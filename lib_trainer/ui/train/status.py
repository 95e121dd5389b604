"""A run as HTML. Pure functions: a view goes in, escaped markup comes out; `style.css` gives it its looks."""

from __future__ import annotations

from html import escape

from lib_trainer.refusals import Sentence
from lib_trainer.training.rate_answer import rate_text
from lib_trainer.ui.kit.jobs import MISSING, clock
from lib_trainer.ui.kit.notices import told
from lib_trainer.work.events import Phase
from lib_trainer.work.monitor import JobView, RunView

STATES = {
    "queued": "Waiting",
    "running": "Running",
    "finished": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
}
PARTS = {"unet": "UNet", "te1": "text encoder", "te2": "text encoder 2"}


def status_html(view: RunView | None, *, prefix: str, task_id: str | None = None, beside: bool = False) -> str:
    """The status panel. `train.js` reads the data attributes: whether to poll, the host's task, and the time left.
    `beside`: there is something to poll for beside the run.

    That is shown on the host's own bar too: there is one estimate.
    """
    attributes = {
        "class": f"trainer-status trainer-state-{view.state if view else 'idle'}",
        "data-prefix": prefix,
        "data-active": "1" if beside or (view is not None and view.active) else "0",
        "data-task": task_id or "",
        "data-eta": clock(view.eta_seconds) if view is not None and view.active else MISSING,
    }
    opening = " ".join(f'{name}="{escape(value)}"' for name, value in attributes.items())
    body = _run_html(view) if view is not None else _idle_html()
    return f"<div {opening}>{body}</div>"


def progress_html(view: JobView, stopped: str) -> str:
    """How far a job beside the run is, or how it ended; `stopped` where it said nothing of that."""
    if view.failure:
        return f'<div class="trainer-error" role="alert">{escape(told(view.failure))}</div>'
    if not view.active:
        text = told(view.told) if view.told or view.state == "finished" else stopped
        return f'<div class="trainer-rate-told" role="status">{escape(text)}</div>'
    phase = view.progress
    if phase is None:
        return '<div class="trainer-rate-told">Starting</div>'
    count = f" {phase.done}/{phase.total}" if phase.total else ""
    left = f" · {clock(phase.left)} left" if phase.left else ""
    percent = 100 * phase.done / phase.total if phase.total else 0.0
    return (
        f'<div class="trainer-rate-told">{escape(told(phase.name))}{count}{left}</div>'
        f'<div class="trainer-bar" role="progressbar" aria-label="{escape(told(phase.name))}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent:.0f}">'
        f'<div class="trainer-fill" style="width: {percent:.1f}%"></div></div>'
    )


def log_html(view: RunView | None) -> str:
    """The last lines, oldest first."""
    lines = [f"{line.time}  {told(line.told)}" for line in view.lines] if view is not None else []
    lines = lines or [told(Sentence("log.empty"))]
    attributes = 'class="trainer-log" tabindex="0" role="log" aria-label="Log of the run"'
    return f"<pre {attributes}>{escape(chr(10).join(lines))}</pre>"


def speed(steps_per_second: float | None) -> str:
    """Steps per second, or seconds per step where that is the larger number."""
    if not steps_per_second:
        return MISSING
    if steps_per_second >= 1:
        return f"{steps_per_second:.2f} steps/s"
    return f"{1 / steps_per_second:.2f} s/step"


def size(count: int) -> str:
    """Bytes in the unit that reads best."""
    if count <= 0:
        return MISSING
    if count < 2**20:
        return f"{count / 2**10:.0f} KiB"
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def _idle_html() -> str:
    return '<div class="trainer-idle">No run yet. Choose a folder of pictures, give a name and press Start.</div>'


def _run_html(view: RunView) -> str:
    name = f'<span class="trainer-name">{escape(told(view.name) or "unnamed")}</span>'
    badge = f'<span class="trainer-badge">{STATES[view.state]}</span>'
    error = f'<div class="trainer-error" role="alert">{escape(told(view.failure))}</div>' if view.failure else ""
    return (
        f'<div class="trainer-head">{badge}{name}{_phase(view)}</div>{_bar(view)}{error}{_facts(view)}{_output(view)}'
    )


def _phase(view: RunView) -> str:
    if not view.active:
        return ""
    phase = view.progress or Phase(Sentence("phase.queued" if view.state == "queued" else "phase.starting"))
    count = f" {phase.done}/{phase.total}" if phase.total else ""
    percent = f" · {_percent(view):.0f}%" if phase.total or view.step else ""
    text = phase.name
    return f'<span class="trainer-phase">{escape(told(text))}{count}{percent}</span>'


def _bar(view: RunView) -> str:
    phase, percent = _phase_of(view), _percent(view)
    kind = "trainer-bar trainer-bar-phase" if phase else "trainer-bar"
    name = told(phase.name) if phase else "Training steps"
    return (
        f'<div class="{kind}" role="progressbar" aria-label="{escape(name)}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent:.0f}">'
        f'<div class="trainer-fill" style="width: {percent:.2f}%"></div></div>'
    )


def _phase_of(view: RunView) -> Phase | None:
    """The phase before or after the steps that the bar shows, in another colour; None where it shows the steps."""
    return view.progress if view.active and view.progress and view.progress.total else None


def _percent(view: RunView) -> float:
    phase = _phase_of(view)
    done, total = (phase.done, phase.total) if phase else (view.step, view.total_steps)
    return min(100.0, 100 * done / total) if total else 0.0


def _facts(view: RunView) -> str:
    facts = [
        ("Step", f"{view.step:,} / {view.total_steps:,}" if view.total_steps else MISSING),
        ("Epoch", str(view.epoch) if view.step else MISSING),
        ("Time left", clock(view.eta_seconds) if view.active else MISSING),
        ("Elapsed", clock(view.elapsed_seconds)),
        ("Speed", speed(view.steps_per_second)),
        ("Memory, peak", size(view.memory_bytes)),
        ("Loss", MISSING if view.loss is None else f"{view.loss:.4f}"),
        ("Loss, smoothed", f"{view.curve[-1].smoothed:.4f}" if view.curve else MISSING),
    ]
    facts += [(f"Rate, {PARTS.get(part, part)}", rate_text(rate)) for part, rate in view.learning_rates]
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="trainer-facts">{cells}</dl>'


def _output(view: RunView) -> str:
    if view.output is None:
        return ""
    return f'<div class="trainer-output">Saved file <code>{escape(str(view.output))}</code></div>'


def header_html(text: str) -> str:
    """The line on what would be trained."""
    return f'<div class="trainer-host"><span>Checkpoint</span> {escape(text)}</div>'


def caution_html(text: str) -> str:
    """Below it: what is wrong with how the host draws that model; nothing where nothing is."""
    return f'<div class="trainer-caution" role="status">{escape(text)}</div>' if text else ""
