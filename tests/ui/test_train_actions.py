"""The page's buttons and polls over the real runner, with a scripted run."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import msgspec
import pytest
import torch
from PIL import Image

from lib_trainer.config import JobConfig, from_values, to_values
from lib_trainer.families.family import Family
from lib_trainer.families.known import SD1, SD2, SDXL
from lib_trainer.families.prediction import Predicts
from lib_trainer.refusals import ConfigError, NameTaken, Sentence
from lib_trainer.training import desk as training_desk
from lib_trainer.training import optimizers, packages
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.ui.generate import HOST_DEFAULT, draw
from lib_trainer.ui.standalone import build_app
from lib_trainer.ui.train import actions as train_actions
from lib_trainer.ui.train.actions import TrainActions
from lib_trainer.ui.train.job_files import LAST_JOB
from lib_trainer.ui.train.offer import Offer
from lib_trainer.ui.train.page import build_train_page
from lib_trainer.ui.train.page_options import PageOptions
from lib_trainer.ui.train.preview_files import PreviewFiles
from lib_trainer.ui.train.prompt_lines import PromptLines, prompt_lines
from lib_trainer.work.monitor import HeldOutPoint, RunView
from tests.ui.fakes import FakeGenerator, FakeHost, Script

SKIP = gr.update()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script(step_seconds=0.002, cache_seconds=0)
    monkeypatch.setattr(training_desk, "prepare", script.prepare)
    monkeypatch.setattr(training_desk, "run_plan", script.run_plan)
    return script


@pytest.fixture
def runner(script: Script, tmp_path: Path) -> Iterator[TrainingDesk]:
    runner = TrainingDesk(FakeHost(tmp_path))
    yield runner
    runner.stop()
    runner.wait(10)


@pytest.fixture
def actions(runner: TrainingDesk, tmp_path: Path) -> TrainActions:
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
    notice, offer = actions.start({**values, "optimizer.unet_lr": 5.0})
    assert offer == Offer()
    assert "trainer-notice-error" in notice and 'data-field="trainer_optimizer_unet_lr"' in notice
    assert "Learning rate, UNet = 5.0" in notice and "from 0 to 1" in notice
    assert actions.runner.view() is None


def test_a_refusal_of_the_runner_is_escaped(actions: TrainActions, values: dict[str, Any]) -> None:
    notice, _ = actions.start({**values, "dataset.folder": ""})
    assert "Folder of pictures is empty: it must be a folder &lt;that&gt;" in notice


def test_a_bug_is_a_sentence_too(
    actions: TrainActions, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("oh <no>")

    monkeypatch.setattr(training_desk, "prepare", broken)
    notice, _ = actions.start(values)
    assert "RuntimeError: oh &lt;no&gt;" in notice and "Traceback" not in notice
    assert "Traceback" in caplog.text


def test_all_that_is_wrong_is_told_at_once_each_at_its_field(actions: TrainActions, values: dict[str, Any]) -> None:
    wrong = {"network.rank": -4.0, "training.seed": None, "dataset.folder": "", "dataset.width": 512.5}
    notice, _ = actions.start({**values, **wrong})
    assert "4 things are to be mended" in notice
    for field in ("network_rank", "training_seed", "dataset_folder", "dataset_width"):
        assert f'<li data-field="trainer_{field}">' in notice
    assert "Rank (dim) = -4 in the job is not allowed" in notice and "Folder of pictures is empty" in notice
    assert actions.runner.view() is None


def test_what_stands_in_for_a_refused_field_is_not_blamed(
    actions: TrainActions, values: dict[str, Any], script: Script
) -> None:
    """The name was refused for what it is; that the default is empty is nobody's fault."""

    def settle(job: JobConfig) -> JobConfig:
        if not job.output.name:
            raise ConfigError("name.empty", field="output.name")
        return job

    script.settle = settle
    notice, _ = actions.start({**values, "output.name": 3})
    assert "output.name" not in notice and notice.count("data-field") == 1
    assert "Name of the result = 3" in notice


def taken_name(taken: Path) -> Callable[[JobConfig], JobConfig]:
    """As `training.results.settle` does it, for the name cat."""

    def settle(job: JobConfig) -> JobConfig:
        if job.output.name != "cat" or job.output.existing == "replace":
            return job
        if job.output.existing == "number":
            return msgspec.structs.replace(job, output=msgspec.structs.replace(job.output, name="cat-2"))
        sentence = f"output.name = 'cat': {taken} exists already."
        raise NameTaken(sentence, field="output.name", taken=taken, free="cat-2", replaceable=True)

    return settle


def test_what_lies_under_a_taken_name_is_discarded_and_nothing_starts(
    actions: TrainActions, values: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    for name in ("cat.safetensors", "cat-step00000004.safetensors"):
        (folder / name).write_bytes(b"old")
    offer = Offer(folder / "cat.safetensors", "cat-2", True)
    notice, left = actions.discard({**values, "training.max_steps": "many"}, offer)
    assert "and 1 more went to the trash" in notice and left == Offer() and actions.runner.view() is None
    assert [path.name for path in folder.iterdir()] == [".trainer-trash"]
    notice, left = actions.discard(values, offer)
    assert "Nothing lies under this name" in notice and left == Offer()
    notice, left = actions.discard({**values, "output.name": ""}, offer)
    assert "trainer-notice-error" in notice and left == offer


def test_a_taken_name_is_offered_ways_out(
    actions: TrainActions, values: dict[str, Any], script: Script, tmp_path: Path
) -> None:
    taken = tmp_path / "cat.safetensors"
    script.settle = taken_name(taken)
    notice, offer = actions.start(values)
    assert "exists already" in notice and 'data-field="trainer_output_name"' in notice
    assert offer == Offer(taken, "cat-2", True) == Offer.parse(offer.text())
    assert offer.ways == ["free", "continue", "replace", "discard"]
    ran: list[tuple[str, str, str]] = []
    for how in ("free", "replace", "continue"):
        notice, left, changes = actions.start_otherwise(values, offer, how)
        assert (notice, left) == ("", Offer())
        job = actions.runner.job
        assert job is not None and changes["output.name"] == job.output.name
        ran.append((job.output.name, job.output.existing, job.network.continue_from))
        actions.runner.stop()
        actions.runner.wait(10)
    assert ran == [("cat-2", "number", ""), ("cat", "replace", ""), ("cat-2", "number", str(taken))]
    assert changes["network.continue_from"] == str(taken)
    assert Offer().ways == [] and Offer.parse("") == Offer() and Offer(taken, "", False).ways == []
    remembered = actions.files.last_job()
    assert remembered is not None
    assert (remembered["output.name"], remembered["output.existing"]) == ("cat-2", "refuse"), "replace is for once"


def test_a_prompt_gets_the_words_that_call_the_file(actions: TrainActions, values: dict[str, Any]) -> None:
    job = from_values({**values, "dataset.trigger_word": "zorb", "preview.prompt": "a  zorb, red --d 5\nother"})
    assert prompt_lines("<lora:cat:1>", job) == PromptLines("zorb\n<lora:cat:1>", "a zorb, red\nzorb\n<lora:cat:1>")
    assert prompt_lines("<lora:cat:1>", None) == PromptLines("<lora:cat:1>") and prompt_lines("", job) == PromptLines()
    actions.start({**values, "dataset.trigger_word": "zorb"})
    actions.runner.wait(20)
    done = actions.watch.poll("")
    assert done.lora == "zorb\n<lora:cat:1>" and done.lora_prompt == "a cat\nzorb\n<lora:cat:1>"
    assert done.use["visible"] is True and done.use_prompt["visible"] is True


def test_a_poll_that_has_nothing_new_looks_at_no_folder(
    actions: TrainActions, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    for name in ("lora_folder", "embedding_folder", "hypernetwork_folder", "checkpoint_folder", "cache_folder"):
        own = getattr(FakeHost, name)
        monkeypatch.setattr(FakeHost, name, lambda self, own=own, name=name: (looked.append(name), own(self))[1])
    actions.start(values)
    actions.runner.wait(20)
    done, first = actions.watch.poll(""), len(looked)
    assert first > 0
    for _ in range(9):
        actions.watch.poll(done.seen)
    actions.watch.poll("")
    assert len(looked) == first, "neither a watcher without news nor a second one"


def test_what_is_said_of_a_run_under_way_is_marked_as_such(actions: TrainActions, values: dict[str, Any]) -> None:
    actions.start({**values, "training.max_steps": 10_000})
    assert "trainer-notice-active" in actions.command(actions.runner.stop, "Stopping.")
    actions.runner.wait(20)
    assert "trainer-notice-active" not in actions.command(actions.runner.stop, "Stopping.")


def test_a_second_start_is_refused(actions: TrainActions, values: dict[str, Any], script: Script) -> None:
    script.step_seconds = 0.05
    assert actions.start(values) == ("", Offer())
    assert "already under way" in actions.start(values)[0]


def test_commands_without_a_run_say_so(actions: TrainActions) -> None:
    called: list[int] = []
    assert "No run is under way" in actions.command(lambda: called.append(1), "Done.")
    assert called == []


def test_the_first_poll_fills_the_page_and_the_next_changes_nothing(actions: TrainActions) -> None:
    first = actions.watch.poll("")
    assert "No run yet" in first.status and "879db523c3" in first.header
    again = actions.watch.poll(first.seen)
    assert all(value == SKIP for value in again.outputs()[:-1])
    assert again.seen == first.seen


def test_a_model_that_its_host_draws_wrongly_is_told_with_the_remedy(actions: TrainActions, tmp_path: Path) -> None:
    first, host = actions.watch.poll(""), actions.runner.host
    assert isinstance(host, FakeHost)
    assert first.caution == "" and first.describe["visible"] is False
    why = Sentence("prediction.by_tensor", name="v_pred")
    host.predicted = Predicts("v", True, why, why, drawn_as="epsilon", file=tmp_path / "<b>noob.safetensors")
    wrong = actions.watch.poll(first.seen)
    assert "come out as noise" in wrong.caution and "&lt;b&gt;noob.yaml" in wrong.caution
    assert wrong.describe["visible"] is True
    assert wrong.status == SKIP and actions.watch.poll(wrong.seen).caution == SKIP
    assert "Load the checkpoint again" in actions.describe()
    assert (tmp_path / "<b>noob.yaml").is_file()
    again = actions.watch.poll(wrong.seen)
    assert "load it again" in again.caution and again.describe["visible"] is False
    assert "exists already" in actions.describe()


def test_a_finished_run_is_polled_once(actions: TrainActions, values: dict[str, Any]) -> None:
    before = actions.watch.poll("")
    actions.start(values)
    actions.runner.wait(20)
    done = actions.watch.poll(before.seen)
    assert "trainer-state-finished" in done.status and "<svg" in done.chart
    assert [caption for _, caption in done.gallery["value"]] == ["Step 20", "Step 10"]
    assert all(Path(file).is_file() for file, _ in done.gallery["value"])
    assert done.use["visible"] is True and done.lora == "<lora:cat:1>"
    assert all(value == SKIP for value in actions.watch.poll(done.seen).outputs()[:-1])


def test_a_grid_that_grows_is_shown_small_until_the_run_ends(tmp_path: Path) -> None:
    """Gradio keeps a copy of each content."""
    grid, files = tmp_path / "grid.png", PreviewFiles()
    noise = torch.randint(256, (900, 1200, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(grid)
    going = RunView("a", "running", "id", grid=grid, grids=1)
    ((small, _),) = files.items(going)
    ((grown, _),) = files.items(replace(going, grids=2))
    assert small != grown and Path(small).stat().st_size < grid.stat().st_size / 4
    with Image.open(small) as shown:
        assert shown.format == "JPEG" and shown.width == 1024
    assert files.items(going) == [(small, "Steps and prompts")], "written once"
    ((whole, _),) = files.items(replace(going, state="finished", grids=2))
    assert Path(whole) == grid


@pytest.mark.parametrize(("text", "size"), [("", (1024, 1024)), ("dataset.width = 768", (768, 512))])
def test_one_side_of_a_loaded_job_is_beside_the_others_default(
    actions: TrainActions, text: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions.runner.host, "family", lambda: SDXL)
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    actions.options.job_folder.mkdir()
    shutil.copyfile(tmp_path / "a.toml", actions.options.job_folder / LAST_JOB)
    for values in (actions.files.load(tmp_path / "a.toml")[1], actions.files.last_job()):
        assert values is not None and (values["dataset.width"], values["dataset.height"]) == size


def test_another_watcher_sees_the_same_run(actions: TrainActions, values: dict[str, Any]) -> None:
    actions.start(values)
    actions.runner.wait(20)
    one, other = actions.watch.poll(""), actions.watch.poll("")
    assert one.status == other.status
    assert one.gallery["value"] == other.gallery["value"], "a preview is written once"


def reach(actions: TrainActions, step: int) -> None:
    deadline = time.monotonic() + 30
    while (view := actions.runner.view()) is None or view.step < step:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_while_a_run_is_active_only_what_changed_is_sent(
    actions: TrainActions, values: dict[str, Any], script: Script
) -> None:
    script.step_seconds = 0.05
    actions.start({**values, "training.max_steps": 1000, "preview.every": 0})
    reach(actions, 2)
    first = actions.watch.poll("")
    assert first.start["interactive"] is False and first.stop["interactive"] is True
    view = actions.runner.view()
    assert view is not None
    reach(actions, view.step + 1)
    second = actions.watch.poll(first.seen)
    assert "trainer-state-running" in second.status and "<svg" in second.chart
    assert second.gallery == second.header == second.start == second.stop == SKIP


def test_the_last_measurement_and_what_the_course_says_are_shown(
    actions: TrainActions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both come after the last step."""
    course = (HeldOutPoint(0, 0.13), HeldOutPoint(50, 0.126))
    going = RunView("a", "running", "id", step=60, held_out=course)
    measured = replace(going, held_out=(*course, HeldOutPoint(60, 0.12)), best_step=60)
    ended = replace(measured, state="finished", notes=(Sentence("advice.still_falling"),))
    seen, charts = "", []
    for view in (going, going, measured, ended, ended):
        monkeypatch.setattr(actions.runner, "view", lambda view=view: view)
        update = actions.watch.poll(seen)
        seen = update.seen
        charts.append(update.chart)
    assert charts[1] == charts[4] == SKIP
    assert "at step 50" in charts[0] and "at step 60" in charts[2] and "advice" not in charts[2]
    assert "was still falling at the end" in charts[3]


def test_what_was_seen_of_a_former_server_does_not_count(actions: TrainActions, values: dict[str, Any]) -> None:
    other = TrainActions(actions.runner, actions.options)
    assert all(value != SKIP for value in other.watch.poll(actions.watch.poll("").seen).outputs())
    assert all(value != SKIP for value in actions.watch.poll("not json").outputs())


def test_a_new_task_of_the_host_is_shown(runner: TrainingDesk, tmp_path: Path) -> None:
    task: list[str | None] = [None]
    actions = TrainActions(runner, PageOptions(tmp_path, "(text) => {}", task_id=lambda: task[0]))
    seen = actions.watch.poll("").seen
    task[0] = "task(abc)"
    assert 'data-task="task(abc)"' in actions.watch.poll(seen).status


def test_a_file_outside_the_hosts_folder_is_not_offered_to_the_prompt(
    actions: TrainActions, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    actions.start(values)
    actions.runner.wait(20)
    monkeypatch.setattr(FakeHost, "lora_folder", lambda self: self.root / "elsewhere")
    assert actions.watch.poll("").use["visible"] is False


def test_a_failed_run_shows_its_sentence(actions: TrainActions, values: dict[str, Any], script: Script) -> None:
    script.fail_at = 5
    actions.start(values)
    actions.runner.wait(20)
    update = actions.watch.poll("")
    assert "trainer-state-failed" in update.status and "The loss is &lt;not&gt; a number" in update.status
    assert update.start["interactive"] is True


def test_an_exported_job_is_imported_equal(actions: TrainActions, values: dict[str, Any], tmp_path: Path) -> None:
    values = {**values, "preview.prompt": 'a "cat"\nünïcode', "optimizer.unet_lr": 3e-7}
    notice, payload = actions.files.export(values)
    assert notice == ""
    file = json.loads(payload)
    assert file["name"] == "cat.toml"
    path = tmp_path / file["name"]
    path.write_text(file["text"], "utf-8")
    notice, loaded = actions.files.load(path)
    assert "cat.toml" in notice and "error" not in notice
    assert loaded == values


def test_a_form_that_is_no_job_is_not_exported(actions: TrainActions, values: dict[str, Any]) -> None:
    notice, payload = actions.files.export({**values, "network.rank": 0})
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
    notice, loaded = actions.files.load(path)
    assert loaded is None
    assert "trainer-notice-error" in notice
    assert (sentence in notice or "Rank (dim)" in notice) and str(tmp_path) not in notice


def test_the_last_started_job_is_remembered(actions: TrainActions, values: dict[str, Any]) -> None:
    assert actions.files.last_job() is None
    actions.start(values)
    again = TrainActions(actions.runner, actions.options)
    assert again.files.last_job() == values


def test_starting_writes_no_field_of_the_form(actions: TrainActions, runner: TrainingDesk) -> None:
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


def test_no_event_waits_in_the_hosts_queue(actions: TrainActions, runner: TrainingDesk) -> None:
    with gr.Blocks(analytics_enabled=False) as app:
        build_train_page(runner, actions.options)
    assert [d for d in app.dependencies if d["backend_fn"] and d["queue"] is not False] == []


def test_no_answer_of_the_server_writes_over_a_field(actions: TrainActions, runner: TrainingDesk) -> None:
    """What is set while one is on its way would be lost: the script puts values in, and looks at what is there."""
    with gr.Blocks(analytics_enabled=False) as app:
        build_train_page(runner, actions.options)
    fields = {one._id for one in app.blocks.values() if "trainer-field" in (getattr(one, "elem_classes", None) or ())}
    answers = [one for one in app.dependencies if one["backend_fn"] and fields & set(one["outputs"])]
    shown = {app.blocks[target].elem_id for one in answers for target in one["targets"]}
    assert len(fields) > 100 and shown == {"trainer_visible"}, "which shows and hides alone"


def test_no_two_folds_have_the_same_name(actions: TrainActions, runner: TrainingDesk) -> None:
    with gr.Blocks(analytics_enabled=False) as app:
        build_train_page(runner, actions.options)
    names = [one.label for one in app.blocks.values() if isinstance(one, gr.Accordion)]
    assert len(names) == len(set(names)) > 20 and "Saved steps × weights" in names


def test_the_standalone_page_asks_for_nothing_from_elsewhere(runner: TrainingDesk) -> None:
    app = build_app(runner, FakeGenerator())
    assert "http" not in app.theme_css.replace("http://www.w3.org", "")
    assert app.theme._stylesheets == [] and app.analytics_enabled is False


def test_an_error_of_the_generator_is_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    generator = FakeGenerator()
    image, notice = draw(generator, "a <lora:absent:1>", "", 64, 64, 4, 7, HOST_DEFAULT, 1)
    assert image == SKIP and "There is no LoRA called absent" in notice
    image, notice = draw(generator, "a <lora:cat:1>", "", 64, 80, 4, 7, HOST_DEFAULT, 1)
    assert image.size == (64, 80) and notice == ""
    assert "Traceback" not in caplog.text
    image, notice = draw(generator, "broken", "", 64, 64, 4, 7, HOST_DEFAULT, 1)
    assert image == SKIP and "RuntimeError: oh &lt;no&gt;" in notice and "Traceback" in caplog.text


def test_numbers_of_the_generate_tab_are_refused_at_their_fields() -> None:
    image, notice = draw(FakeGenerator(), "a", "", 32, None, 4.5, 0.5, None, -1)
    assert image == SKIP
    for said in (
        '<li data-field="generate_width">Width = 32 is not allowed: it must be a whole number from 64 to 4096.</li>',
        '<li data-field="generate_height">Height is empty: it must be a whole number.</li>',
        '<li data-field="generate_steps">Sampling steps = 4.5 is not allowed: it must be a whole number from 1 to 150.',
        '<li data-field="generate_cfg_scale">CFG scale = 0.5 is not allowed: it must be a number from 1 to 30.</li>',
        '<li data-field="generate_seed">Seed = -1 is not allowed: it must be a whole number from 0 to 4294967295.</li>',
    ):
        assert said in notice


def test_what_is_wrong_in_a_hidden_field_stops_nothing(actions: TrainActions, values: dict[str, Any]) -> None:
    hidden = {**values, "optimizer.cycles": None, "optimizer.schedule": "cosine"}
    assert "Cycles" not in actions.start(hidden)[0]
    assert "Cycles" not in actions.files.export(hidden)[0]
    shown = {**hidden, "optimizer.schedule": "cosine_with_restarts"}
    assert "Cycles" in actions.files.export(shown)[0]


def test_the_package_of_an_optimizer_is_installed_by_a_button(
    actions: TrainActions, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(packages, "_pip", lambda arguments: asked.append(arguments[1]))
    find = optimizers.importlib.util.find_spec
    monkeypatch.setattr(optimizers.importlib.util, "find_spec", lambda name: None if "pytorch_" in name else find(name))
    chosen = {**values, "optimizer.name": "Lion"}
    assert not actions.installer(values)["visible"]
    assert actions.installer(chosen) == gr.update(visible=True, value="Install pytorch-optimizer")
    assert "pytorch-optimizer is installed." in actions.install(chosen)
    assert asked == ["pytorch-optimizer>=4.1,<5"]

    def broken(arguments: list[str]) -> None:
        raise ChildProcessError("ERROR: no <such> thing")

    monkeypatch.setattr(packages, "_pip", broken)
    assert "could not be installed beside what is there (ERROR: no &lt;such&gt; thing)" in actions.install(chosen)
    monkeypatch.setattr(train_actions, "PATIENCE", 0.0)
    monkeypatch.setattr(packages, "_pip", lambda arguments: time.sleep(0.5))
    assert "is still being installed" in actions.install(chosen)
    assert "wait for its end" in actions.install(chosen)
    actions.runner.runner.jobs()[-1].wait(10)


def test_the_models_own_size_is_not_remembered_with_the_last_job(
    actions: TrainActions, runner: TrainingDesk, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def last(**changes: Any) -> tuple[int, int]:
        """The size that a page shows which is opened after such a run, with a model that is made for 1024 pixels."""
        assert actions.start({**values, **changes})[0] == ""
        runner.wait(10)
        with monkeypatch.context() as other:
            other.setattr(runner.host, "family", lambda: SDXL)
            shown = actions.files.last_job()
        assert shown is not None and shown["output.name"] == "cat"
        return shown["dataset.width"], shown["dataset.height"]

    assert last() == (1024, 1024)
    assert last(**{"dataset.width": 768}) == (768, 512)


def test_an_imported_preset_leaves_the_size_to_the_model(
    actions: TrainActions, runner: TrainingDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.host, "family", lambda: SDXL)
    for text, size in (("[network]\nrank = 4\n", 1024), ("[dataset]\nwidth = 640\nheight = 640\n", 640)):
        (tmp_path / "preset.toml").write_text(text)
        shown = actions.files.load(tmp_path / "preset.toml")[1]
        assert shown is not None and (shown["dataset.width"], shown["dataset.height"]) == (size, size)


@pytest.mark.parametrize(
    ("family", "prediction", "side"), [(SD1, "epsilon", 512), (SD2, "epsilon", 512), (SD2, "v", 768), (SDXL, "v", 1024)]
)
def test_the_size_that_a_model_is_made_for(
    actions: TrainActions,
    runner: TrainingDesk,
    monkeypatch: pytest.MonkeyPatch,
    family: Family,
    prediction: Any,
    side: int,
) -> None:
    monkeypatch.setattr(runner.host, "family", lambda: family)
    monkeypatch.setattr(
        runner.host, "predicted", Predicts(prediction, False, Sentence("prediction.by_tensor", name="x"))
    )
    assert actions.files.usual() == {"dataset.width": side, "dataset.height": side}
    assert f"{family.word} is made for {side} × {side} pixels" in actions.watch.poll("").usual
