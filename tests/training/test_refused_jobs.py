"""Jobs that are refused in one sentence before the model is touched, and outputs that exist."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.kinds.registry import kind_of
from lib_trainer.networks.formats.lora_file import read_lora
from lib_trainer.refusals import ConfigError, DatasetError, ModelError, TrainerError
from lib_trainer.training import loop, precision
from lib_trainer.training.checks import output_folder
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.prior import check_prior
from lib_trainer.work import events as ev
from tests.support import make_job
from tests.training.watched import PATIENCE, Watched, at_step, one_sentence


def refused(watched: Watched, pictures: Path, error: type[TrainerError], **changes: Any) -> str:
    with pytest.raises(error) as raised:
        watched.runner.start(make_job(pictures, **changes), watched)
    assert not watched.runner.running and watched.events == [] and watched.files in ([], ["learned.safetensors"])
    return one_sentence(str(raised.value))


@pytest.mark.parametrize("existing", ["learned.safetensors", "learned-step00000012.safetensors"])
def test_an_output_that_exists(watched: Watched, pictures: Path, existing: str) -> None:
    watched.host.lora_folder().mkdir()
    path = watched.host.lora_folder() / existing
    path.write_bytes(b"precious")
    with pytest.raises(ConfigError, match=f"output.name = 'learned': .*{existing} exists already: choose another name"):
        watched.runner.start(make_job(pictures))
    assert path.read_bytes() == b"precious"


def test_an_output_that_appears_during_the_run_is_kept(watched: Watched, pictures: Path) -> None:
    path = watched.host.lora_folder() / "learned.safetensors"

    def appear() -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"precious")

    watched.react = at_step(2, appear)
    view = watched.run(pictures)
    assert view.state == "failed" and "exists already" in one_sentence(view.error)
    assert path.read_bytes() == b"precious"
    assert view.output is not None and read_lora(view.output).metadata["ss_steps"] == "3", (
        "what was learned is not lost"
    )


def test_a_second_run_is_refused(watched: Watched, pictures: Path) -> None:
    going, may_go = threading.Event(), threading.Event()

    def react(event: ev.Event) -> None:
        if isinstance(event, ev.StepDone) and event.step == 1:
            going.set()
            may_go.wait(PATIENCE)

    watched.react = react
    watched.runner.start(make_job(pictures, training__max_steps=2), watched)
    assert going.wait(PATIENCE)
    with pytest.raises(ConfigError, match="already under way: wait for it or stop it"):
        watched.runner.start(make_job(pictures, output__name="second"))
    may_go.set()
    view = watched.runner.wait(PATIENCE)
    assert view is not None and view.state == "finished"


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"dataset__width": 100}, "dataset.width = 100 is not a multiple of 64: take 128"),
    ({"dataset__height": 72}, "dataset.height = 72 is not a multiple of 64: take 64"),
    (
        {"buckets__enabled": True, "buckets__step": 32, "buckets__low": 64},
        "buckets.step = 32 is not a multiple of 64: take 64",
    ),
    ({"buckets__enabled": True}, "buckets.low = 256 leaves no bucket for 64x64"),
    ({"buckets__enabled": True, "buckets__low": 64, "buckets__high": 64, "dataset__width": 128}, "buckets.high = 64"),
    (
        {"buckets__enabled": True, "buckets__low": 64, "buckets__resolutions": "128, big"},
        "buckets.resolutions has 'big': write sides",
    ),
    (
        {"buckets__enabled": True, "buckets__low": 64, "buckets__resolutions": "100x128"},
        "buckets.resolutions has 100x128, which are not multiples of 64",
    ),
    ({"preview__width": 100}, "preview.width = 100"),
    ({"preview__height": 8}, "preview.height = 8"),
    (
        {"optimizer__unet_lr": 0, "optimizer__text_encoder_lr": 0},
        "optimizer.unet_lr and optimizer.text_encoder_lr are both 0",
    ),
    ({"preview__sampler": "Nope"}, "preview.sampler = 'Nope' is not known here: take one of DDIM"),
    ({"training__precision": "fp16"}, "training.precision = 'fp16' needs a GPU"),
    ({"training__weights": "fp8", "network__dora": True}, "training.weights = 'fp8' does not go with network.dora"),
    (
        {"training__weights": "fp8", "network__kind": "checkpoint", "finetune__unet_lr": 1e-6},
        "training.weights = 'fp8' is for weights that are not trained",
    ),
    ({"optimizer__name": "AdamW8bit"}, "optimizer.name = 'AdamW8bit' needs an NVIDIA card"),
    (
        {"optimizer__unet_lr": 0, "optimizer__text_encoder_share": 0.5},
        "optimizer.text_encoder_share ends the learning of the text encoder, and nothing else learns",
    ),
    ({"optimizer__arguments": "momentum=1"}, "optimizer.arguments: AdamW has no argument 'momentum'"),
    (
        {"optimizer__name": "by path", "optimizer__class_path": "torch.nope"},
        "optimizer.class_path = 'torch.nope' cannot be had",
    ),
]


def test_fields_that_cannot_be(watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_multiplies_fp16", lambda: False)  # as torch before 2.4
    for changes, said in IMPOSSIBLE:
        assert said in refused(watched, pictures, ConfigError, **changes)


def test_an_output_folder_that_is_a_file(watched: Watched, pictures: Path) -> None:
    (watched.host.root / "file").write_text("")
    assert "is a file: choose a folder" in refused(
        watched, pictures, ConfigError, output__folder=str(watched.host.root / "file")
    )


def test_folders_on_a_drive_that_is_away(watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows not even the root of a path has to be there."""
    job = make_job(pictures, output__folder="/x/y", prior__class_prompt="disc", prior__class_folder="/x/y")
    with monkeypatch.context() as away:
        away.setattr(os.path, "lexists", lambda path: False)
        away.setattr(os, "access", lambda *_: False)
        away.setattr(Path, "exists", lambda path: False)
        with pytest.raises(ConfigError, match="cannot be written to: choose another folder"):
            output_folder(job, kind_of(job), watched.host)
        with pytest.raises(ConfigError, match="cannot be written to, and pictures are missing"):
            check_prior(job, kind_of(job))


def test_folders_without_pictures(watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("", str(tmp_path / "gone"), str(tmp_path / "empty")):
        refused(watched, tmp_path, DatasetError, dataset__folder=folder)


def test_no_checkpoint(pictures: Path, tmp_path: Path) -> None:
    for checkpoint, said in (
        (None, "No checkpoint is given"),
        (tmp_path / "gone.safetensors", "There is no checkpoint"),
    ):
        runner = TrainingDesk(StandaloneHost(checkpoint, tmp_path))
        with pytest.raises(ModelError, match=said):
            runner.start(make_job(pictures))
        assert runner.view() is None


def test_a_checkpoint_that_cannot_be_trained_is_refused_before_the_run(pictures: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\0" * 64)
    runner = TrainingDesk(StandaloneHost(broken, tmp_path))
    with pytest.raises(ModelError, match=r"broken\.safetensors is not a readable \.safetensors file"):
        runner.start(make_job(pictures))
    assert runner.view() is None


def test_finite() -> None:
    assert loop._finite(1.0) and not loop._finite(float("nan")) and not loop._finite(float("-inf"))
