"""Memory runs out at every point of every kind of run: the host, what is left, what is kept, and what is said.

The allocator of `faults` refuses, or a card's own, when the card is full. Each case asserts that the model is bit for
bit what it was, that no tensor of the run is left although nothing was collected but by the run itself, that the
weights so far are in a file, that the sentence names what to lower, and that the next job runs.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer.ports import HeldPart
from lib_trainer.training.plan import prepare
from lib_trainer.training.run import run_plan
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from tests.card import CARD, CPU, ON_A_CARD, settled
from tests.support import (
    SCALE,
    ModelHost,
    Tiny,
    differences,
    draw_pictures,
    leave_traces,
    make_job,
    roots_of,
    snapshot,
    tiny_schedule,
)
from tests.training.faults import Allocator, FullCard, run_with

LORA: dict[str, Any] = {}
PREVIEW = {"preview__prompt": "x", "preview__every": 1}
SAVE = {"output__save_every": 1}
KINDS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "lora, checkpointing": {"training__gradient_checkpointing": True},
    "lora, preview": PREVIEW,
    "lora, saving": SAVE,
    "lora, class pictures": {"prior__class_prompt": "a thing", "prior__class_pictures": 2},
    "dora": {"network__dora": True},
    "loha": {"network__kind": "loha"},
    "lokr": {"network__kind": "lokr", "network__factor": 4},
    "embedding": {"network__kind": "embedding", "output__name": "zrk-new"},
    "pivotal": {"network__kind": "pivotal", "embedding__names": "zrk-a"},
    "hypernetwork": {"network__kind": "hypernetwork"},
    "checkpoint": {"network__kind": "checkpoint"},
    "checkpoint, preview": {"network__kind": "checkpoint", "optimizer__ema": True, **PREVIEW},
    "checkpoint, saving": {"network__kind": "checkpoint", **SAVE},
    "checkpoint, text": {"network__kind": "checkpoint", "finetune__text_encoder_lr": 1e-6, "optimizer__ema": True},
    "difference": {"network__kind": "difference", "training__max_steps": 4, "difference__base_steps": 2},
}


@dataclass(frozen=True)
class Case:
    """`said`: what the sentence must name. `step`: steps that are done then, or None where the run goes on. `number`:
    which of what is asked for behind `trigger` has no room; `card`: the same on a card, where 0 is not tried."""

    kind: str
    trigger: str
    said: str
    step: int | None
    number: int = 1
    card: int = 0
    lasting: bool = True
    half: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{'half ' if self.half else ''}{self.kind}-{self.trigger}-{self.number}".replace(" ", "_")


AGAIN = {"output__name": "again", "training__max_steps": 1, "optimizer__text_encoder_lr": 0.0, "dataset__cache": "disk"}
RANK, SIZE = "network.rank (now 4)", "dataset.width and dataset.height (now 64×64)"
CASES = [
    Case("lora", "start", RANK, 0, card=1),
    Case("lora", "phase Caching latents", SIZE, 0, card=1),
    Case("lora", "started", RANK, 0, number=150, card=20),
    Case("lora", "backward 1", SIZE, 0, number=60, card=5),
    Case("lora", "optimizer 1", "before the first step was done", 0, card=1),
    Case("lora", "step 1", "at step 2", 1, number=80, card=1, more={"training__batch_size": 2}),
    Case("lora", "backward 2", "training.batch_size (now 2)", 1, card=1, more={"training__batch_size": 2}),
    Case("lora", "leaving", "", None, card=1),
    Case("lora", "step 3", "while the file was written", 3, lasting=False),
    Case("lora, checkpointing", "backward 2", "at step 2", 1, number=40, card=10),
    Case("lora, class pictures", "preview", SIZE, 0, card=1),
    Case("lora, class pictures", "after preview", "put class pictures of your own into", 0),
    Case("lora, preview", "preview", "preview.width and preview.height (now 64×64)", None, card=1, lasting=False),
    Case("lora, saving", "step 1", "Step 1 was not saved", None, lasting=False),
    Case("dora", "step 1", "at step 2", 1, number=200),
    Case("loha", "backward 1", RANK, 0, number=30),
    Case("loha", "optimizer 2", "at step 3", 2),
    Case("lokr", "step 1", "at step 2", 1, number=100),
    Case("embedding", "backward 2", "at step 2", 1, card=1),
    Case("embedding", "step 3", "while the file was written", 3, lasting=False),
    Case("pivotal", "optimizer 1", RANK, 0, number=3),
    Case("pivotal", "step 2", "at step 3", 2, number=20),
    Case("hypernetwork", "phase Caching captions", "close other programs", 0, card=1),
    Case("hypernetwork", "step 1", "hypernetwork.layer_structure", 1, number=9),
    Case("checkpoint", "start", "or train a LoRA", 0, number=5, card=5),
    Case("checkpoint", "optimizer 1", "before the first step", 0, number=7, card=7),
    Case("checkpoint", "backward 2", "at step 2", 1, number=50, card=5),
    Case("checkpoint", "leaving", "", None, card=1),
    Case("checkpoint, preview", "preview", "preview.width", None, card=1, lasting=False, more={"preview__every": 2}),
    Case(
        "checkpoint, saving", "step 2", "Step 2 was not saved", None, lasting=False, more={"output__precision": "fp16"}
    ),
    Case("checkpoint, text", "step 1", "finetune.text_encoder_lr to 0", 1, number=30),
    Case("checkpoint, text", "optimizer 2", "leave out optimizer.ema", 2, number=1),
    Case("difference", "start", RANK, 0, number=50),
    Case("difference", "step 2", "at step 3", 2, number=60),
    Case("lora, preview", "after preview", "preview.width", None, number=3, card=3, lasting=False, half=True),
    Case("lora", "leaving", "", None, card=1, half=True),
    Case("dora", "backward 1", RANK, 0, card=1, half=True),
    Case("embedding", "optimizer 1", "before the first step", 0, card=1, half=True),
    Case("pivotal", "backward 2", "at step 2", 1, card=1, half=True),
    Case("checkpoint, text", "backward 2", "or train a LoRA", 1, number=20, card=5, half=True),
    Case("checkpoint, text", "leaving", "", None, card=1, half=True),
]
CARD_CASES = [
    *(dataclasses.replace(case, number=case.card) for case in CASES if case.card),
    Case("loha", "backward 2", RANK, 1, number=5),
    Case("lokr", "started", RANK, 0, number=30, half=True),
    Case("hypernetwork", "backward 2", "hypernetwork.layer_structure", 1),
    Case("difference", "backward 3", "at step 3", 2),
]


class CountingHost(ModelHost):
    """A host that tells the sizes of its model, as a whole checkpoint wants to know them."""

    def device(self) -> torch.device:
        return self.loaded.device

    def parts(self) -> dict[str, HeldPart]:
        return {"unet": HeldPart.of(self.loaded.unet, self.device())}  # type: ignore[attr-defined]

    cache: Path | None = None

    def cache_folder(self) -> Path:
        return self.cache or super().cache_folder()

    def token_count(self, text: str) -> int:
        return 3


Models = dict[bool, tuple[Any, Any]]


@pytest.fixture(scope="module")
def models(tiny: Tiny) -> Models:
    """A small model as it is, and as a user's WebUI holds it: everything in fp16."""
    return models_on(CPU, tiny)


@pytest.fixture(scope="module")
def models_of_a_card(tiny: Tiny) -> Models:
    return models_on(CARD, tiny)


def models_on(device: torch.device, tiny: Tiny) -> Models:
    from lib_trainer.host.ldm.model import LdmModel
    from lib_trainer.host.standalone.tokenizer import load_tokenizer
    from lib_trainer.host.text.texts import Texts

    models = {}
    for half in (False, True):
        unet, vae, text = (copy.deepcopy(part).to(device) for part in (tiny.unet, tiny.vae, tiny.text))
        if half:
            unet, vae, text = unet.half(), vae.half(), text.half()
            unet.dtype = torch.float16
        clip = Texts([text], load_tokenizer())
        model = LdmModel(unet, vae, clip, tiny_schedule(), SCALE, "half" if half else "tiny", tiny.path)
        if not half:
            leave_traces(model)
        models[half] = (model, snapshot(*roots_of(model)))
    gc.collect()
    gc.freeze()
    return models


@pytest.fixture(scope="module", autouse=True)
def light_collections(tiny: Tiny) -> Iterator[None]:
    """What is there before the first run is no run's: collecting need not look at it, and takes a tenth."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.freeze()


@pytest.fixture(scope="module")
def two_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("two"), count=2)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents are encoded once for all cases: no case but one is about them."""
    return tmp_path_factory.mktemp("encoded")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_memory_runs_out(case: Case, models: Models, two_pictures: Path, encoded: Path, tmp_path: Path) -> None:
    allocator = Allocator(case.trigger, case.number, case.lasting)
    runs_out(case, models[case.half], allocator, two_pictures, encoded, tmp_path)


@pytest.mark.parametrize("device", [ON_A_CARD])
@pytest.mark.parametrize("case", CARD_CASES, ids=str)
def test_a_card_is_full(
    case: Case, device: torch.device, models_of_a_card: Models, two_pictures: Path, encoded: Path, tmp_path: Path
) -> None:
    """Its own allocator refuses, as nothing is left: afterwards as many of its bytes are in use as before."""
    model, snapped = models_of_a_card[case.half]
    before = settled(device)
    make = FullCard if device.type == "cuda" else Allocator
    allocator = make(case.trigger, case.number, case.lasting, device)
    allocator.own = roots_of(model)
    try:
        runs_out(case, (model, snapped), allocator, two_pictures, encoded, tmp_path)
    finally:
        allocator.free()
    assert settled(device, before) <= before


def runs_out(
    case: Case, held: tuple[Any, Any], allocator: Allocator, pictures: Path, encoded: Path, root: Path
) -> None:
    model, before = held
    host = CountingHost(model, root)
    if case.trigger != "phase Caching latents":
        host.cache = encoded
    values = {"training__precision": "bf16" if case.half else "fp32", "dataset__cache": "disk"}
    values |= {**KINDS[case.kind], **case.more}
    if case.kind == "difference":
        values["difference__before"] = str(pictures)
    told: list[ev.Event] = []
    failure = run_with(allocator, host, make_job(pictures, **values), [told.append])
    assert allocator.refused or case.trigger == "leaving", "nothing was refused: the case tests nothing"
    assert differences(before, snapshot(*roots_of(model))) == []
    assert allocator.alive(*roots_of(model)) == 0
    warnings = [str(event.text) for event in told if isinstance(event, ev.Message) and event.level == "warning"]
    if case.step is None:
        assert failure is None and isinstance(told[-1], ev.Finished)
        assert any(case.said in text for text in warnings) or not case.said, warnings
    else:
        sentence = str(failure)
        assert "ran out of memory" in sentence and case.said in sentence and sentence.endswith("."), sentence
        assert failure is not None and (failure.kept is not None) == (case.step > 0)
        if failure.kept is not None:
            assert f"-step{case.step:08d}" in failure.kept.name and failure.kept.stat().st_size > 0
    allocator.free()
    run_plan(prepare(make_job(pictures, **AGAIN), host), host, Control(), told.append)
    assert isinstance(told[-1], ev.Finished) and told[-1].path is not None


def test_there_are_thirty_points_and_more() -> None:
    assert len({(case.kind, case.trigger, case.number, case.half) for case in CASES}) == len(CASES) >= 30
