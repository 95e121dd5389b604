"""A seed draws the same picture, bit for bit, with the host's model before and after every kind of training.

The standalone host, which draws with its own samplers: on the CPU, and on a card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer.config import from_values
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.ports import PreviewRequest
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.work.monitor import RunView
from tests.card import CPU, DEVICES, ON_A_CARD, settled
from tests.support import Tiny, differences, draw_pictures, job_values, roots_of, snapshot

RATE = {"optimizer__unet_lr": 1e-2, "optimizer__text_encoder_lr": 1e-2}
JOBS: dict[str, dict[str, Any]] = {
    "lora": RATE,
    "dora": RATE | {"network__dora": True},
    "loha": RATE | {"network__kind": "loha"},
    "lokr": RATE | {"network__kind": "lokr"},
    "hypernetwork": {"network__kind": "hypernetwork", "hypernetwork__learning_rate": 0.1},
    "embedding": {"network__kind": "embedding", "output__name": "zrk", "embedding__learning_rate": 1.0},
    "pivotal": RATE | {"network__kind": "pivotal", "embedding__names": "zrk-a"},
    "checkpoint": {"network__kind": "checkpoint", "finetune__unet_lr": 1e-2, "finetune__difference_rank": 2},
}
SAMPLERS = ("DDIM", "Euler", "Euler a", "DPM++ 2M Karras")


def picture(host: StandaloneHost, sampler: str = "DDIM") -> bytes:
    request = PreviewRequest("a disc", width=64, height=64, steps=3, seed=3, sampler=sampler)
    return bytes(host.preview(request).tobytes())


def run(host: StandaloneHost, pictures: Path, **changes: Any) -> RunView:
    desk = TrainingDesk(host)
    desk.start(from_values(job_values(pictures, **changes)))
    view = desk.wait(300)
    assert view is not None
    assert (view.state, view.error) == ("finished", "")
    return view


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("job", JOBS)
def test_a_seed_draws_the_same_before_and_after(tiny: Tiny, tmp_path: Path, device: torch.device, job: str) -> None:
    """And in between what has been learned."""
    host = StandaloneHost(tiny.path, tmp_path, device)
    model: Any = host.model()
    before, drawn = snapshot(*roots_of(model)), picture(host)
    bytes_before = settled(device)
    previews = {"preview__prompt": "zrk, a disc", "preview__every": 2, "preview__steps": 2}
    changes = {"training__max_steps": 4, "training__precision": "auto" if device.type == "cuda" else "fp32"}
    view = run(host, draw_pictures(tmp_path / "set", 2), **previews, **changes | JOBS[job])
    assert picture(host) == drawn
    assert differences(before, snapshot(*roots_of(model))) == []
    assert settled(device, bytes_before) <= bytes_before
    first, last = (one.image.tobytes() for one in view.previews)
    assert first != last, "the previews show what was learned between them"


@pytest.mark.parametrize("device", [ON_A_CARD])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_on_a_card_as_on_the_cpu(
    tiny: Tiny, tmp_path: Path, device: torch.device, sampler: str
) -> None:
    """From the same noise, to within a level or two of 255 in the mean."""
    mine, theirs = (
        torch.frombuffer(bytearray(picture(StandaloneHost(tiny.path, tmp_path, one), sampler)), dtype=torch.uint8)
        for one in (device, CPU)
    )
    assert float((mine.int() - theirs.int()).abs().float().mean()) < 2


@pytest.mark.parametrize("device", [ON_A_CARD])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_seed_gives_the_same_curve_twice_on_a_card(
    tiny: Tiny, tmp_path: Path, device: torch.device, precision: str
) -> None:
    """To what the order makes in which a card's kernels add."""
    pictures, curves = draw_pictures(tmp_path / "set", 2), []
    host = StandaloneHost(tiny.path, tmp_path, device)
    for number in range(2):
        changes = {"training__precision": precision, "training__max_steps": 8, "output__name": f"zrk{number}"}
        curves.append(torch.tensor([point.loss for point in run(host, pictures, **changes).curve]))
    assert len(curves[0]) > 1 and bool(curves[0].isfinite().all())
    torch.testing.assert_close(*curves, rtol=0.01, atol=0.0)
