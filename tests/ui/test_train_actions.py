"""The page's buttons and polls over the real runner, with a scripted run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lib_trainer import jobs
from lib_trainer.config import JobConfig, to_values
from lib_trainer.jobs import JobRunner
from lib_trainer.ui.generate_page import HOST_DEFAULT, draw
from lib_trainer.ui.standalone_page import build_app
from lib_trainer.ui.train_actions import PageOptions, TrainActions, with_label
from lib_trainer.ui.train_page import build_train_page
from tests.ui.fakes import FakeGenerator, FakeHost, Script

SKIP = gr.update()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script(step_seconds=0.002, cache_seconds=0)
    monkeypatch.setattr(jobs, "prepare", script.prepare)
    monkeypatch.setattr(jobs, "run_plan", script.run_plan)
    return script


@pytest.fixture
def runner(script: Script, tmp_path: Path) -> Iterator[JobRunner]:
    runner = JobRunner(FakeHost(tmp_path))
    yield runner
    runner.stop()
    runner.wait(10)


@pytest.fixture
def actions(runner: JobRunner, tmp_path: Path) -> TrainActions:
    return TrainActions(runner, PageOptions(job_folder=tmp_path / "jobs", insert_js="(text) => {}"))


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return {
        **to_values(JobConfig()),
        "dataset.folder": str(tmp_path),
        "output.name": "cat",
        "training.max_steps": 20,
        "preview.prompt": "a cat",
        "preview.every": 10,
    }


def test_a_bad_value_is_a_sentence_with_the_fields_label(actions: TrainActions, values: dict[str, Any]) -> None:
    notice = actions.start({**values, "optimizer.unet_lr": 5.0})
    assert "trainer-notice-error" in notice
    assert "Learning rate, UNet = 5.0" in notice and "from 0 to 1" in notice
    assert actions.runner.view() is None


def test_a_refusal_of_the_runner_is_escaped(actions: TrainActions, values: dict[str, Any]) -> None:
    notice = actions.start({**values, "dataset.folder": ""})
    assert "Folder of pictures is empty: choose the folder &lt;that&gt;" in notice


def test_a_bug_is_a_sentence_too(
    actions: TrainActions, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("oh <no>")

    monkeypatch.setattr(jobs, "prepare", broken)
    notice = actions.start(values)
    assert "RuntimeError: oh &lt;no&gt;" in notice and "Traceback" not in notice
    assert "Traceback" in caplog.text


def test_a_second_start_is_refused(actions: TrainActions, values: dict[str, Any], script: Script) -> None:
    script.step_seconds = 0.05
    assert actions.start(values) == ""
    assert "already under way" in actions.start(values)


def test_commands_without_a_run_say_so(actions: TrainActions) -> None:
    called: list[int] = []
    assert "No run is under way" in actions.command(lambda: called.append(1), "Done.")
    assert called == []


def test_the_first_poll_fills_the_page_and_the_next_changes_nothing(actions: TrainActions) -> None:
    first = actions.poll("")
    assert "No run yet" in first.status and "879db523c3" in first.header
    again = actions.poll(first.seen)
    assert all(value == SKIP for value in again.outputs()[:-1])
    assert again.seen == first.seen


def test_a_finished_run_is_polled_once(actions: TrainActions, values: dict[str, Any]) -> None:
    before = actions.poll("")
    actions.start(values)
    actions.runner.wait(20)
    done = actions.poll(before.seen)
    assert "trainer-state-finished" in done.status and "<svg" in done.chart
    assert [caption for _, caption in done.gallery["value"]] == ["Step 20", "Step 10"]
    assert all(Path(file).is_file() for file, _ in done.gallery["value"])
    assert done.use["visible"] is True and done.lora == "<lora:cat:1>"
    assert all(value == SKIP for value in actions.poll(done.seen).outputs()[:-1])


def test_another_watcher_sees_the_same_run(actions: TrainActions, values: dict[str, Any]) -> None:
    actions.start(values)
    actions.runner.wait(20)
    one, other = actions.poll(""), actions.poll("")
    assert one.status == other.status
    assert one.gallery["value"] == other.gallery["value"], "a preview is written once"


def test_while_a_run_is_active_only_what_changed_is_sent(
    actions: TrainActions, values: dict[str, Any], script: Script
) -> None:
    script.step_seconds = 0.05
    actions.start({**values, "training.max_steps": 1000, "preview.every": 0})
    deadline = time.monotonic() + 10
    while (view := actions.runner.view()) is None or view.step < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first = actions.poll("")
    assert first.start["interactive"] is False and first.stop["interactive"] is True
    time.sleep(0.15)
    second = actions.poll(first.seen)
    assert "trainer-state-running" in second.status and "<svg" in second.chart
    assert second.gallery == second.header == second.start == second.stop == SKIP


def test_what_was_seen_of_a_former_server_does_not_count(actions: TrainActions, values: dict[str, Any]) -> None:
    other = TrainActions(actions.runner, actions.options)
    assert all(value != SKIP for value in other.poll(actions.poll("").seen).outputs())
    assert all(value != SKIP for value in actions.poll("not json").outputs())


def test_a_new_task_of_the_host_is_shown(runner: JobRunner, tmp_path: Path) -> None:
    task: list[str | None] = [None]
    actions = TrainActions(runner, PageOptions(tmp_path, "(text) => {}", task_id=lambda: task[0]))
    seen = actions.poll("").seen
    task[0] = "task(abc)"
    assert 'data-task="task(abc)"' in actions.poll(seen).status


def test_a_file_outside_the_hosts_folder_is_not_offered_to_the_prompt(
    actions: TrainActions, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    actions.start(values)
    actions.runner.wait(20)
    monkeypatch.setattr(FakeHost, "lora_folder", lambda self: self.root / "elsewhere")
    assert actions.poll("").use["visible"] is False


def test_a_failed_run_shows_its_sentence(actions: TrainActions, values: dict[str, Any], script: Script) -> None:
    script.fail_at = 5
    actions.start(values)
    actions.runner.wait(20)
    update = actions.poll("")
    assert "trainer-state-failed" in update.status and "The loss is &lt;not&gt; a number" in update.status
    assert update.start["interactive"] is True


def test_an_exported_job_is_imported_equal(actions: TrainActions, values: dict[str, Any], tmp_path: Path) -> None:
    values = {**values, "preview.prompt": 'a "cat"\nünïcode', "optimizer.unet_lr": 3e-7}
    notice, payload = actions.export(values)
    assert notice == ""
    file = json.loads(payload)
    assert file["name"] == "cat.toml"
    path = tmp_path / file["name"]
    path.write_text(file["text"], "utf-8")
    notice, loaded = actions.load(path)
    assert "cat.toml" in notice and "error" not in notice
    assert loaded == values


def test_a_form_that_is_no_job_is_not_exported(actions: TrainActions, values: dict[str, Any]) -> None:
    notice, payload = actions.export({**values, "network.rank": 0})
    assert "Rank (dim) = 0" in notice and payload == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("not [toml", "bad.toml is not a TOML file"), ("[network]\nrank = -1", "network.rank"), ("rnak = 1", "rnak")],
)
def test_a_bad_job_file_is_refused_in_a_sentence(
    actions: TrainActions, tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    notice, loaded = actions.load(path)
    assert loaded is None
    assert "trainer-notice-error" in notice
    assert (sentence in notice or "Rank (dim)" in notice) and str(tmp_path) not in notice


def test_the_last_started_job_is_remembered(actions: TrainActions, values: dict[str, Any]) -> None:
    assert actions.last_job() is None
    actions.start(values)
    again = TrainActions(actions.runner, actions.options)
    assert again.last_job() == values


def test_labels_replace_paths_only_at_the_start() -> None:
    assert with_label("network.rank = 0 is not allowed.") == "Rank (dim) = 0 is not allowed."
    assert with_label("There is no network.rank here.") == "There is no network.rank here."


def test_starting_writes_no_field_of_the_form(actions: TrainActions, runner: JobRunner) -> None:
    """Whatever is wrong, what was typed stays: the events of the run have only the notice as output."""
    with gr.Blocks(analytics_enabled=False) as app:
        build_train_page(runner, actions.options)
    ids = {block.elem_id: number for number, block in app.blocks.items() if block.elem_id}
    fields = {ids[name] for name in ids if name.startswith(("trainer_dataset_", "trainer_optimizer_"))}
    assert fields
    for button in ("start", "stop", "save", "preview_now", "export", "poll"):
        clicked = [d for d in app.dependencies if (ids[f"trainer_{button}"], "click") in _targets(d)]
        assert clicked, button
        assert not any(set(dependency["outputs"]) & fields for dependency in clicked)


def _targets(dependency: dict[str, Any]) -> set[tuple[int, str]]:
    return {(target, dependency["trigger"]) for target in dependency["targets"]}


def test_no_event_waits_in_the_hosts_queue(actions: TrainActions, runner: JobRunner) -> None:
    with gr.Blocks(analytics_enabled=False) as app:
        build_train_page(runner, actions.options)
    assert [d for d in app.dependencies if d["backend_fn"] and d["queue"] is not False] == []


def test_the_standalone_page_asks_for_nothing_from_elsewhere(runner: JobRunner) -> None:
    app = build_app(runner, FakeGenerator())
    assert "http" not in app.theme_css.replace("http://www.w3.org", "")
    assert app.theme._stylesheets == [] and app.analytics_enabled is False


def test_an_error_of_the_generator_is_a_sentence() -> None:
    generator = FakeGenerator()
    image, notice = draw(generator, "a <lora:absent:1>", "", 64, 64, 4, 7, HOST_DEFAULT, 1)
    assert image == SKIP and "There is no LoRA called absent" in notice
    image, notice = draw(generator, "a <lora:cat:1>", "", 64, 80, 4, 7, HOST_DEFAULT, 1)
    assert image.size == (64, 80) and notice == ""
