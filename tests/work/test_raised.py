"""An error that was kept for later and then raised holds the frames that it went through: nothing of these may hold it
in turn, or a run's memory would wait for the collector."""

from __future__ import annotations

import contextlib
import gc
import io
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_trainer.kinds import slots
from lib_trainer.refusals import ModelError, Problems
from lib_trainer.toolbox.behind import Behind
from lib_trainer.training import run, steps_grid
from lib_trainer.training.ahead import ahead
from lib_trainer.work.control import Control


def fail(*_: object, **more: object) -> Any:
    raise ModelError("toolbox.stopped")


def ignore(*_: object) -> None:
    pass


def of_slots() -> None:
    slot: Any = SimpleNamespace(give_back=fail, compact=ignore, short=False)
    slots.give_back([slot], clear=False)


def of_a_grid() -> None:
    host: Any = SimpleNamespace(lease=fail, device=lambda: torch.device("cpu"))
    steps_grid.draw_steps_grid(steps_grid.StepsGrid((), (), (), (), Path("x"), "x"), host, Control(), ignore)


def of_a_run() -> None:
    plan: Any = SimpleNamespace(warnings=(), cautions=(), notes=(), scan=SimpleNamespace(skipped=(), notes=()))
    host: Any = SimpleNamespace(lease=lambda *given, **more: contextlib.nullcontext())
    run.run_plan(plan, host, Control(), ignore, title="x")


def of_what_is_made_ahead() -> None:
    def items() -> Iterator[int]:
        yield 1
        fail()

    with ahead(items()) as made:
        list(made)


def of_what_is_written_behind() -> None:
    file = io.BytesIO()
    file.write = fail  # type: ignore[method-assign, assignment]
    with Behind(file) as written:
        written.write(torch.zeros(4), torch.float32)


def of_problems() -> None:
    problems = Problems()
    with problems.at():
        fail()
    problems.raise_if_any()


@pytest.mark.parametrize(
    "work", [of_slots, of_a_grid, of_a_run, of_what_is_made_ahead, of_what_is_written_behind, of_problems]
)
def test_what_an_error_held_is_free_at_once(work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_outcome", lambda *_: ModelError("toolbox.stopped"))
    assert free_after(work)


def test_that_it_is_not_would_be_noticed() -> None:
    def work() -> None:
        failed = ModelError("toolbox.stopped")
        raise failed

    assert not free_after(work)


def free_after(work: Callable[[], None]) -> bool:
    held: list[weakref.ref[Control]] = []

    def frame() -> None:
        thing = Control()
        held.append(weakref.ref(thing))
        work()

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ModelError):
            frame()
        return held[0]() is None
    finally:
        gc.enable()
