"""What a job is reckoned to need, and that a reckoning is told and never refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_trainer import events as ev
from lib_trainer.training import memory_need as module
from lib_trainer.training.memory_need import GIB, memory_need
from tests.support import make_job
from tests.training.watched import Watched

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SD1 = {"unet": 860_000_000, "te1": 123_000_000}
JOB = {"network__kind": "checkpoint", "dataset__width": 512, "dataset__height": 512, "training__precision": "fp16"}


def test_the_parts_of_a_whole_checkpoint(pictures: Path) -> None:
    def need(device: torch.device = CUDA, **changes: object) -> float:
        found = memory_need(make_job(pictures, **{**JOB, **changes}), SD1, device)
        assert found is not None
        return found / GIB

    base = need()
    assert need(finetune__ema=True) - base == pytest.approx(4 * 860e6 / GIB, rel=1e-3)
    assert need(finetune__text_encoder_lr=1e-6) - base == pytest.approx(16 * 123e6 / GIB, rel=1e-3)
    assert need(optimizer__name="AdamW8bit") - base == pytest.approx(-6 * 860e6 / GIB, rel=1e-3)
    assert need(training__batch_size=2) - base == pytest.approx(1.1, rel=1e-3), "counted: 3.76 - 2.66 GiB"
    assert need(training__batch_size=4) < 19, "18.8 GiB were counted on an RTX 4090, which has 24"
    assert need(training__gradient_checkpointing=True) < base
    assert memory_need(make_job(pictures), SD1, CPU) is None


def test_too_little_memory_is_told_and_the_run_goes_on(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 10 * 2**20)
    view = watched.run(pictures, network__kind="checkpoint", training__max_steps=1)
    assert view.state == "finished"
    (told,) = (message for message in watched.of(ev.Message) if "needs about" in message.text)
    assert told.level == "warning" and "GiB are free" in told.text and watched.events[0] is told


def test_what_fits_is_not_warned_of(watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 10 * 2**30)
    assert module.memory_warning(make_job(pictures, network__kind="checkpoint"), watched.host) is None
