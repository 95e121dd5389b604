"""Masked losses: beside a formula of their own in double precision, in every kind and family, mixed in a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_trainer.config import LossConfig, MasksConfig
from lib_trainer.refusals import TrainerError
from lib_trainer.training.objective import Noised, Objective
from lib_trainer.work import events as ev
from tests.support import draw_pictures, tiny_schedule
from tests.training.watched import Watched

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "locon": {"network__kind": "locon", "network__conv_rank": 2},
    "loha": {"network__kind": "loha"},
    "lokr": {"network__kind": "lokr"},
    "pivotal": {"network__kind": "pivotal", "embedding__names": "zrk-a", "embedding__initial_text": "disc"},
    "embedding": {"network__kind": "embedding", "output__name": "zrk-b", "embedding__initial_text": "disc"},
    "hypernetwork": {"network__kind": "hypernetwork"},
    "checkpoint": {"network__kind": "checkpoint"},
    "difference": {"network__kind": "difference"},
}
WHITE = (8, 0, 40, 64)
"""(left, top, right, bottom) in pixels of a picture of 64²: cells 1 to 4 of 8 in each row."""


def masked_set(folder: Path, count: int = 4) -> Path:
    """Every second picture has a mask."""
    draw_pictures(folder, count)
    for index in range(0, count, 2):
        mask = Image.new("L", (64, 64))
        mask.paste(255, WHITE)
        mask.save(folder / f"{index}-masklabel.png")
    return folder


def by_hand(
    prediction: torch.Tensor, target: torch.Tensor, masks: torch.Tensor, outside: float, normalise: bool
) -> float:
    """Picture by picture and place by place, in double precision."""
    losses = []
    for said, wanted, mask in zip(prediction.double(), target.double(), masks.double(), strict=True):
        weight = mask[0] * 1.0 + (1 - mask[0]) * outside
        squares = ((said - wanted) ** 2).mean(0)
        area = float(weight.sum()) if normalise else weight.numel()
        losses.append(float((squares * weight).sum()) / area if area else 0.0)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("outside", [0.0, 0.3, 1.0])
def test_a_masked_loss_is_its_formula(outside: float, normalise: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    latents, said = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 4, 8, 8, generator=generator)
    masks = torch.rand(3, 1, 8, 8, generator=generator)
    masks[1], masks[2] = 1.0, 0.0
    objective = Objective(tiny_schedule(), masks=MasksConfig(outside=outside, normalise=normalise))
    noised = objective.noised(latents, torch.Generator().manual_seed(2), masks=masks)
    loss = float(objective.loss(said, noised))
    assert loss == pytest.approx(by_hand(said, noised.target, masks, outside, normalise), rel=1e-6)
    plain = objective.noised(latents, torch.Generator().manual_seed(2))
    assert torch.equal(plain.latents, noised.latents) and torch.equal(plain.timesteps, noised.timesteps)
    assert (loss == pytest.approx(float(objective.loss(said, plain)), rel=1e-6)) == (outside == 1.0)


def test_other_weights_and_losses_come_on_top() -> None:
    generator = torch.Generator().manual_seed(1)
    latents, said = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)
    masks, weights = torch.rand(2, 1, 8, 8, generator=generator), torch.tensor([0.5, 2.0])
    objective = Objective(tiny_schedule(), loss=LossConfig(type="l1"), masks=MasksConfig(normalise=False))
    noised = objective.noised(latents, generator, weights, masks)
    errors = (said.double() - noised.target.double()).abs() * masks.double()
    wanted = float((errors.flatten(1).mean(1) * weights.double()).mean())
    assert float(objective.loss(said, noised)) == pytest.approx(wanted, rel=1e-6)


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, Noised, torch.Tensor | None]]:
    """(prediction, noised, masks) of each batch."""
    seen: list[Any] = []
    noise, loss = Objective.noised, Objective.loss

    def noised(
        self: Objective, latents: Any, generator: Any, weights: Any = None, masks: Any = None, *more: Any
    ) -> Any:
        seen.append(masks)
        return noise(self, latents, generator, weights, masks, *more)

    def judged(self: Objective, prediction: Any, noised: Any, *more: Any) -> Any:
        seen[-1] = (prediction.detach(), noised, seen[-1])
        return loss(self, prediction, noised, *more)

    monkeypatch.setattr(Objective, "noised", noised)
    monkeypatch.setattr(Objective, "loss", judged)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_what_is_masked_in_batches_of_both(
    kind: str, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spied(monkeypatch)
    folder = masked_set(tmp_path / "set")
    own = dict(KINDS[kind])
    if kind == "difference":
        Image.new("RGB", (64, 64), "green").save(tmp_path / "before.png")
        own["difference__before"] = str(tmp_path / "before.png")
    view = watched.run(folder, masks__source="file", masks__outside=0.1, training__batch_size=4, **own)
    assert (view.state, view.error) == ("finished", "")
    losses = [event.loss for event in watched.events if isinstance(event, ev.StepDone)]
    assert len(seen) == len(losses) == 3
    for (prediction, noised, masks), loss in zip(seen, losses, strict=True):
        assert masks is not None
        whole = [bool(one.all()) for one in masks]
        assert sorted(whole) == [False, False, True, True]
        row = torch.tensor([0.0] + [1.0] * 4 + [0.0] * 3).expand(8, 8)
        assert all(torch.equal(one[0], row) for one, is_whole in zip(masks, whole, strict=True) if not is_whole)
        assert loss == pytest.approx(by_hand(prediction, noised.target, masks, 0.1, True), rel=1e-5)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("file", "masks.source is set to files, and no picture has one"),
        ("alpha", "masks.source is set to transparency, and no picture is transparent anywhere"),
    ],
)
def test_masks_that_are_nowhere_are_refused(source: str, said: str, watched: Watched, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "set", 2)
    with pytest.raises(TrainerError, match=said):
        watched.run(tmp_path / "set", masks__source=source)


def test_masks_that_match_no_picture_are_refused_by_their_names(watched: Watched, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "set", 2)
    Image.new("L", (64, 64)).save(tmp_path / "set" / "seven.mask.png")
    with pytest.raises(TrainerError, match=r"all masks match no picture \(seven\.mask\.png\)"):
        watched.run(tmp_path / "set", masks__source="file")
    with pytest.raises(TrainerError, match=r"masks\.folder .*nowhere is not there or is no folder"):
        watched.run(tmp_path / "set", masks__source="file", masks__folder=str(tmp_path / "nowhere"))
