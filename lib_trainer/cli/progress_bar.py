"""A run's events as progress bars in a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lib_trainer.refusals import Count, Sentence, printable
from lib_trainer.work import events as ev
from lib_trainer.work.monitor import STEPS, measured

LOG_SECONDS = 15.0
"""Where the output is no terminal, a bar is a line in a log: seldom is enough."""


class ProgressBar:
    """A listener until it is closed: a bar for each phase and one for the steps, warnings above it, all on stderr.

    `answered`: whoever started the job prints what it has told at its end, so that this is silent about it.
    """

    def __init__(self, *, answered: bool = False) -> None:
        self._answered = answered
        self._bar: Any = None
        self._name: Sentence | str = ""
        self._grid: Path | None = None

    def __call__(self, event: ev.Event) -> None:
        match event:
            case ev.Phase(name, done, total):
                self._move(name, done, total, "")
            case ev.Started():
                parts = [Sentence("log.part_in", part=part, count=count) for part, count in event.modules.items()]
                self._say(Sentence("log.started_adapters", count=Count(event.trained_parameters), parts=parts))
            case ev.StepDone():
                self._move(STEPS, event.step, event.total_steps, f"loss={event.loss:.4f}, epoch={event.epoch}")
            case ev.Measured():
                self._say(measured(event))
            case ev.PreviewMade(step, _, prompt):
                self._say(Sentence("log.preview_of", step=step, prompt=prompt))
            case ev.PreviewGrid(_, path):
                if path != self._grid:
                    self._say(Sentence("log.grid", path=path))
                self._grid = path
            case ev.Saved(step, path, final):
                if not final:
                    self._say(Sentence("log.saved", step=step, path=path))
            case ev.Message(text, level):
                self._say(text if level == "info" else Sentence("log.warning_line", text=text))
            case ev.Finished() | ev.Failed():
                self.close()
                if isinstance(event, ev.Finished) and not self._answered:
                    for line in (*event.notes, *([event.told] if event.told else [])):
                        self._say(line)

    def _move(self, name: Sentence | str, done: int, total: int, note: str) -> None:
        if name != self._name:
            self.close()
            self._name = name
            if total:
                seconds = 0.1 if sys.stderr.isatty() else LOG_SECONDS
                self._bar = tqdm(total=total, desc=str(name), file=sys.stderr, mininterval=seconds, dynamic_ncols=True)
            else:
                self._say(name)
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)

    def _say(self, line: str | Sentence) -> None:
        tqdm.write(printable(str(line)), file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._name = None, ""
