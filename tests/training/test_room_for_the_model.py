"""A card that has room for the UNet beside what learned of it, and not for what else of the model comes back to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.kinds import slots
from lib_trainer.kinds.checkpoint import CheckpointRecipe
from lib_trainer.ports import TrainingState
from lib_trainer.refusals import MemoryExhausted
from lib_trainer.training.plan import prepare
from lib_trainer.training.run import run_plan
from lib_trainer.training.session import Session
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from tests.host.cards import Card
from tests.support import differences, draw_pictures, make_job, roots_of, snapshot
from tests.training.test_out_of_memory import CountingHost


class NearlyFull(Card):
    """Counts bytes: of what comes, of what waits, and of the UNet's own parameters once what learned has left them its
    place."""

    left = 0

    def take(self, data: torch.Tensor) -> None:
        if data.nbytes > self.left:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        self.left -= data.nbytes

    def to_device(self, original: torch.Tensor) -> torch.Tensor:
        self.take(original)
        return super().to_device(original)

    def sent(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """What learned is as wide as what it came from."""
        if device is slots.CPU:
            self.left += tensor.nbytes
        else:
            self.take(tensor)
        return tensor.clone()


@pytest.mark.parametrize("when", ["at the end", "for a preview"])
def test_what_learned_leaves_a_card_where_the_rest_of_the_model_has_no_room(
    when: str, ldm_model: LdmModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = NearlyFull(next(ldm_model.unet.parameters()).device)
    monkeypatch.setattr(LdmModel, "make_bus", staticmethod(lambda device: card))
    monkeypatch.setattr(slots, "moves", lambda device: True)
    monkeypatch.setattr(slots, "sent", card.sent)
    whole = sum(parameter.nbytes for root in roots_of(ldm_model) for parameter in root.parameters())
    before = snapshot(*roots_of(ldm_model))
    recipe = CheckpointRecipe(make_job(tmp_path, network__kind="checkpoint", finetune__unet_lr=1e-5), ldm_model)
    learned = list(recipe.learned.values())
    values = [parameter.detach() + 1 for parameter in learned]
    state = TrainingState(torch.float32, False, False, frozenset({"unet"}))
    with Session(ldm_model, recipe, state) as session:
        session.train(text_encoder=False)
        for parameter in learned:
            parameter.data += 1
        card.left = whole - 1
        if when == "for a preview":
            with session.generating():
                assert all(card.has(one.data) for root in roots_of(ldm_model) for one in root.parameters())
            card.left = whole
    assert differences(before, snapshot(*roots_of(ldm_model))) == []
    assert all(torch.equal(parameter, value) for parameter, value in zip(learned, values, strict=True))


def test_a_run_ends_where_what_it_learned_could_be_kept_nowhere(
    ldm_model: LdmModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on from the bytes of the model's own weights, to its last step, and write nothing then."""
    monkeypatch.setattr(slots, "moves", lambda device: True)
    monkeypatch.setattr(slots, "sent", lambda tensor, device: tensor.clone())
    before = snapshot(*roots_of(ldm_model))
    recipe = CheckpointRecipe(make_job(tmp_path, network__kind="checkpoint", finetune__unet_lr=1e-5), ldm_model)
    with Session(ldm_model, recipe, TrainingState(torch.float32, False, False, frozenset({"unet"}))) as session:
        session.train(text_encoder=False)
        full = NearlyFull(torch.device("cpu"))
        monkeypatch.setattr(slots, "sent", lambda tensor, device: full.to_device(tensor))
        for begin in (
            lambda: session.generating().__enter__(),
            session.resume,
            lambda: recipe.save([], {}, overwrite=True),
        ):
            with pytest.raises(MemoryExhausted, match="What was learned is lost"):
                begin()
    assert differences(before, snapshot(*roots_of(ldm_model))) == []


def test_a_failure_to_make_room_does_not_stop_what_has_room(
    ldm_model: LdmModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = NearlyFull(next(ldm_model.unet.parameters()).device)
    monkeypatch.setattr(LdmModel, "make_bus", staticmethod(lambda device: card))
    before = snapshot(*roots_of(ldm_model))

    def fail() -> None:
        card.left = 1 << 40
        raise RuntimeError("the driver is gone")

    with ldm_model.holding(TrainingState(torch.float32, False, False), fail) as held:
        held.train(text_encoder=False)
        held.generate()
        assert differences(before, snapshot(*roots_of(ldm_model))) == []
    assert differences(before, snapshot(*roots_of(ldm_model))) == []


@pytest.mark.parametrize("kind", ["lora", "checkpoint"])
def test_a_preview_that_the_model_finds_no_room_for_is_left_out(
    kind: str, ldm_model: LdmModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on, and at its end, with its own memory free again, the model comes back."""
    card = Card(next(ldm_model.unet.parameters()).device)
    monkeypatch.setattr(LdmModel, "make_bus", staticmethod(lambda device: card))
    before, host, told = snapshot(*roots_of(ldm_model)), CountingHost(ldm_model, tmp_path), []
    pictures = draw_pictures(tmp_path / "pictures", count=2)
    job = make_job(pictures, network__kind=kind, preview__prompt="x", preview__every=1, training__max_steps=2)

    def listen(event: ev.Event) -> None:
        told.append(event)
        card.room = 0 if isinstance(event, ev.StepDone) else None

    run_plan(prepare(job, host), host, Control(), listen)
    warnings = [str(event.text) for event in told if isinstance(event, ev.Message) and event.level == "warning"]
    assert len(warnings) == 2 and all("preview.width and preview.height" in text for text in warnings), warnings
    assert isinstance(told[-1], ev.Finished) and told[-1].step == 2
    assert differences(before, snapshot(*roots_of(ldm_model))) == []
