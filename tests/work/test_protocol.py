"""The grammar of events: real jobs of every sort and the pages' stand-ins obey it, and it notices what does not.

Real training runs are held to it in every test of tests/training (`Watched.run`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_trainer.config import JobConfig, from_values, to_values
from lib_trainer.dataset.desk import CheckSize, DatasetDesk
from lib_trainer.tagging.captions.style import Style
from lib_trainer.tagging.desk import TaggerDesk
from lib_trainer.tagging.scores.table import Thresholds
from lib_trainer.tagging.views import Places, Selection
from lib_trainer.training import desk as training_desk
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.work import events as ev
from lib_trainer.work.monitor import Monitor
from tests import protocol
from tests.tagging.conftest import MINI, draw_scenes
from tests.tagging.hub import Hub
from tests.tagging.hub import hub as hub
from tests.tagging.test_tagging_desk import mini_hub as mini_hub
from tests.ui.fakes import FakeHost, Script

PATIENCE = 60


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ev.Event]]:
    """Everything that the monitors of a test are told."""
    seen: list[ev.Event] = []
    real = Monitor.__call__

    def listen(self: Monitor, event: ev.Event) -> None:
        seen.append(event)
        real(self, event)

    monkeypatch.setattr(Monitor, "__call__", listen)
    yield seen


def tagger(folder: Path) -> TaggerDesk:
    return TaggerDesk(Places(lambda: [MINI.parent, folder / "models"], lambda: folder / "models"))


def test_tagging_and_writing(told: list[ev.Event], tmp_path: Path) -> None:
    draw_scenes(tmp_path / "set", 7)
    (tmp_path / "set" / "torn.png").write_bytes(b"torn")
    desk, chosen = tagger(tmp_path), Selection(str(tmp_path / "set"), True, ("wd-mini",))
    for _ in range(2):  # the second time all is known
        desk.start_scoring(chosen, "cpu")
        desk.wait(PATIENCE)
        protocol.check(told, training=False)
        assert isinstance(told[-1], ev.Finished) and len(told[-1].left_out) == 1
        told.clear()
    desk.start_writing(chosen, Thresholds(), Style())
    desk.wait(PATIENCE)
    protocol.check(told, training=False)
    assert isinstance(told[-1], ev.Finished) and "captions written" in str(told[-1].told)
    assert any(isinstance(event, ev.Phase) and event.unit == "captions" for event in told)


def test_tagging_that_is_stopped_or_fails(
    told: list[ev.Event], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_scenes(tmp_path / "set", 5)
    desk, chosen = tagger(tmp_path), Selection(str(tmp_path / "set"), True, ("wd-mini",))
    opened: Any = desk.tagger("wd-mini", "cpu")
    scores, begun, go_on = opened.scores, threading.Event(), threading.Event()

    def slow(batch: Any) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE)
        return scores(batch)

    monkeypatch.setattr(opened, "scores", slow)
    desk.start_scoring(chosen, "cpu")
    assert begun.wait(PATIENCE)
    desk.stop()
    go_on.set()
    desk.wait(PATIENCE)
    protocol.check(told, training=False)
    assert isinstance(told[-1], ev.Finished) and told[-1].stopped
    told.clear()

    def broken(batch: Any) -> Any:
        raise RuntimeError("oh")

    monkeypatch.setattr(opened, "scores", broken)
    desk.start_scoring(chosen, "cpu")
    desk.wait(PATIENCE)
    protocol.check(told, training=False)
    assert isinstance(told[-1], ev.Failed)


@pytest.mark.parametrize("whole", [True, False])
def test_a_download(told: list[ev.Event], mini_hub: Hub, tmp_path: Path, whole: bool) -> None:
    if not whole:
        del mini_hub.files["model.onnx"]
    desk = tagger(tmp_path)
    desk.start_download("wd-vit-tagger-v3")
    desk.wait(PATIENCE)
    protocol.check(told, training=False)
    assert isinstance(told[-1], ev.Finished if whole else ev.Failed)
    assert not whole or any(isinstance(event, ev.Phase) and event.unit == "bytes" for event in told)


def test_the_check_of_a_set(told: list[ev.Event], tmp_path: Path) -> None:
    for name in "abc":
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
    opened = DatasetDesk(len).open(str(tmp_path))
    opened.check(CheckSize(64, 64, False))
    opened.checks.wait(PATIENCE)
    protocol.check(told, training=False)
    assert isinstance(told[-1], ev.Finished) and str(told[-1].told) == "3 pictures checked."
    assert opened.report is not None


def scripted(script: Script, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> TrainingDesk:
    monkeypatch.setattr(training_desk, "prepare", script.prepare)
    monkeypatch.setattr(training_desk, "run_plan", script.run_plan)
    desk = TrainingDesk(FakeHost(folder))
    values = to_values(JobConfig()) | {"dataset.folder": str(folder), "output.name": "cat", "training.max_steps": 20}
    desk.start(from_values(values | {"preview.prompt": "a cat", "preview.every": 10}))
    return desk


@pytest.mark.parametrize("end", ["finished", "stopped", "failed"])
def test_what_stands_in_for_a_run_tells_what_a_run_tells(
    told: list[ev.Event], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    script = Script(step_seconds=0, cache_seconds=0, fail_at=3 if end == "failed" else 0)
    script.cached.clear()
    desk = scripted(script, tmp_path, monkeypatch)
    desk.save()
    desk.sample()
    if end == "stopped":
        desk.stop()
    script.cached.set()
    view = desk.wait(PATIENCE)
    assert view is not None and view.state == end
    protocol.check(told)


def good() -> list[ev.Event]:
    path = Path("cat.safetensors")
    steps = [ev.StepDone(n, 2, 1, 0.1, {}, 1.0, 0.1, 0) for n in (1, 2)]
    events = [ev.Phase("Caching latents", n, 2) for n in range(3)]
    return [*events, ev.Started(2, 10), *steps, ev.Saved(2, path, True), ev.Message("the card"), ev.Finished(2, path)]


def without(kind: type) -> Callable[[list[ev.Event]], list[ev.Event]]:
    return lambda events: [event for event in events if not isinstance(event, kind)]


@pytest.mark.parametrize(
    "spoil",
    [
        without(ev.Saved),
        without(ev.Started),
        without(ev.Finished),
        lambda events: [*events, events[-1]],
        lambda events: [*events, ev.Message("one more thing")],
        lambda events: [*events[:4], events[5], events[4], *events[6:]],
        lambda events: [events[3], *events[:3], *events[4:]][::-1],
        lambda events: [*events[:2], ev.Phase("Caching latents", 0, 2), *events[2:]],
        lambda events: [*events[:2], ev.Phase("Caching latents", 3, 2), *events[2:]],
        lambda events: [*events[:-1], replace(events[-1], stopped=True)],
        lambda events: [*events[:-1], replace(events[-1], path=Path("another.safetensors"))],
        lambda events: [*events[:-1], replace(events[-1], step=1)],
        lambda events: [*events[:6], replace(events[6], final=False), *events[7:]],
        lambda events: [*events[:5], events[6], *events[5:]],
    ],
    ids=[
        "not saved", "not started", "no end", "two ends", "after the end", "steps turned", "all turned",
        "back in a phase", "more than all", "stopped at the end", "another file", "another step", "nothing final",
        "saved too early",
    ],
)  # fmt: skip
def test_the_grammar_notices(spoil: Callable[[list[Any]], list[Any]]) -> None:
    protocol.check(good())
    with pytest.raises(AssertionError):
        protocol.check(spoil(good()))
