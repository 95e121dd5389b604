"""Nothing in a step makes the host wait for its device, whatever is learned and however.

All tensors are on the CPU, where nothing waits: what would be read of a card is counted.
`tests/networks/test_flat_on_a_card.py` asks a card itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_trainer.ports import HeldPart
from lib_trainer.training import loop
from lib_trainer.training.optimizers import _cpu_has_fused_adamw
from lib_trainer.training.plan import prepare
from lib_trainer.training.precision import _cpu_multiplies_fp16
from lib_trainer.training.run import run_plan
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from tests.support import ModelHost, draw_pictures, make_job, roots_of
from tests.training.waits import Waits, watched_steps

STEPS = 2
JOBS: dict[str, dict[str, Any]] = {
    "lora": {"training__batch_size": 2, "captions__shuffle": True, "captions__tag_dropout": 0.3},
    "lora, fp16": {"training__precision": "fp16", "network__max_norm": 1.0},
    "locon, EMA": {"network__kind": "locon", "optimizer__ema": True, "training__gradient_accumulation": 2},
    "loha, noise": {
        "network__kind": "loha", "noise__offset": 0.1, "noise__offset_random": True, "noise__pyramid_iterations": 2,
        "noise__perturbation": 0.1, "loss__weighting": "min_snr",
    },
    "lokr, losses": {"network__kind": "lokr", "loss__type": "huber", "loss__learned_weights": True},
    "dora, dropouts": {"network__dora": True, "network__dropout": 0.2, "network__rank_dropout": 0.2},
    "embedding": {"network__kind": "embedding", "output__name": "zrk-a", "training__clip_skip": 2},
    "pivotal, masks": {
        "network__kind": "pivotal", "embedding__names": "zrk-a", "masks__source": "file", "masks__prior": 0.5,
    },
    "hypernetwork": {"network__kind": "hypernetwork", "hypernetwork__dropout_structure": "0, 0.2, 0"},
    "checkpoint, EMA": {"network__kind": "checkpoint", "finetune__text_encoder_lr": 1e-6, "optimizer__ema": True},
    "difference": {
        "network__kind": "difference", "difference__base_steps": 1, "training__gradient_checkpointing": True,
    },
    "preserved": {"preserve__weight": 0.5, "dataset__trigger_word": "zrk"},
    "8 bits": {"training__weights": "fp8", "optimizer__text_encoder_lr": 0.0},
}  # fmt: skip


def waits_of(model: Any, folder: Path, root: Path, **changes: Any) -> Waits:
    job = make_job(folder, **{"training__max_steps": STEPS} | changes)
    host, told = ModelHost(model, root), list[ev.Event]()
    host.parts = lambda: {"unet": HeldPart(1, torch.float32)}  # type: ignore[method-assign]
    plan = prepare(job, host)
    with watched_steps(model, roots_of(model)) as waits:
        run_plan(plan, host, Control(), told.append)
    assert len([one for one in told if isinstance(one, ev.StepDone)]) == STEPS
    return waits


@pytest.mark.parametrize("kind", JOBS)
def test_nothing_in_a_step_is_waited_for(kind: str, diffusers_model: Any, tmp_path: Path) -> None:
    changes = dict(JOBS[kind])
    if "fp16" in kind and not _cpu_multiplies_fp16():
        pytest.skip("torch has no products in fp16 on the CPU")
    folder = draw_pictures(tmp_path / "set", 2)
    if "masks" in kind:
        for path in sorted(folder.glob("*.png")):
            Image.new("L", (64, 64), 100).save(path.with_name(f"{path.stem}-masklabel.png"))
    if kind == "difference":
        changes["difference__before"] = str(draw_pictures(tmp_path / "before", 2, side=72))
    found = waits_of(diffusers_model, folder, tmp_path, **changes).found
    asked = {one: count for one, count in found.items() if "step_unless" in one}
    assert found.keys() == asked.keys(), found
    assert sum(asked.values()) <= STEPS, "an optimizer that is not fused is asked once"
    assert not asked or not _fused()


def _fused() -> bool:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=_cpu_has_fused_adamw() or None)
    return getattr(optimizer, "_step_supports_amp_scaling", False)


READS: dict[str, Any] = {
    "a number": lambda loss: float(loss),
    "a question": lambda loss: bool(loss > 0),
    "a list": lambda loss: loss.tolist(),
    "a copy": lambda loss: loss.cpu(),
    "a mask": lambda loss: loss[loss > 0],
    "places": lambda loss: loss.nonzero(),
}


@pytest.mark.parametrize("what", READS)
def test_what_waits_is_noticed(
    what: str, diffusers_model: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = loop._backward

    def backward(loss: torch.Tensor, *args: Any) -> torch.Tensor:
        READS[what](loss.detach().reshape(1))
        return own(loss, *args)

    monkeypatch.setattr(loop, "_backward", backward)
    found = waits_of(diffusers_model, pictures, tmp_path).found
    assert sum(count for one, count in found.items() if "step_unless" not in one) >= STEPS
