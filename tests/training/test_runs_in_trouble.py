"""Runs that end in trouble: what is kept, what is said, and that the host is not harmed.

The `host` fixture checks after each of them that the model is untouched and draws what it drew.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer import files
from lib_trainer.kinds.registry import kind_of
from lib_trainer.networks.formats.lora_file import read_lora
from lib_trainer.training.failures import what_to_lower
from lib_trainer.work import events as ev
from tests.support import assert_same_training, make_job
from tests.training.watched import Watched, one_sentence, raising, weights_after


def test_a_nan_loss_ends_the_run_with_the_last_good_weights(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, earlier = (weights_after(watched.host, pictures, steps) for steps in (2, 1))
    _predict_with(watched, monkeypatch, 3, lambda out: out * float("nan"))
    view = watched.run(pictures, training__max_steps=5)
    monkeypatch.undo()
    assert (view.state, view.step) == ("failed", 2)
    sentence = one_sentence(view.error)
    assert (
        "The loss is nan at step 3" in sentence and "weights of step 2" in sentence and "optimizer.unet_lr" in sentence
    )
    assert watched.files == ["learned-step00000002.safetensors"]
    assert view.output == watched.host.lora_folder() / watched.files[0]
    assert_same_training(watched.tensors(watched.files[0]), expected, apart=earlier)


def test_gradients_that_are_not_finite_end_the_run(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return gradient * float("inf")

    _predict_with(watched, monkeypatch, 2, Poison.apply)
    view = watched.run(pictures)
    assert view.state == "failed" and "The gradients are not finite at step 2" in one_sentence(view.error)
    assert all(bool(t.isfinite().all()) for t in watched.tensors(watched.files[0]).values())


FIRST = "learned-step00000001.safetensors"


class TurnsBad(torch.optim.SGD):
    """Its second step makes infinite weights of gradients that are numbers."""

    def step(self, closure: Any = None) -> Any:
        self.made = getattr(self, "made", 0) + 1
        if self.made == 2:
            for group in self.param_groups:
                group["lr"] = float("inf")
        return super().step(closure)


@pytest.mark.parametrize("steps, save_every, kept", [(2, 0, []), (2, 1, [FIRST]), (4, 1, [FIRST])])
def test_weights_that_are_no_numbers_are_not_written(
    watched: Watched, pictures: Path, steps: int, save_every: int, kept: list[str]
) -> None:
    """The loss of a step after them would say so, and after the last one there is none; nor before a file between."""
    job = {"optimizer__name": "by path", "optimizer__class_path": f"{__name__}.TurnsBad"}
    view = watched.run(pictures, **job, training__max_steps=steps, output__save_every=save_every)
    assert (view.state, view.step) == ("failed", 2)
    sentence = one_sentence(view.error)
    assert sentence.startswith("Step 2 has made weights that are no numbers") and "optimizer.unet_lr" in sentence
    assert watched.files == kept
    assert view.output == (watched.host.lora_folder() / kept[0] if kept else None)


def test_a_nan_in_the_first_step_leaves_no_file(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _predict_with(watched, monkeypatch, 1, lambda out: out * float("nan"))
    view = watched.run(pictures)
    assert view.state == "failed" and view.output is None and watched.files == []


def _predict_with(watched: Watched, monkeypatch: pytest.MonkeyPatch, call: int, change: Callable[..., Any]) -> None:
    """Let the `call`-th prediction come out otherwise."""
    model = watched.host.model()
    real, calls = model.predict, 0

    def predict(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return change(real(*args)) if calls == call else real(*args)

    monkeypatch.setattr(model, "predict", predict)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
@pytest.mark.parametrize("call", [1, 3])
def test_out_of_memory_says_what_to_lower(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, call: int
) -> None:
    def exhausted(out: object) -> None:
        raise error

    _predict_with(watched, monkeypatch, call, exhausted)
    view = watched.run(pictures, training__batch_size=2, training__precision="bf16")
    sentence = one_sentence(view.error)
    assert view.state == "failed" and "ran out of memory" in sentence
    for what in ("training.batch_size (now 2)", "training.gradient_checkpointing", "64×64", "network.rank (now 4)"):
        assert what in sentence
    assert watched.files == ([] if call == 1 else ["learned-step00000002.safetensors"])


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({}, "preview.width and preview.height (now 64×96)"),
        ({"preview__width": 128}, "preview.width and preview.height (now 128×96)"),
        ({"preview__height": 32}, "preview.width and preview.height (now 64×32)"),
    ],
    ids=["the pictures'", "its own width", "its own height"],
)
def test_a_preview_too_large_is_told_by_its_own_size(pictures: Path, sizes: dict[str, int], told: str) -> None:
    job = make_job(pictures, dataset__width=64, dataset__height=96, **sizes)
    assert told in str(what_to_lower(job, kind_of(job), "preview", torch.device("cpu")))


def test_what_is_told_to_lower_hangs_on_where_the_run_is(pictures: Path) -> None:
    job = make_job(pictures, training__batch_size=3, training__max_tokens=150, dataset__width=64, dataset__height=96)

    def told(point: Any) -> str:
        return str(what_to_lower(job, kind_of(job), point, torch.device("cpu")))

    sides, batch = "dataset.width and dataset.height (now 64×96)", "training.batch_size (now 3)"
    for point in ("step", "measuring", "setup"):
        assert sides in told(point) and batch in told(point)
        assert ("network.rank" in told(point)) is (point != "measuring")
        assert ("training.gradient_checkpointing" in told(point)) is (point != "measuring")
    assert "prior.class_folder" in told("class pictures") and sides in told("class pictures")
    assert sides in told("encoding") and batch not in told("encoding")
    assert "training.max_tokens" in told("captions") and "150" in told("captions")
    assert not any(field in told(point) for point in ("loading", "saving", "finishing") for field in (sides, batch))


def test_the_log_says_where_memory_ran_out(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The frames are let go of on the way out, in the loop and around it; what they said is kept as text."""

    def greedy(out: object) -> None:
        raise RuntimeError("CUDA out of memory")

    _predict_with(watched, monkeypatch, 2, greedy)
    assert watched.run(pictures).state == "failed"
    assert "in greedy" in caplog.text and "in predict" in caplog.text


def test_out_of_memory_in_the_backward_pass_and_in_the_optimizer(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Greedy(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("lib_trainer.training.preparation.make_optimizer", lambda groups, config: Greedy(groups))
    view = watched.run(pictures)
    assert view.state == "failed" and "ran out of memory" in view.error and watched.files == []


def test_a_step_that_loss_scaling_skips_moves_no_average(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler finds an overflow in step 2 of 3: what a recipe does after a step is done twice."""
    from lib_trainer.training import preparation
    from lib_trainer.training.average import Average

    class Scaler:
        steps = 0

        def is_enabled(self) -> bool:
            return True

        def scale(self, loss: torch.Tensor) -> torch.Tensor:
            return loss

        def unscale_(self, learned: Any) -> None:
            self.steps += 1
            if self.steps == 2:
                learned[0].grad.fill_(float("inf"))

        def update(self, bad: torch.Tensor) -> None:
            assert bool(bad) == (self.steps == 2)

    told: list[int] = []
    monkeypatch.setattr(preparation, "loss_scaler", lambda device, dtype: Scaler())
    monkeypatch.setattr(Average, "after_step", lambda self, step: told.append(step))
    view = watched.run(pictures, optimizer__ema=True)
    assert view.state == "finished" and told == [1, 3]
    assert [event.applied for event in watched.of(ev.StepDone)] == [True, False, True]


@pytest.mark.parametrize("kind", [ev.Phase, ev.Started, ev.StepDone, ev.PreviewMade, ev.Saved])
def test_a_listener_that_raises(watched: Watched, pictures: Path, kind: type) -> None:
    watched.react = raising(kind, ValueError("the page is gone"))
    view = watched.run(pictures, preview__prompt="x", preview__every=1, output__save_every=2)
    assert view.state == "failed" and "the page is gone" in view.error
    assert isinstance(watched.events[-1], ev.Failed)
    kept = {
        ev.Phase: [],
        ev.Started: [],
        ev.StepDone: ["learned-step00000001.safetensors"],
        ev.PreviewMade: ["learned-step00000001.safetensors"],
        ev.Saved: ["learned-step00000002.safetensors"],
    }[kind]
    assert watched.files == kept
    assert view.output == (watched.host.lora_folder() / kept[-1] if kept else None)


def test_a_listener_that_cannot_bear_the_end_changes_nothing_about_it(
    watched: Watched, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched.react = raising(ev.Finished, ValueError("the page is gone"))
    view = watched.run(pictures)
    assert view.state == "finished" and watched.files == ["learned.safetensors"]
    assert "the page is gone" in caplog.text


def test_a_listener_that_raises_while_a_preview_fails(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is out of its training state then, and must not be put back twice."""

    def broken(request: object) -> None:
        raise RuntimeError("no picture")

    monkeypatch.setattr(watched.host, "preview", broken)
    watched.react = raising(ev.Message, ValueError("the page is gone"))
    view = watched.run(pictures, preview__prompt="x", preview__every=1)
    assert view.state == "failed" and "the page is gone" in view.error
    assert watched.files == ["learned-step00000001.safetensors"]


@pytest.mark.parametrize("place, what", [(os, "fsync"), (files, "_temporary")])
def test_a_full_disk_keeps_the_earlier_file(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch, place: Any, what: str
) -> None:
    real = getattr(place, what)

    def full(*args: Any, **kwargs: Any) -> Any:
        if watched.of(ev.Saved):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    monkeypatch.setattr(place, what, full)
    view = watched.run(pictures, output__save_every=1)
    monkeypatch.undo()
    assert view.state == "failed" and view.step == view.total_steps, "what was still to be learned was learned"
    assert any("Warning" in line and "learned-step00000002.safetensors" in line for line in view.log)
    sentence = one_sentence(view.error)
    assert "No space left on device" in sentence and "learned.safetensors" in sentence and "free some space" in sentence
    assert watched.files == ["learned-step00000001.safetensors"]
    assert view.output == watched.host.lora_folder() / "learned-step00000001.safetensors"
    assert read_lora(view.output).metadata["ss_steps"] == "1"


def test_a_name_that_is_taken_while_the_run_goes_on(watched: Watched, pictures: Path) -> None:
    """What has come there stays as it is; the run says so by its name, and keeps what it learned under its step's."""
    place = watched.host.lora_folder() / "learned.safetensors"

    def take(event: ev.Event) -> None:
        if isinstance(event, ev.StepDone) and event.step == 1:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"another's")

    watched.react = take
    view = watched.run(pictures, training__max_steps=2)
    sentence = one_sentence(view.error)
    assert view.state == "failed" and "learned.safetensors" in sentence and "exists" in sentence
    assert watched.files == ["learned-step00000002.safetensors", "learned.safetensors"]
    assert place.read_bytes() == b"another's"
    assert view.output == place.with_name("learned-step00000002.safetensors")
    assert read_lora(view.output).metadata["ss_steps"] == "2"


def test_a_folder_that_cannot_be_made(watched: Watched, pictures: Path) -> None:
    """A file takes its place after the checks."""
    place = watched.host.root / "taken"
    watched.react = lambda event: place.write_text("") and None if isinstance(event, ev.Started) else None
    view = watched.run(pictures, output__folder=str(place / "inner"), training__max_steps=1)
    assert view.state == "failed" and "learned.safetensors could not be written" in one_sentence(view.error)


def test_a_run_after_a_failed_one(watched: Watched, pictures: Path) -> None:
    watched.react = raising(ev.StepDone, ValueError("once"))
    assert watched.run(pictures).state == "failed"
    watched.react = lambda event: None
    view = watched.run(pictures, output__name="again")
    assert view.state == "finished" and view.error == ""
