"""The forecast against torch's own peak on an NVIDIA card: whole runs of SD1's size with random weights."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.memory import build, shape_of
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.memory import forget_peak
from lib_trainer.ports import HeldPart
from lib_trainer.training import run as run_module
from lib_trainer.training.forecast import Place, forecast
from lib_trainer.training.memory_table import tables
from lib_trainer.training.plan import prepare
from lib_trainer.training.precision import DTYPES
from lib_trainer.training.run import run_plan
from lib_trainer.work.control import Control
from tests.support import ModelHost, draw_pictures, make_job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA card"),
]
CARD = torch.device("cuda", 0)
JOBS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora b4 768² checkpointing": {
        "training__batch_size": 4, "training__gradient_checkpointing": True,
        "dataset__width": 768, "dataset__height": 768,
    },
    "locon b2": {"network__kind": "locon", "training__batch_size": 2},
    "loha": {"network__kind": "loha"},
    "lokr b2": {"network__kind": "lokr", "training__batch_size": 2},
    "embedding b2": {"network__kind": "embedding", "training__batch_size": 2},
    "hypernetwork": {"network__kind": "hypernetwork"},
    "checkpoint": {"network__kind": "checkpoint"},
}  # fmt: skip


class _CardHost(ModelHost):
    """Tells the sizes of its model's parts, as a whole checkpoint wants to know them."""

    def device(self) -> torch.device:
        return CARD

    def parts(self) -> dict[str, HeldPart]:
        return {part: HeldPart.of(root, CARD) for part, root in self.loaded.roots().items()}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def model() -> LdmModel:
    """As a WebUI on a card holds it: all of it in fp16 there."""
    with torch.device(CARD):
        made = build(shape_of("sd1"))
    for root in (made.unet, made.vae, made.text.encoders[0].module):
        root.half()
    made.unet.dtype = torch.float16
    return made


@pytest.mark.parametrize("name", JOBS)
def test_a_forecast_is_within_a_tenth_of_the_cards_peak(
    model: LdmModel, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the steps, and of the whole run, which may need more while it encodes."""
    usual = {"dataset__width": 512, "dataset__height": 512, "training__precision": "bf16", "network__rank": 32}
    pictures = draw_pictures(tmp_path / "pictures", side=512)
    job = make_job(pictures, **usual | JOBS[name], output__name="zrk")
    place = Place(CARD, DTYPES[job.training.precision], dict.fromkeys(("unet", "te1", "vae"), torch.float16))
    phases = {need.phase: need.total for need in forecast(job, tables()["sd1"], place).phases}
    host = _CardHost(model, tmp_path)
    plan = prepare(job, host)
    peaks: list[int] = []

    def noting(device: torch.device) -> None:
        """When the steps begin, the run lets the peak be counted anew."""
        peaks.append(torch.cuda.max_memory_allocated(device))
        forget_peak(device)

    monkeypatch.setattr(run_module, "forget_peak", noting)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(CARD)
    run_plan(plan, host, Control(), lambda event: None)
    peaks.append(torch.cuda.max_memory_allocated(CARD))
    ratios = {"training": phases["training"] / peaks[-1], "whole": max(phases.values()) / max(peaks)}
    found = f"{ratios}: {phases} foreseen, {peaks} at the peaks of preparing and training"
    print(name, found)
    assert all(0.9 < ratio < 1.1 for ratio in ratios.values()), found
