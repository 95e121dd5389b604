"""Runs that are trained together give what each of them gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lib_trainer.config import JobConfig, from_values
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.kinds.recipe import parameters
from lib_trainer.ports import PreviewRequest
from lib_trainer.training.desk import TrainingDesk
from miniature.demo import CFG_SCALE, SAMPLER, SIDE
from miniature.export import export_webui
from miniature.stacked import save_file, stacked
from miniature.world import write_concept

COMMON: dict[str, Any] = {
    "dataset.width": SIDE, "dataset.height": SIDE, "dataset.cache": "disk", "network.rank": 4, "network.alpha": 2.0,
    "optimizer.unet_lr": 1e-2, "optimizer.text_encoder_lr": 1e-2, "training.batch_size": 1, "training.max_steps": 2,
    "training.precision": "fp32", "output.precision": "fp32", "output.existing": "replace",
}  # fmt: skip
OTHERS: dict[str, Any] = {
    "training.seed": 2, "loss.weighting": "debiased", "captions.dropout": 0.5, "optimizer.ema": True,
    "noise.offset": 0.1, "optimizer.schedule": "linear",
}  # fmt: skip


ON_A_CARD = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA card")]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=ON_A_CARD)])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    folder = tmp_path_factory.mktemp("stacked")
    return StandaloneHost(export_webui(folder / "model"), folder, torch.device(request.param))


@pytest.fixture(scope="module")
def jobs(host: StandaloneHost) -> list[JobConfig]:
    write_concept(host.root / "pictures", count=2, repeats=1)
    own = {**COMMON, "dataset.folder": str(host.root / "pictures")}
    return [from_values({**own, "output.name": "one"}), from_values({**own, **OTHERS, "output.name": "two"})]


def assert_alike(one: torch.Tensor, other: torch.Tensor, within: float, device: torch.device) -> None:
    """On a card convolutions round to TF32 and sums have no order, and AdamW makes whole steps of what is nearly 0."""
    assert one.shape == other.shape
    apart = (one.double() - other.double()).abs()
    if device.type == "cpu":
        assert float(apart.max()) <= within
    else:
        assert float(apart.norm()) <= 0.1 * float(other.double().norm())


def test_runs_of_a_stack_are_those_of_their_jobs(host: StandaloneHost, jobs: list[JobConfig], tmp_path: Path) -> None:
    with stacked(host, jobs) as stack:
        stack.train(tmp_path / "stack.pt", lambda text: None)
        for run, job in zip(stack.runs, jobs):
            save_file(run, tmp_path / f"{job.output.name}.safetensors")
        drawn = stack.pictures([[("zorb, red", 5)]] * 2, SIDE, CFG_SCALE, SAMPLER, 2)
    for job, (shown,) in zip(jobs, drawn):
        desk = TrainingDesk(host)
        desk.start(job)
        view = desk.wait()
        assert view is not None and view.output is not None, view
        alone, together = load_file(view.output), load_file(tmp_path / f"{job.output.name}.safetensors")
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            assert_alike(together[name], value, 2e-4, host.device())
        request = PreviewRequest(
            f"zorb, red <lora:{job.output.name}:1>",
            width=SIDE,
            height=SIDE,
            steps=2,
            cfg_scale=CFG_SCALE,
            sampler=SAMPLER,
        )
        (own,) = host.draw_seeds(request, [5])
        assert_alike(torch.from_numpy(np.array(own)), torch.from_numpy(np.array(shown)), 3, host.device())


def test_a_stack_that_was_ended_goes_on(
    host: StandaloneHost, jobs: list[JobConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miniature.stacked.KEPT_AFTER", 0.0)
    monkeypatch.setattr("miniature.stacked.TOLD_EVERY", 1)
    found = []

    def ended(text: str) -> None:
        raise KeyboardInterrupt(text)

    with pytest.raises(KeyboardInterrupt, match="step 1 of 2"), stacked(host, jobs) as stack:
        stack.train(tmp_path / "gone on.pt", ended)
    for name in ("gone on", "afresh"):
        with stacked(host, jobs) as stack:
            stack.train(tmp_path / f"{name}.pt", lambda text: None)
            found.append([one.detach().clone() for run in stack.runs for one in parameters(run.recipe)])
    assert len(found[0]) == 4  # UNet and text encoder of both
    for one, other in zip(*found, strict=True):
        assert_alike(one, other, 0, host.device())
