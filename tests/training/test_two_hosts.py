"""The same job on both hosts, on one host twice, and with what must not matter switched on and off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer.networks.formats.lora_file import read_lora
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.ports import TrainingState
from lib_trainer.training.objective import Noised, Objective
from lib_trainer.training.plan import prepare
from lib_trainer.training.precision import autocast
from lib_trainer.training.run import run_plan
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from tests.support import ModelHost, assert_same_training, draw_pictures, make_job, network_difference, relative

State = dict[str, torch.Tensor]
CPU = torch.device("cpu")
LARGE = {"dataset__width": 128, "dataset__height": 128}


def train(model: Any, pictures: Path, root: Path, **changes: Any) -> State:
    """Run a job to its end on a model; returns the file's tensors."""
    host = ModelHost(model, root)
    seen: list[ev.Event] = []
    run_plan(prepare(make_job(pictures, **changes), host), host, Control(), seen.append)
    finished = seen[-1]
    assert isinstance(finished, ev.Finished) and finished.path is not None
    assert all(step.loss == step.loss for step in seen if isinstance(step, ev.StepDone))
    return read_lora(finished.path).tensors


def moved(tensors: State) -> float:
    return float(sum(t.double().norm() for name, t in tensors.items() if "lora_up" in name))


def test_ldm_and_diffusers_learn_the_same(ldm_model: Any, diffusers_model: Any, pictures: Path, tmp_path: Path) -> None:
    changes = {"training__max_steps": 10} | LARGE
    one = train(ldm_model, pictures, tmp_path / "ldm", **changes)
    other = train(diffusers_model, pictures, tmp_path / "diffusers", **changes)
    assert moved(one) > 0.1
    assert network_difference(one, other) < 1e-3
    ups = [name for name in one if "lora_up" in name]
    assert max(relative(one[name], other[name]) for name in ups) < 0.02
    assert network_difference({n: one[n] for n in ups}, {n: other[n] for n in ups}) < 1e-3


@pytest.mark.parametrize("kind", ["ldm", "diffusers"])
def test_a_seed_decides_everything(kind: str, request: pytest.FixtureRequest, pictures: Path, tmp_path: Path) -> None:
    model = request.getfixturevalue(f"{kind}_model")
    one = train(model, pictures, tmp_path / "1", training__max_steps=2)
    torch.manual_seed(99)  # the global generator plays no part
    two = train(model, pictures, tmp_path / "2", training__max_steps=2)
    other = train(model, pictures, tmp_path / "3", training__max_steps=2, training__seed=6)
    assert network_difference(other, one) > 0.1
    assert_same_training(one, two, apart=train(model, pictures, tmp_path / "4", training__max_steps=1))


def gradients(
    model: Any, *, checkpointing: bool = False, dtype: torch.dtype = torch.float32, batch: int = 2
) -> torch.Tensor:
    """All gradients of one step, for adapters that have learned something already."""
    targets = [target for target in model.adaptable_modules() if target.group == "transformer"]
    generator = torch.Generator().manual_seed(1)
    network = LoraNetwork.create(targets, 4, 4, generator)
    with torch.no_grad():
        for adapter in network:
            adapter.up.normal_(0, 0.02, generator=generator)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    objective = Objective(model.schedule)
    noised = objective.noised(latents, generator)
    with model.training(TrainingState(dtype, checkpointing, True)), network.applied():
        for start in range(0, 2, batch):
            part = slice(start, start + batch)
            with autocast(CPU, dtype):
                told = model.encode_text(["a disc", "a longer caption of a disc"][part], 1, 1)
                out = model.predict(noised.latents[part], noised.timesteps[part], told)
            asked = Noised(noised.latents[part], noised.timesteps[part], noised.target[part])
            (objective.loss(out, asked) * batch / 2).backward()
    found = [parameter.grad for parameter in network.parameters()]
    assert all(grad is not None and bool(grad.any()) for grad in found), "every adapter gets a gradient"
    return torch.cat([grad.flatten() for grad in found if grad is not None])


@pytest.mark.parametrize("kind", ["ldm", "diffusers"])
def test_what_must_not_change_the_gradients(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(f"{kind}_model")
    plain = gradients(model)
    assert relative(gradients(model, checkpointing=True), plain) < 1e-5
    assert relative(gradients(model, batch=1), plain) < 1e-5
    half = gradients(model, dtype=torch.bfloat16)
    assert relative(half, plain) < 0.1
    assert relative(gradients(model, dtype=torch.bfloat16, checkpointing=True), half) < 1e-5


def test_both_hosts_have_the_same_gradients(ldm_model: Any, diffusers_model: Any) -> None:
    assert relative(gradients(ldm_model), gradients(diffusers_model)) < 1e-4


def test_only_the_unet(diffusers_model: Any, pictures: Path, tmp_path: Path) -> None:
    tensors = train(diffusers_model, pictures, tmp_path, optimizer__text_encoder_lr=0)
    assert {name.split("_")[1] for name in tensors} == {"unet"}
    assert moved(tensors) > 0


def test_only_the_text_encoder(ldm_model: Any, pictures: Path, tmp_path: Path) -> None:
    tensors = train(ldm_model, pictures, tmp_path, optimizer__unet_lr=0)
    assert {name.split("_")[1] for name in tensors} == {"te"}
    assert moved(tensors) > 0


def test_cached_captions_learn_what_live_ones_learn(
    diffusers_model: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = train(
        diffusers_model, pictures, tmp_path / "1", optimizer__text_encoder_lr=0, training__batch_size=3, **LARGE
    )
    from lib_trainer.training import preparation

    class Live:
        def __init__(self, live: Any, *, encodes: bool) -> None:
            self.live, self.encodes = live, encodes

        def fill(self, *args: Any) -> None: ...

        def __call__(self, *args: Any) -> Any:
            with torch.no_grad():
                return self.live(*args)

    monkeypatch.setattr(preparation, "CachedCaptions", Live)
    live = train(
        diffusers_model, pictures, tmp_path / "2", optimizer__text_encoder_lr=0, training__batch_size=3, **LARGE
    )
    assert network_difference(cached, live) < 1e-4


def test_accumulated_batches_make_one_step(diffusers_model: Any, pictures: Path, tmp_path: Path) -> None:
    """Six pictures in batches of 2, 2 at a time: an epoch is two steps, and a step does not reach into the next one."""
    host, seen = ModelHost(diffusers_model, tmp_path), []  # type: ignore[var-annotated]
    job = make_job(
        pictures, training__max_steps=0, training__epochs=2, training__batch_size=2, training__gradient_accumulation=2
    )
    run_plan(prepare(job, host), host, Control(), seen.append)
    steps = [event for event in seen if isinstance(event, ev.StepDone)]
    assert [(step.step, step.epoch, step.total_steps) for step in steps] == [(1, 1, 4), (2, 1, 4), (3, 2, 4), (4, 2, 4)]
    assert [text for _, _, text in host.lease_.shown if text.startswith("loss")]


def test_alpha_zero_means_the_rank(diffusers_model: Any, pictures: Path, tmp_path: Path) -> None:
    tensors = train(diffusers_model, pictures, tmp_path, network__alpha=0.0, network__rank=3, training__max_steps=1)
    assert {float(value) for name, value in tensors.items() if name.endswith("alpha")} == {3.0}


def test_the_loss_falls(diffusers_model: Any, tmp_path: Path) -> None:
    """Beside that of a run which learns next to nothing from the same noise at the same steps."""
    folder, losses = draw_pictures(tmp_path / "set", 2), {}
    for rate in (1e-9, 0.1):
        host, seen = ModelHost(diffusers_model, tmp_path / str(rate)), []  # type: ignore[var-annotated]
        changes = {"training__batch_size": 2, "network__rank": 8, "optimizer__unet_lr": rate}
        job = make_job(folder, training__max_steps=12, optimizer__text_encoder_lr=0.0, **changes)
        run_plan(prepare(job, host), host, Control(), seen.append)
        losses[rate] = [event.loss for event in seen if isinstance(event, ev.StepDone)]
    assert sum(losses[0.1][-4:]) < 0.95 * sum(losses[1e-9][-4:])
    assert losses[0.1][0] == pytest.approx(losses[1e-9][0], rel=1e-5)
