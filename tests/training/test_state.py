"""The training state is a value: a run that is put together anew from it goes on as if nothing had been."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer.dataset.encoded import Encoded
from lib_trainer.dataset.encoding import encode_pictures
from lib_trainer.dataset.latent_store import MemoryStore
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.kinds.recipe import Recipe, parameters
from lib_trainer.ports import HeldPart, TrainingState
from lib_trainer.training.average import Average
from lib_trainer.training.captions import LiveCaptions
from lib_trainer.training.loop import LoopOptions, train
from lib_trainer.training.objective import Objective
from lib_trainer.training.optimizers import OPTIMIZERS, make_optimizer, wants_average
from lib_trainer.training.order import Order, Shown
from lib_trainer.training.pictures import PictureSource
from lib_trainer.training.plan import Plan, prepare
from lib_trainer.training.scaling import loss_scaler
from lib_trainer.training.schedules import LearningRates
from lib_trainer.training.session import Session
from lib_trainer.training.sizes import variations_of
from lib_trainer.training.state import TrainState
from tests.card import CARD, CPU, NEEDS_A_CARD
from tests.support import ModelHost, Tiny, draw_pictures, make_job, relative

ANEW = "buckets"
"""The case whose second half encodes its pictures anew, also mirrored; the others share what was encoded."""
HALF, WHOLE = 2, 4
DROPOUTS = {"network__dropout": 0.2, "network__rank_dropout": 0.2, "network__module_dropout": 0.2}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"training__batch_size": 2, "optimizer__schedule": "cosine"},
    "locon": {"network__kind": "locon", "network__conv_rank": 2},
    "loha": {"network__kind": "loha", "network__rank": 2},
    "lokr": {"network__kind": "lokr", "network__factor": 4},
    "dora": {"network__dora": True},
    "dropouts": DROPOUTS,
    "buckets": {"buckets__enabled": True, "buckets__low": 64, "training__batch_size": 4, "augment__mirror": True},
    "pivotal": {"network__kind": "pivotal", "embedding__names": "zrk-a, zrk-b", "embedding__learning_rate": 0.1},
    "difference": {"network__kind": "difference", "difference__base_steps": 2},
    "embedding": {"network__kind": "embedding", "embedding__learning_rate": 0.1, "output__name": "zrk-a"},
    "hypernetwork": {
        "network__kind": "hypernetwork",
        "hypernetwork__learning_rate": 0.01,
        "hypernetwork__dropout_structure": "0, 0.2, 0",
    },
    **{
        name: {"optimizer__name": name}
        | ({"optimizer__unet_lr": 1.0, "optimizer__text_encoder_lr": 1.0} if entry.finds_rate else {})
        for name, entry in OPTIMIZERS.items()
        if name != "AdamW"
    },
    "checkpoint": {"network__kind": "checkpoint", "finetune__unet_lr": 1e-3, "optimizer__ema": True},
    "many at once": {
        "network__kind": "pivotal", "network__rank_dropout": 0.2, "network__rank_stabilised": True,
        "embedding__names": "zrk-a", "embedding__learning_rate": 0.1, "optimizer__text_encoder_share": 0.5,
        "optimizer__ema": True, "optimizer__lora_plus": 4.0, "optimizer__schedule": "cosine", "optimizer__warmup": 0.3,
        "training__batch_size": 2, "training__gradient_accumulation": 2, "captions__shuffle": True,
        "captions__tag_dropout": 0.3, "captions__warmup": 3, "noise__offset": 0.1, "noise__offset_random": True,
        "noise__pyramid_iterations": 2, "noise__perturbation": 0.1, "noise__distribution": "logit_normal",
        "loss__type": "huber", "loss__weighting": "min_snr", "loss__learned_weights": True, "augment__mirror": True,
    },
}  # fmt: skip
EVERYWHERE = [
    *(pytest.param(case, CPU, id=case) for case in CASES if case not in OPTIMIZERS or not OPTIMIZERS[case].card),
    *(pytest.param(case, CARD, id=f"{case} on a card", marks=NEEDS_A_CARD) for case in CASES if case != ANEW),
]


def encoded_of(plan: Plan, model: Any) -> Encoded:
    return encode_pictures(
        [*plan.scan.samples, *plan.before], plan.sizes, model.encode_images, "x", MemoryStore(),
        lambda done, total: None, lambda: False, variations_of(plan.job),
    )  # fmt: skip


class Whole:
    """Everything that a run of a job is made of, made anew; pictures are only read."""

    def __init__(self, plan: Plan, model: Any, encoded: Encoded) -> None:
        self.plan, self.model = plan, model
        self.recipe: Recipe = plan.kind.recipe(plan.job, model, plan.outputs)
        shown = zip(encoded.samples, encoded.targets, strict=True)
        order = Order(plan.job, plan.kind, tuple(Shown(one.role, one.repeats, target) for one, target in shown))
        self.source = PictureSource(order, encoded, plan.captions, model.latent_scale)
        optimizer = make_optimizer(self.recipe.groups(), plan.job.optimizer)
        noise = torch.Generator().manual_seed(plan.job.training.seed + 1)
        job = plan.job
        objective = Objective(model.schedule, job.noise, job.loss, job.masks)
        average = Average(parameters(self.recipe), job.optimizer.ema_decay) if wants_average(job.optimizer) else None
        scaler = loss_scaler(model.device, torch.float32)
        self.state = TrainState(self.recipe, optimizer, scaler, noise, objective, average)
        self.rates = LearningRates(optimizer, plan.job.optimizer, WHOLE, order.base_steps())

    def train(self, steps: int, *, late: bool = False) -> list[float]:
        """Up to that step; the losses."""
        told: list[float] = []
        held = TrainingState(torch.float32, False, self.recipe.trains_text_encoder, frozenset(self.recipe.replaces))
        with (
            Session(self.model, self.recipe, held) as session,
            torch.random.fork_rng([self.model.device] if self.model.device.type == "cuda" else []),
        ):
            session.train(text_encoder=True)
            train(
                self.model,
                LiveCaptions(self.model, 1, 75),
                self.source.steps(self.state.step + 1),
                self.state,
                self.rates,
                LoopOptions(WHOLE, torch.float32, 1.0, late=late),
                lambda done: told.append(done.loss),
                lambda: self.state.step == steps,
            )
        return told

    def results(self) -> list[torch.Tensor]:
        average = [] if self.state.average is None else self.state.average.values
        return [tensor.detach().clone() for tensor in (*parameters(self.recipe), *average)]


@pytest.fixture(scope="module")
def model_on_a_card(tiny: Tiny) -> Any:
    return DiffusersModel.load(tiny.path, CARD)


def near(one: Any, other: Any, device: torch.device) -> None:
    """The same, bit for bit; on a card to what its kernels make of the order in which they add."""
    if device.type == "cpu":
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, other, strict=True))
    else:
        joined = [torch.cat([torch.as_tensor(a).flatten().cpu() for a in values]) for values in (one, other)]
        assert relative(*joined) < 0.05


@pytest.mark.parametrize(("case", "device"), EVERYWHERE)
def test_half_a_run_and_the_state_of_it_are_the_whole(
    request: pytest.FixtureRequest, pictures: Path, tmp_path: Path, case: str, device: torch.device
) -> None:
    model = request.getfixturevalue("model_on_a_card" if device is CARD else "diffusers_model")
    if case in OPTIMIZERS and not OPTIMIZERS[case].installed:
        pytest.skip(f"the package of {case} is not installed (requirements/test.txt)")
    changes = {"optimizer__unet_lr": 0.01, "optimizer__text_encoder_lr": 0.01} | CASES[case]
    if case == "difference":
        changes |= {"difference__before": str(draw_pictures(tmp_path / "before", side=72))}
    if case == "buckets":
        pictures = draw_pictures(shutil.copytree(pictures, tmp_path / "own"), 2, size=(128, 64))
    host = ModelHost(model, tmp_path)
    host.device = lambda: device  # type: ignore[method-assign]
    host.parts = lambda: {"unet": HeldPart(1, torch.float32)}  # type: ignore[method-assign]
    plan = prepare(make_job(pictures, **changes, training__max_steps=WHOLE), host)
    assert plan.steps == WHOLE
    encoded = encoded_of(plan, model)
    whole = Whole(plan, model, encoded)
    start = whole.results()
    losses = whole.train(WHOLE)
    first = Whole(plan, model, encoded)
    torch.manual_seed(1)  # the global generator plays no part
    near(first.train(HALF), losses[:HALF], device)
    file = io.BytesIO()
    torch.save(first.state.state_dict(), file)
    torch.manual_seed(2)
    second = Whole(plan, model, encoded_of(plan, model) if case == ANEW else encoded)
    second.state.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert (second.state.step, second.state.epoch) == (HALF, first.state.epoch)
    near(second.train(WHOLE), losses[HALF:], device)
    ended = second.results()
    near(ended, whole.results(), device)
    assert any(not torch.equal(one, other) for one, other in zip(ended, start, strict=True))
    again = Whole(plan, model, encoded)
    again.state.step = HALF  # the step's number alone is not the state
    again.train(WHOLE)
    assert any(not torch.equal(one, other) for one, other in zip(ended, again.results(), strict=True))


def test_a_state_that_is_asked_for_between_steps_is_that_of_the_step_that_was_told(
    diffusers_model: Any, pictures: Path, tmp_path: Path
) -> None:
    """On a card a step is told of when the next one has drawn its noise already."""
    plan = prepare(make_job(pictures, training__max_steps=WHOLE), ModelHost(diffusers_model, tmp_path))
    encoded = encoded_of(plan, diffusers_model)
    noises: dict[bool, list[list[int]]] = {}
    for late in (False, True):
        run = Whole(plan, diffusers_model, encoded)
        seen: list[list[int]] = []
        own = run.recipe.after_step
        run.recipe.after_step = lambda: seen.append(run.state.state_dict()["noise"].tolist()) or own()  # type: ignore[method-assign, func-returns-value]  # noqa: B023
        run.train(HALF, late=late)
        noises[late] = seen
    assert len(noises[True]) == HALF and noises[True] == noises[False]
    assert noises[True][0] != noises[True][1]
