"""The forecast beside Start: shown as the form changes, said once where it does not fit, and no refusal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer.config import JobConfig, to_values
from lib_trainer.families.known import FAMILIES
from lib_trainer.ports import HeldPart
from lib_trainer.training import desk as training_desk
from lib_trainer.training import memory_need
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.memory_table import tables
from lib_trainer.ui.train.actions import TrainActions
from lib_trainer.ui.train.memory_line import MemoryLine
from lib_trainer.ui.train.page_options import PageOptions
from tests.ui.fakes import FakeHost, Script

GIB = 2**30


class _Host(FakeHost):
    asked = 0
    table = "sd1"

    def parts(self) -> dict[str, HeldPart]:
        self.asked += 1
        return {part: HeldPart(weights.all, torch.float16) for part, weights in tables()[self.table].weights.items()}


@pytest.fixture
def host(tmp_path: Path) -> _Host:
    return _Host(tmp_path)


@pytest.fixture
def desk(host: _Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainingDesk]:
    script = Script(step_seconds=0.002, cache_seconds=0)
    monkeypatch.setattr(training_desk, "prepare", script.prepare)
    monkeypatch.setattr(training_desk, "run_plan", script.run_plan)
    desk = TrainingDesk(host)
    yield desk
    desk.stop()
    desk.wait(10)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    batch = {"training.batch_size": 8, "training.precision": "bf16", "training.max_steps": 3}
    return {**to_values(JobConfig()), "dataset.folder": str(tmp_path), "output.name": "cat", **batch}


def test_the_line_follows_the_form(
    desk: TrainingDesk, host: _Host, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 24 * GIB)
    line = MemoryLine(desk)
    large, small = line.html(values), line.html({**values, "training.batch_size": 1})
    assert large != small and all("trainer-memory-fits" in one and "of the 24.0 GiB" in one for one in (large, small))
    assert line.html({**values, "training.batch_size": 0}) == "", "a value that is refused"
    assert host.asked == 1, "the host is asked once for each model"
    host.description = "another"
    line.html(values)
    assert host.asked == 2


def test_of_a_family_without_a_table_nothing_is_foreseen(
    desk: TrainingDesk, host: _Host, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(FAMILIES[0], memory="")
    monkeypatch.setattr(host, "family", lambda: other)
    told = f"How much memory a job takes is not foreseen for {other.word} yet."
    assert told in MemoryLine(desk).html(values)


def test_of_sdxl_the_line_says_what_its_table_is_about_and_no_more(
    desk: TrainingDesk, host: _Host, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    xl = next(family for family in FAMILIES if family.sizes)
    monkeypatch.setattr(host, "family", lambda: xl)
    monkeypatch.setattr(host, "table", "sdxl")
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 24 * GIB)
    values |= {"dataset.width": 1024, "dataset.height": 1024}
    line = MemoryLine(desk)
    told = line.html(values)
    assert "trainer-memory-short" in told and "(then " in told
    few = {"training.batch_size": 1, "training.gradient_checkpointing": True, "optimizer.text_encoder_lr": 0.0}
    assert "trainer-memory-fits" in line.html({**values, **few})
    for measured in ({"network.kind": "checkpoint"}, {"network.kind": "embedding"}, {"training.precision": "fp32"}):
        assert "of the 24.0 GiB" in line.html({**values, **few, **measured}), measured
    told = line.html({**values, **few, "network.kind": "hypernetwork"})
    assert "of this kind in this precision takes is not foreseen for SDXL yet." in told


def test_what_does_not_fit_is_said_in_the_line_with_the_remedy(
    desk: TrainingDesk, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 8 * GIB)
    told = MemoryLine(desk).html(values)
    assert "trainer-memory-short" in told and "turn on “Gradient checkpointing” (then " in told


def test_start_says_it_once_and_starts_at_the_second_press(
    desk: TrainingDesk, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 8 * GIB)
    actions = TrainActions(desk, PageOptions(job_folder=tmp_path / "jobs", insert_js="(text) => {}"))
    notice, _ = actions.start(values)
    assert "needs about" in notice and "Press Start again" in notice and not desk.running
    notice, _ = actions.start({**values, "training.batch_size": 7})
    assert "Press Start again" in notice and not desk.running, "another job is asked about anew"
    notice, _ = actions.start({**values, "training.batch_size": 7})
    assert notice == ""
    view = desk.wait(10)
    assert view is not None and view.state == "finished"


def test_what_fits_starts_at_once(
    desk: TrainingDesk, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 24 * GIB)
    actions = TrainActions(desk, PageOptions(job_folder=tmp_path / "jobs", insert_js="(text) => {}"))
    assert actions.start(values)[0] == ""
    assert desk.view() is not None


def test_nothing_is_said_of_a_model_that_no_table_is_about(values: dict[str, Any], tmp_path: Path) -> None:
    assert MemoryLine(TrainingDesk(FakeHost(tmp_path))).html(values) == ""
