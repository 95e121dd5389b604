"""What a person sees of a job: the event stream folded into one snapshot.

Pages poll `Monitor.view`, so that closing and reopening one loses nothing, and any number may watch. A monitor keeps a
bounded amount however long the job is: the loss curve is thinned, previews and log lines are the last ones.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from lib_trainer.dataset.folder import Skipped
from lib_trainer.refusals import Count, Decimals, Sentence, printable
from lib_trainer.work import events as ev

State = Literal["queued", "running", "finished", "stopped", "failed"]
CURVE_POINTS = 1000
LOG_LINES = 200
PREVIEWS = 24
SMOOTHING = 0.02
"""Weight of a new loss in the smoothed line, once enough have been seen: a memory of about fifty steps."""

STEPS = Sentence("phase.training")
"""What the phase of the steps themselves is called."""


@dataclass(frozen=True)
class LogLine:
    """What was told, and when (hours, minutes and seconds)."""

    time: str
    told: Sentence | str


@dataclass(frozen=True)
class LossPoint:
    """`smoothed` is the bias-corrected exponential mean of the losses up to `step`."""

    step: int
    loss: float
    smoothed: float


@dataclass(frozen=True)
class HeldOutPoint:
    """Losses of pictures that are measured with noise that is always the same; `trained` is None where those to learn
    are not measured."""

    step: int
    held_out: float
    trained: float | None = None


@dataclass(frozen=True)
class Preview:
    """`number` counts the previews of a run from 1, also those that are no longer kept; `column` is which of `columns`
    prompts it is of."""

    step: int
    image: Image.Image
    prompt: str
    number: int = 0
    column: int = 1
    columns: int = 1


@dataclass(frozen=True)
class JobView:
    """A snapshot of a job, plain data.

    `id` tells it from every other, also after a restart, and `revision` counts what was folded in: a watcher that has
    seen both need not be told again. `kind`: "training", "tagging", … `stopping`: it was told to stop and has not yet.
    `told`: the sentence about its end, `notes`: what else deserves a word. `output`: the last file it has saved.
    `result`: what it has found out by now.
    """

    name: Sentence | str
    state: State
    id: str = ""
    kind: str = ""
    revision: int = 0
    stopping: bool = False
    progress: ev.Phase | None = None
    elapsed_seconds: float = 0.0
    output: Path | None = None
    told: Sentence | str = ""
    failure: Sentence | str = ""
    notes: tuple[Sentence | str, ...] = ()
    left_out: tuple[Skipped, ...] = ()
    lines: tuple[LogLine, ...] = ()
    result: object = None

    @property
    def error(self) -> str:
        """Why it failed, as a terminal says it; empty if it did not."""
        return str(self.failure)

    @property
    def log(self) -> tuple[str, ...]:
        """The last lines, as a terminal says them."""
        return tuple(f"{line.time}  {printable(str(line.told))}" for line in self.lines)

    @property
    def active(self) -> bool:
        return self.state in ("queued", "running")


@dataclass(frozen=True)
class RunView(JobView):
    """A snapshot of a training run. `eta_seconds` and `steps_per_second` are None until they are known. `best_step` is
    that of the lowest held-out loss, None where it was measured before a run that goes on."""

    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    loss: float | None = None
    learning_rates: tuple[tuple[str, float], ...] = ()
    steps_per_second: float | None = None
    eta_seconds: float | None = None
    memory_bytes: int = 0
    trained_parameters: int = 0
    curve: tuple[LossPoint, ...] = ()
    previews: tuple[Preview, ...] = ()
    grid: Path | None = None
    """All previews as one picture."""
    grids: int = 0
    """How often that has grown."""
    held_out: tuple[HeldOutPoint, ...] = ()
    best_step: int | None = None


class Monitor:
    """A listener that keeps the view; safe to read from other threads. What comes after the end is left out."""

    _view: JobView

    def __init__(self, name: Sentence | str, kind: str = "", id: str = "") -> None:
        self._lock = threading.RLock()  # a signal's handler stops a job while its thread may be looking at it
        self._view = self._first(name, kind, id)
        self._created = time.monotonic()
        self._ended: float | None = None
        self._log: deque[LogLine] = deque(maxlen=LOG_LINES)

    def _first(self, name: Sentence | str, kind: str, id: str) -> JobView:
        return JobView(name, "queued", id, kind)

    @property
    def ended(self) -> bool:
        return self._ended is not None

    def view(self) -> JobView:
        with self._lock:
            return self._snapshot()

    def _snapshot(self) -> JobView:
        end = self._ended if self._ended is not None else time.monotonic()
        return replace(self._view, elapsed_seconds=end - self._created, lines=tuple(self._log))

    def stopping(self) -> None:
        """Note that the job was told to stop."""
        with self._lock:
            if not self._view.stopping and not self.ended:
                self._set(stopping=True, revision=self._view.revision + 1)

    def __call__(self, event: ev.Event) -> None:
        with self._lock:
            if not self.ended:
                self._fold(event)
                self._set(revision=self._view.revision + 1)

    def _fold(self, event: ev.Event) -> None:
        match event:
            case ev.Phase():
                if self._view.progress is None or event.name != self._view.progress.name:
                    self._say(event.name)
                self._set(state="running", progress=event, left_out=event.left_out or self._view.left_out)
            case ev.Message(text, level):
                self._say(text if level == "info" else Sentence("log.warning", text=text))
            case ev.Found(result):
                self._set(result=result)
            case ev.Finished():
                self._end("stopped" if event.stopped else "finished", event.path, "")
                self._set(told=event.told, notes=event.notes, left_out=event.left_out)
                self._say(event.told or Sentence("log.stopped" if event.stopped else "log.finished"))
            case ev.Failed(error, path):
                self._end("failed", path, error)
                self._say(Sentence("log.error", error=error))

    def _end(self, state: State, path: Path | None, failure: Sentence | str) -> None:
        self._ended = time.monotonic()
        output = path if path is not None else self._view.output
        self._set(state=state, failure=failure, stopping=False, output=output)

    def _set(self, **changes: object) -> None:
        self._view = replace(self._view, **changes)  # type: ignore[arg-type]

    def _say(self, line: str | Sentence) -> None:
        self._log.append(LogLine(time.strftime("%H:%M:%S"), line))


class RunMonitor(Monitor):
    """As `Monitor`, with the steps, losses and previews of a training run."""

    _view: RunView

    def __init__(self, name: Sentence | str, kind: str = "training", id: str = "") -> None:
        super().__init__(name, kind, id)
        self._curve: list[LossPoint] = []
        self._last: LossPoint | None = None
        self._held_out: list[HeldOutPoint] = []
        self._stride = 1
        self._mean = 0.0
        self._weight = 0.0
        self._previews: deque[Preview] = deque(maxlen=PREVIEWS)
        self._previews_made = 0
        self._seconds: deque[float] = deque(maxlen=50)

    def _first(self, name: Sentence | str, kind: str, id: str) -> RunView:
        return RunView(name, "queued", id, kind)

    def view(self) -> RunView:
        with self._lock:
            tail = () if self._last is None or self._curve[-1:] == [self._last] else (self._last,)
            view = self._snapshot()
            assert isinstance(view, RunView)
            curve, held_out = (*self._curve, *tail), tuple(self._held_out)
            return replace(view, curve=curve, previews=tuple(self._previews), held_out=held_out)

    def _fold(self, event: ev.Event) -> None:
        match event:
            case ev.Started():
                parts = [Sentence("log.part", part=part, count=count) for part, count in event.modules.items()]
                self._set(
                    state="running",
                    progress=ev.Phase(STEPS),
                    total_steps=event.total_steps,
                    trained_parameters=event.trained_parameters,
                )
                self._say(Sentence("log.started", count=Count(event.trained_parameters), parts=parts))
            case ev.StepDone():
                self._step(event)
            case ev.Measured():
                self._measured(event)
            case ev.PreviewMade():
                self._previews_made += 1
                number, count = event.number, event.count
                self._previews.append(
                    Preview(event.step, event.image, event.prompt, self._previews_made, number, count)
                )
                self._say(previewed(event))
            case ev.PreviewGrid(_, path):
                if path != self._view.grid:
                    self._say(Sentence("log.grid", path=path))
                self._set(grid=path, grids=self._view.grids + 1)
            case ev.Saved(step, path, _):
                self._set(output=path)
                self._say(Sentence("log.saved", step=step, path=path))
            case ev.Finished(step, path, stopped):
                self._end("stopped" if stopped else "finished", path, "")
                self._set(told=event.told, notes=event.notes)
                for note in event.notes:
                    self._say(note)
                self._say(event.told or Sentence("log.stopped_at" if stopped else "log.finished_at", step=step))
            case _:
                super()._fold(event)

    def _measured(self, event: ev.Measured) -> None:
        if len(self._held_out) >= CURVE_POINTS:  # the first, every other one, and the best
            best = self._view.best_step
            self._held_out = [one for n, one in enumerate(self._held_out) if n % 2 == 0 or one.step == best]
        self._held_out.append(HeldOutPoint(event.step, event.held_out, event.trained))
        if event.best:
            self._set(best_step=event.step)
        self._say(measured(event))

    def _end(self, state: State, path: Path | None, failure: Sentence | str) -> None:
        super()._end(state, path, failure)
        self._set(eta_seconds=None)

    def _step(self, event: ev.StepDone) -> None:
        self._plot(event)
        self._seconds.append(event.seconds)
        rate = len(self._seconds) / max(sum(self._seconds), 1e-9)
        self._set(
            progress=ev.Phase(STEPS),
            step=event.step,
            total_steps=event.total_steps,
            epoch=event.epoch,
            loss=event.loss,
            learning_rates=tuple(event.learning_rates.items()),
            memory_bytes=max(event.memory_bytes, self._view.memory_bytes),
            steps_per_second=rate,
            eta_seconds=max(event.total_steps - event.step, 0) / rate,
        )

    def _plot(self, event: ev.StepDone) -> None:
        """Add to the curve. Every step moves the smoothed line, but only one in `_stride` is kept as a point."""
        if not math.isfinite(event.loss):
            return  # one NaN would stay in the mean for ever; the run ends with an error of its own
        self._weight += SMOOTHING * (1 - self._weight)
        self._mean += SMOOTHING * (event.loss - self._mean)
        self._last = LossPoint(event.step, event.loss, self._mean / self._weight)
        if not self._curve or event.step % self._stride == 0:
            self._curve.append(self._last)
        if len(self._curve) >= CURVE_POINTS:
            self._stride *= 2
            first, *rest = self._curve
            self._curve = [first, *(point for point in rest if point.step % self._stride == 0)]


def previewed(event: ev.PreviewMade) -> Sentence:
    """A preview as a line of the log."""
    if event.count == 1:
        return Sentence("log.preview", step=event.step)
    return Sentence("log.preview_number", step=event.step, number=event.number, count=event.count)


def measured(event: ev.Measured) -> Sentence:
    """A measurement as a line of the log."""
    held_out, step = Decimals(event.held_out, 4), event.step
    if event.trained is None:
        return Sentence("log.measured_best" if event.best else "log.measured", step=step, held_out=held_out)
    return Sentence(
        "log.measured_both_best" if event.best else "log.measured_both",
        step=step,
        held_out=held_out,
        trained=Decimals(event.trained, 4),
    )
