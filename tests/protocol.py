"""The event protocol as a grammar: what every stream of events obeys, a real job's and a stand-in's alike."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lib_trainer.work import events as ev

LETTERS: dict[type, str] = {
    ev.Phase: "p", ev.Message: "m", ev.Started: "S", ev.StepDone: "s", ev.Measured: "h", ev.PreviewMade: "v",
    ev.PreviewGrid: "g",
    ev.Saved: "f", ev.Finished: "E", ev.Failed: "X", ev.Found: "r",
}  # fmt: skip
TRAINING = re.compile(r"[pm]*(S[pmvgh]*(s[pmvgfh]*)*)?[EX]")
"""Before `Started` nothing is drawn, and until the first step nothing is saved."""
OTHER = re.compile(r"[pmr]*[EX]")


def check(events: Sequence[ev.Event], *, training: bool = True) -> None:
    """Raises `AssertionError` naming what a stream gets wrong."""
    text = "".join(LETTERS[type(event)] for event in events)
    grammar = TRAINING if training else OTHER
    assert grammar.fullmatch(text), f"no stream of events: {text}"
    _phases(events)
    if training:
        _steps(events)
        _files(events)


def _phases(events: Sequence[ev.Event]) -> None:
    before: ev.Phase | None = None
    for event in events:
        if not isinstance(event, ev.Phase):
            continue
        assert event.name and (0 <= event.done <= event.total or event.total == 0), event
        assert 0 <= event.known <= max(event.done, 0) and event.rate >= 0 and (event.left is None or event.left >= 0)
        if before is not None and before.name == event.name:
            assert (event.total, event.unit) == (before.total, before.unit) and event.done >= before.done, event
        before = event


def _steps(events: Sequence[ev.Event]) -> None:
    """Steps are counted from 1 by one, of the total that was announced; what is drawn or saved is of the last one."""
    total = step = 0
    for event in events:
        match event:
            case ev.Started():
                total = event.total_steps
                assert total > 0 and event.trained_parameters > 0
            case ev.StepDone():
                step += 1
                assert (event.step, event.total_steps) == (step, total) and event.epoch >= 1, event
            case ev.Measured() | ev.PreviewMade() | ev.PreviewGrid() | ev.Saved():
                assert event.step == step, event
            case ev.Finished():
                assert event.step == step, event
                undone = step < total or total == 0
                assert event.stopped == (undone and not event.told), "who is not stopped has done all, or says why not"


def _files(events: Sequence[ev.Event]) -> None:
    """The final file is written once, as the last, and the end names it."""
    saved = [event for event in events if isinstance(event, ev.Saved)]
    assert [event.final for event in saved[:-1]] == [False] * len(saved[:-1])
    match events[-1]:
        case ev.Finished(step, path, _):
            assert (path is not None) == (step > 0)
            assert path is None or (saved and saved[-1].final and saved[-1].path == path), events[-1]
        case ev.Failed(error, _):
            assert error
