"""A search for a learning rate on the page: what it shows, and what its buttons do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_trainer.config import JobConfig, to_values
from lib_trainer.refusals import ConfigError, Field, Sentence
from lib_trainer.training import desk as training_desk
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.finder import Report, told
from lib_trainer.training.rate_answer import Range, Tried
from lib_trainer.ui.train.actions import TrainActions
from lib_trainer.ui.train.page_options import PageOptions
from lib_trainer.ui.train.rate_line import rate_html
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from lib_trainer.work.monitor import JobView
from tests.ui.fakes import FakeHost

RATES = {"optimizer.unet_lr": 1e-4, "optimizer.text_encoder_lr": 1e-5}
TRIED = tuple(
    Tried(factor, steps, None if factor > 50 else 0.2 - 0.1 * math.log10(factor) ** 2, 0.02)
    for steps in (8, 24)
    for factor in (0.1, 1.0, 10.0, 100.0)
)
FOUND = Report(RATES, 400, TRIED, Range(0.5, 1.234, 3.0, 0.91), notes=(Sentence("finder.none_held", least=8),))


def view(report: Report, **changes: Any) -> JobView:
    return JobView("x", "finished", "1", "search", result=report, told=told(report), notes=report.notes, **changes)


def test_what_it_shows() -> None:
    html = rate_html(view(FOUND))
    assert "Learning rate, UNet" in html and "5e-5" in html and "3e-4" in html and "91%" in html
    assert html.count("<polyline") == 2 and "trainer-rate-range" in html and "fewer than 8 pictures" in html
    assert "nan" not in html and "inf" not in html and ">0%<" in html and "+0%" not in html
    unknown = replace(FOUND, range=None, unknown=Sentence("finder.nothing_seen", steps=24))
    assert "trainer-rate-range" not in rate_html(view(unknown))
    assert "do not say" in rate_html(view(unknown))
    assert rate_html(None) == ""


def test_on_its_way_it_shows_how_long_it_takes() -> None:
    phase = ev.Phase(Sentence("phase.rates_first"), 3, 9, "runs", left=61.0)
    html = rate_html(JobView("x", "running", "1", "search", result=FOUND, progress=phase))
    assert "3/9" in html and "1:01 left" in html and 'aria-valuenow="33"' in html
    failed = JobView("x", "failed", "1", "search", failure="<b>")
    assert "&lt;b&gt;" in rate_html(failed)


@pytest.fixture
def searching(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[TrainActions, Control]]:
    """A page over the real desk, whose search waits until `let` is told to go on."""
    let = Control()

    def search(plan: Any, host: Any, control: Control, emit: ev.Listener) -> None:
        emit(ev.Phase(Sentence("phase.rates_first"), 0, 9, "runs"))
        while not (let.stopping or control.stopping):
            time.sleep(0.01)
        if not control.stopping:
            emit(ev.Found(FOUND))
        emit(ev.Finished(stopped=control.stopping, told="" if control.stopping else told(FOUND)))

    class Plan:
        def __init__(self, job: JobConfig) -> None:
            self.job = job

    monkeypatch.setattr(training_desk, "search", search)
    monkeypatch.setattr(training_desk, "prepare_search", lambda job, host: Plan(job))
    desk = TrainingDesk(FakeHost(tmp_path))
    yield TrainActions(desk, PageOptions(job_folder=tmp_path / "jobs", insert_js="(text) => {}")), let
    desk.stop()
    desk.searches.wait(10)


def waited(actions: TrainActions, done: Callable[[TrainActions], bool]) -> None:
    end = time.monotonic() + 30
    while not done(actions):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_middle_goes_into_the_form(searching: tuple[TrainActions, Control], tmp_path: Path) -> None:
    actions, let = searching
    values = {**to_values(JobConfig()), "dataset.folder": str(tmp_path)}
    assert actions.find_rate(values) == "" and actions.rates_found() == {}
    waited(actions, lambda one: "0/9" in str(one.watch.poll("").rate))
    busy = actions.watch.poll("")
    assert 'data-active="1"' in busy.status
    assert [busy.start["interactive"], busy.find_rate["interactive"], busy.stop["interactive"]] == [False, False, True]
    assert busy.save["interactive"] is False and busy.use_rate["visible"] is False
    assert "wait for it" in actions.start(values)[0]
    let.stop()
    waited(actions, lambda one: not one.runner.searches.running)
    done = actions.watch.poll(busy.seen)
    assert done.start["interactive"] and done.find_rate["interactive"] and not done.stop["interactive"]
    assert done.use_rate["visible"] and "1.23e-4" not in done.use_rate["value"] and "1.2e-4" in done.use_rate["value"]
    assert actions.rates_found() == {"optimizer.unet_lr": 1.2e-4, "optimizer.text_encoder_lr": 1.2e-5}
    again = actions.watch.poll(done.seen)
    assert again.rate == again.use_rate == again.start == actions.watch.poll(done.seen).stop


def test_stop_ends_it_and_nothing_is_offered(searching: tuple[TrainActions, Control], tmp_path: Path) -> None:
    actions, _ = searching
    actions.find_rate({**to_values(JobConfig()), "dataset.folder": str(tmp_path)})
    assert "Stopping" in actions.stop()
    waited(actions, lambda one: not one.runner.searches.running)
    found = actions.watch.poll("")
    assert "there is no answer" in found.rate and found.use_rate["visible"] is False
    assert "No run is under way" in actions.stop()


def test_what_is_refused_is_a_notice_beside_its_field(
    searching: tuple[TrainActions, Control], monkeypatch: pytest.MonkeyPatch
) -> None:
    actions, _ = searching

    def refuse(job: JobConfig, host: Any) -> None:
        raise ConfigError("finder.finds_itself", field=Field("optimizer.name"), optimizer="Prodigy")

    monkeypatch.setattr(training_desk, "prepare_search", refuse)
    notice = actions.find_rate(to_values(JobConfig()))
    assert "Prodigy" in notice and 'data-field="trainer_optimizer_name"' in notice
    assert not actions.runner.searches.running
