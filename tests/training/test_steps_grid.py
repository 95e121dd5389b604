"""Saved steps × weights after a run: what prompts draw with the files, in one picture; a Stop keeps what is drawn."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_trainer import grids
from lib_trainer.cli.main import main
from lib_trainer.config import JobConfig, dump_job, from_values
from lib_trainer.files import all_by_stem
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.kinds.registry import KINDS
from lib_trainer.ports import PreviewRequest
from lib_trainer.refusals import ConfigError, ModelError, SaveError, TrainerError
from lib_trainer.training import steps_grid
from lib_trainer.training.results import newest_run
from lib_trainer.training.steps_grid import draw_steps_grid, prepare_steps_grid
from lib_trainer.training.steps_grid_settings import StepsGridSettings
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from lib_trainer.work.monitor import JobView
from tests import protocol
from tests.support import make_job
from tests.training.test_previews import contains
from tests.training.watched import PATIENCE, Watched

SAVED = {"training__max_steps": 3, "output__save_every": 1, "optimizer__unet_lr": 0.02, "preview__steps": 1}
SETTINGS = StepsGridSettings(weights="0, 1")


def drawn(watched: Watched, pictures: Path, settings: StepsGridSettings = SETTINGS, **changes: Any) -> JobView:
    events: list[ev.Event] = []
    watched.runner.draw_steps(make_job(pictures, **{**SAVED, **changes}), settings, events.append)
    view = watched.runner.grids.wait(PATIENCE)
    assert view is not None
    protocol.check(events, training=False)
    return view


def requests(job: Any, host: StandaloneHost, **changes: Any) -> list[list[str]]:
    grid = prepare_steps_grid(job, StepsGridSettings(**changes), host)
    return [[one.prompt for one in row] for row in grid.requests]


def test_a_row_for_each_saved_step_and_a_column_for_each_weight(watched: Watched, pictures: Path) -> None:
    assert watched.run(pictures, preview__prompt="", **SAVED).state == "finished"
    asked: list[PreviewRequest] = []
    made: list[Image.Image] = []
    real = watched.host.preview

    def preview(request: PreviewRequest) -> Image.Image:
        asked.append(request)
        made.append(real(request))
        return made[-1]

    watched.host.preview = preview  # type: ignore[method-assign]
    view = drawn(watched, pictures, preview__prompt="a disc --d 5\na zork")
    assert view.state == "finished" and view.output is not None and not view.notes
    names = ["learned-step00000001", "learned-step00000002", "learned"]
    assert [(one.prompt, one.seed) for one in asked] == [
        ("a disc", 5), (f"a disc <lora:{names[0]}:1>", 5), ("a zork", 1), (f"a zork <lora:{names[0]}:1>", 1),
        *((f"{prompt} <lora:{name}:1>", seed) for name in names[1:] for prompt, seed in (("a disc", 5), ("a zork", 1))),
    ], "the model alone is drawn once for each prompt"  # fmt: skip
    with Image.open(view.output) as grid:
        assert contains(grid, made) and grid.size[0] > 4 * 64
    job = make_job(pictures, **SAVED)
    grid = prepare_steps_grid(job, SETTINGS, watched.host)
    assert grid.rows == ("step 1", "step 2", "the end") and grid.columns == ("weight 0", "weight 1")
    assert grid.count == 4 and grid.requests[0][0].prompt == "zork", "without prompts the trigger word"
    several = prepare_steps_grid(job, StepsGridSettings(weights="1", prompt="a\nb --d 2"), watched.host)
    assert several.columns == ("weight 1: a", "weight 1: b --d 2")


def test_many_files_are_thinned_and_the_best_stays(watched: Watched, tmp_path: Path) -> None:
    job = from_values({"output.name": "x", "dataset.trigger_word": "zork"})
    folder = watched.host.lora_folder()
    folder.mkdir(parents=True)
    for name in [f"x-step{step:08d}" for step in range(1, 10)] + ["x", "x-best", "xy-step00000004", "x-step3"]:
        (folder / f"{name}.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    grid = prepare_steps_grid(job, StepsGridSettings(weights="1", most=4), watched.host)
    assert grid.rows == ("step 1", "step 4", "step 7", "the end", "the best")
    assert [str(note) for note in grid.notes] == ["5 of 11 saved files are drawn, evenly from the first to the last."]
    assert prepare_steps_grid(job, StepsGridSettings(most=1), watched.host).rows == ("the end", "the best")


def test_a_stop_keeps_what_is_drawn_and_nothing_else_may_begin(watched: Watched, pictures: Path) -> None:
    watched.run(pictures, **SAVED)
    real = watched.host.preview
    refused: list[str] = []

    def preview(request: PreviewRequest) -> Image.Image:
        with pytest.raises(ConfigError) as caught:
            watched.runner.start(make_job(pictures))
        refused.append(str(caught.value))
        with pytest.raises(ConfigError, match="grid of saved steps is being drawn"):
            watched.runner.discard(make_job(pictures, **SAVED))
        watched.runner.stop()
        return real(request)

    watched.host.preview = preview  # type: ignore[method-assign]
    view = drawn(watched, pictures)
    assert view.state == "stopped" and len(refused) == 1 and "grid of saved steps is being drawn" in refused[0]
    assert view.output is not None and "what was drawn by then" in str(view.told)


def test_a_picture_that_fails_is_told_and_what_is_drawn_is_kept(watched: Watched, pictures: Path) -> None:
    watched.run(pictures, **SAVED)
    real, count = watched.host.preview, iter(range(9))

    def preview(request: PreviewRequest) -> Image.Image:
        if next(count) == 1:
            raise RuntimeError("no kernel for this")
        return real(request)

    watched.host.preview = preview  # type: ignore[method-assign]
    view = drawn(watched, pictures)
    assert view.state == "failed" and "no kernel for this" in view.error
    assert view.output is not None and view.output.is_file()


def saved(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((2).to_bytes(8, "little") + b"{}")


def grid_fails(job: JobConfig, host: StandaloneHost) -> TrainerError:
    grid = prepare_steps_grid(job, SETTINGS, host)
    with pytest.raises(TrainerError) as caught:
        draw_steps_grid(grid, host, Control(), lambda event: None)
    return caught.value


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError()])
@pytest.mark.parametrize("also", [False, True])
def test_a_grid_that_cannot_be_written_is_told_and_hides_no_earlier_error(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, error: Exception, also: bool
) -> None:
    saved(watched.host.lora_folder() / "n.safetensors")

    def preview(request: PreviewRequest) -> Image.Image:
        if also and "<lora" in request.prompt:
            raise RuntimeError("no kernel for this")
        return Image.new("RGB", (8, 8))

    def full(*_: object) -> None:
        raise error

    watched.host.preview = preview  # type: ignore[method-assign]
    monkeypatch.setattr(grids, "write_atomically", full)
    failed = grid_fails(from_values({"output.name": "n", "dataset.trigger_word": "zork"}), watched.host)
    assert isinstance(failed, ModelError if also else SaveError) and failed.kept is None
    assert ("no kernel for this" if also else "could not be written") in str(failed)


def test_only_a_training_asks_for_the_whole_model_and_a_turn_that_fails_is_told(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    real = watched.host.lease

    def lease(title: str, *, trains: bool = False) -> contextlib.AbstractContextManager[Any]:
        asked.append(trains)
        return real(title, trains=trains)

    watched.host.lease = lease  # type: ignore[method-assign]
    assert watched.run(pictures, **SAVED).state == "finished"
    watched.host.preview = lambda request: Image.new("RGB", (8, 8))  # type: ignore[method-assign]
    assert drawn(watched, pictures).state == "finished" and asked == [True, False]

    def none_left(title: str, *, trains: bool = False) -> contextlib.AbstractContextManager[Any]:
        raise torch.cuda.OutOfMemoryError("out of memory on the way")

    watched.host.lease = none_left  # type: ignore[method-assign]
    failed = grid_fails(make_job(pictures, **SAVED), watched.host)
    assert isinstance(failed, ModelError) and "out of memory on the way" in str(failed)


def test_files_that_prompts_would_not_find_are_refused(watched: Watched, tmp_path: Path) -> None:
    host, folder = watched.host, watched.host.lora_folder()
    values = {"output.name": "n", "dataset.trigger_word": "zork"}
    below = from_values({**values, "output.folder": str(folder / "below")})
    saved(folder / "below" / "n.safetensors")
    with pytest.raises(ConfigError, match="where prompts do not find them"):
        requests(below, host)
    host.prompt_files = all_by_stem  # type: ignore[method-assign, assignment]  # as the WebUI does
    assert requests(below, host, weights="1") == [["zork <lora:n:1>"]]
    saved(folder / "another" / "n.pt")
    with pytest.raises(ConfigError, match="may mean") as caught:
        requests(below, host)
    assert all(str(folder / name) in str(caught.value) for name in ("below/n.safetensors", "another/n.pt"))
    elsewhere = from_values({**values, "output.folder": str(tmp_path / "elsewhere")})
    saved(tmp_path / "elsewhere" / "n.safetensors")
    with pytest.raises(ConfigError, match="where prompts do not find them"):
        requests(elsewhere, host)
    (folder / "another" / "n.pt").unlink()
    (folder / "below" / "n.safetensors").unlink()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert requests(elsewhere, host, weights="1") == [["zork <lora:n:1>"]]


def test_of_two_files_of_a_name_the_standalone_host_finds_one(watched: Watched) -> None:
    folder = watched.host.hypernetwork_folder()
    saved(folder / "n.pt", folder / "n.safetensors", watched.host.lora_folder() / "n.safetensors")
    values = {"output.name": "n", "dataset.trigger_word": "zork"}
    assert requests(from_values({**values, "network.kind": "hypernetwork"}), watched.host, weights="1")
    assert requests(from_values(values), watched.host, weights="1")
    words = watched.host.embedding_folder()
    saved(words / "n.pt", words / "n.safetensors")
    with pytest.raises(ConfigError, match="may mean"):
        requests(from_values({**values, "network.kind": "embedding", "embedding.format": "pt"}), watched.host)


@pytest.mark.parametrize(
    ("changes", "settings", "told"),
    [
        ({"output__name": "nothing"}, {}, "There are no saved files of nothing: train it first"),
        ({"network__kind": "checkpoint"}, {}, "A whole checkpoint has no weight"),
        ({}, {"weights": "much"}, "are no numbers"),
        ({}, {"weights": " "}, "are no numbers"),
        ({}, {"prompt": "a --x 2"}, "--x is no setting"),
        ({"preview__sampler": "Nobody's"}, {}, "preview.sampler"),
        ({"preview__width": 100}, {}, "preview.width"),
        ({"output__folder": "ELSEWHERE"}, {}, "where prompts do not find them"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    watched: Watched, pictures: Path, tmp_path: Path, changes: dict[str, Any], settings: dict[str, str], told: str
) -> None:
    elsewhere = {"ELSEWHERE": str(tmp_path / "elsewhere")}
    changes = {name: elsewhere.get(str(value), value) for name, value in changes.items()}
    for folder in (watched.host.lora_folder(), tmp_path / "elsewhere"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "learned.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(TrainerError) as caught:
        watched.runner.draw_steps(make_job(pictures, **changes), StepsGridSettings(**settings))
    assert told in str(caught.value)
    assert watched.runner.grids.view() is None


def test_a_file_of_another_family_is_refused(watched: Watched, pictures: Path) -> None:
    from safetensors.torch import save_file

    folder = watched.host.lora_folder()
    folder.mkdir(parents=True)
    tensors = {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(1, 2)}
    save_file(tensors, folder / "learned.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    with pytest.raises(TrainerError) as caught:
        watched.runner.draw_steps(make_job(pictures), SETTINGS)
    assert "SDXL" in str(caught.value)


def called(kind: str, job: JobConfig, files: tuple[str, ...], weight: float, prompt: str, negative: str = "") -> str:
    """What a row asks for: its prompt, and the negative one behind a bar."""
    asked = PreviewRequest(prompt, negative, seed=3)
    made = KINDS[kind].drawn_with(job, asked, tuple(map(Path, files)), weight)
    assert replace(made, prompt=prompt, negative_prompt=negative) == asked
    return f"{made.prompt} | {made.negative_prompt}" if negative else made.prompt


def test_embeddings_are_called_by_their_files_and_hypernetworks_by_their_weight() -> None:
    job = from_values({"network.kind": "embedding", "embedding.names": "zrk, zrk-b", "output.name": "n"})
    files = ("zrk-step00000003.pt", "zrk-b-step00000003.pt")
    assert called("embedding", job, files, 0.5, "a ZRK on zrk-b, zrkx") == (
        "a zrk-step00000003 on zrk-b-step00000003, zrkx"
    )
    assert called("embedding", job, files, 1, "a zrk") == "a zrk-step00000003 zrk-b-step00000003"
    assert called("hypernetwork", job, ("n-best.pt",), 0.75, "a") == "a <hypernet:n-best:0.75>"
    assert called("pivotal", job, ("n.safetensors",), -1, "a") == "a <lora:n:-1>"


def test_an_embedding_in_the_negative_prompt_is_called_there() -> None:
    job = from_values({"network.kind": "embedding", "embedding.names": "bad, zrk", "output.name": "n"})
    files = ("bad-best.pt", "zrk-best.pt")
    assert called("embedding", job, files, 1, "a girl", "Bad, blurry") == "a girl zrk-best | bad-best, blurry"
    assert called("embedding", job, files, 1, "", "bad, blurry zrk") == " | bad-best, blurry zrk-best"


def test_calls_of_the_runs_own_files_do_not_act_beside_those_of_the_row() -> None:
    job = from_values({"output.name": "n"})
    pasted = "a <lora:n:1> cat <lora:n-step00000002:0.5> <lora:n> <lora:nx:1> <lora:n-b:1> <hypernet:n:1>"
    others = "a cat <lora:nx:1> <lora:n-b:1> <hypernet:n:1>"
    assert called("lora", job, ("n-best.safetensors",), 0, pasted) == others
    assert called("lora", job, ("n-best.safetensors",), 0.5, pasted) == f"{others} <lora:n-best:0.5>"
    assert called("lora", job, ("n.safetensors",), 1, "<lora:n-best:1>") == "<lora:n:1>"
    job = from_values({"network.kind": "embedding", "output.name": "zrk"})
    pasted = "zrk-step00000009, zrk-best, zrk-bestow"
    assert called("embedding", job, ("zrk.pt",), 1, pasted) == "zrk, zrk, zrk-bestow"


def test_an_embeddings_files_are_drawn_one_a_row(watched: Watched, pictures: Path) -> None:
    changes = {
        "network__kind": "embedding",
        "output__name": "zrk",
        "preview__prompt": "a zrk",
        "dataset__trigger_word": "",
    }
    assert watched.run(pictures, **SAVED, **changes, embedding__learning_rate=0.5).state == "finished"
    made: list[Image.Image] = []
    real = watched.host.preview

    def preview(request: PreviewRequest) -> Image.Image:
        made.append(real(request))
        return made[-1]

    watched.host.preview = preview  # type: ignore[method-assign]
    view = drawn(watched, pictures, **changes)
    assert view.state == "finished" and len(made) == 3 and len({one.tobytes() for one in made}) == 3
    assert [str(note) for note in view.notes] == [
        "Embeddings have no weight, so there is one picture of each file and prompt."
    ]


def test_a_large_grid_is_made_of_smaller_pictures(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.run(pictures, **SAVED)
    monkeypatch.setattr(steps_grid, "MOST_PIXELS", 6 * 32 * 32)
    watched.host.preview = lambda request: Image.new("RGB", (64, 64), "#ff0000")  # type: ignore[method-assign]
    view = drawn(watched, pictures)
    assert view.output is not None
    with Image.open(view.output) as grid:
        assert grid.convert("RGB").getdata().__len__() < 300 * 200


def test_the_command_draws_them(
    watched: Watched, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watched.run(pictures, **SAVED)
    dump_job(make_job(pictures, **SAVED), tmp_path / "job.toml")
    given = ["--checkpoint", str(watched.host.checkpoint), "--root", str(watched.host.root)]
    assert main(["steps-grid", str(tmp_path / "job.toml"), *given, "--weights", "1", "--most", "2"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    with Image.open(path) as grid:
        assert grid.height > 2 * 64
    assert main(["steps-grid", str(tmp_path / "job.toml"), *given, "--most", "0"]) == 2
    assert "from 1 to 100" in capsys.readouterr().err


def test_of_numbered_runs_the_command_draws_the_last_one(
    watched: Watched, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page knows which name a run was given; a job file has the one that was asked for."""
    folder = watched.host.lora_folder()
    folder.mkdir(parents=True)
    for name, seconds in {"learned": 1, "learned-2": 3, "learned-10": 2, "learned-2-step00000001": 3, "a-9": 9}.items():
        path = folder / f"{name}.safetensors"
        path.write_bytes((2).to_bytes(8, "little") + b"{}")
        os.utime(path, (seconds, seconds))
    numbered = make_job(pictures, output__existing="number")
    assert newest_run(make_job(pictures), watched.host).output.name == "learned"
    assert newest_run(numbered, watched.host).output.name == "learned-2"
    os.utime(folder / "learned-10.safetensors", (3, 3))
    assert newest_run(numbered, watched.host).output.name == "learned-10", "of one moment, the higher number"
    nothing = make_job(pictures, output__existing="number", output__name="b")
    assert newest_run(nothing, watched.host) == nothing
    dump_job(numbered, tmp_path / "job.toml")
    given = ["--checkpoint", str(watched.host.checkpoint), "--root", str(watched.host.root), "--set", "preview.steps=1"]
    assert main(["steps-grid", str(tmp_path / "job.toml"), *given, "--weights", "0"]) == 0
    said = capsys.readouterr()
    assert "What learned-10 has saved is drawn" in said.out + said.err
    assert "learned-10-" in said.out.splitlines()[-1]
