"""The forecast against torch's own peak on an NVIDIA card: whole runs of SD1's size with random weights."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.memory import build, shape_of
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.ports import HeldPart
from lib_trainer.training.forecast import Place, forecast
from lib_trainer.training.memory_table import tables
from lib_trainer.training.plan import prepare
from lib_trainer.training.precision import DTYPES
from lib_trainer.training.run import run_plan
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from tests.support import ModelHost, draw_pictures, make_job, tiny_schedule

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
    def device(self) -> torch.device:
        return CARD

    def parts(self) -> dict[str, HeldPart]:
        roots = self.loaded.roots()  # type: ignore[attr-defined]
        return {part: HeldPart.of(root, CARD) for part, root in roots.items()}


@pytest.fixture(scope="module")
def model() -> LdmModel:
    """As a WebUI on a card holds it: all of it in fp16 there."""
    with torch.device(CARD):
        made = build(shape_of("sd1"))
    made.schedule = tiny_schedule()  # a host's is on the CPU
    for root in (made.unet, made.vae, made.text.encoders[0].module):
        root.half()
    made.unet.dtype = torch.float16
    return made


@pytest.mark.parametrize("name", JOBS)
def test_a_forecast_is_within_a_tenth_of_the_cards_peak(model: LdmModel, tmp_path: Path, name: str) -> None:
    usual = {"dataset__width": 512, "dataset__height": 512, "training__precision": "bf16", "network__rank": 32}
    pictures = draw_pictures(tmp_path / "pictures", side=512)
    job = make_job(pictures, **usual | JOBS[name], output__name="zrk")
    place = Place(CARD, DTYPES[job.training.precision], dict.fromkeys(("unet", "te1", "vae"), torch.float16))
    foreseen = forecast(job, tables()["sd1"], place).device
    host = _CardHost(model, tmp_path)
    plan = prepare(job, host)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(CARD)
    peaks = [0]

    def emit(event: ev.Event) -> None:
        """The run lets the peak be counted anew when its steps begin."""
        peaks.append(torch.cuda.max_memory_allocated(CARD))

    run_plan(plan, host, Control(), emit)
    peak = max(*peaks, torch.cuda.max_memory_allocated(CARD))
    assert foreseen.total / peak == pytest.approx(1, abs=0.1), f"{foreseen} against {peak / 2**30:.2f} GiB"
