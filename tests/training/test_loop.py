"""The loop by itself, on a model of one product: what it tells when, what a bad step leaves, what an error leaves."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from lib_trainer.config import OptimizerConfig
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.ports import Conditioning, PictureSize
from lib_trainer.refusals import NumericalError
from lib_trainer.training.loop import Batch, LoopOptions, StepBatches, train
from lib_trainer.training.objective import Objective
from lib_trainer.training.optimizers import make_optimizer
from lib_trainer.training.precision import _cpu_multiplies_fp16
from lib_trainer.training.scaling import HOPELESS, loss_scaler
from lib_trainer.training.schedules import LearningRates
from lib_trainer.training.state import TrainState
from lib_trainer.work.events import StepDone
from tests.support import tiny_schedule

SIZE = PictureSize((8, 8), (0, 0), (8, 8))
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "fused": lambda groups: make_optimizer(groups, OptimizerConfig()),
    "asked": lambda groups: torch.optim.RMSprop(groups, momentum=0.9, weight_decay=0.1),  # knows no found_inf
}


@dataclass
class OneProduct:
    """Predicts latents times a weight. `before` is called with the number of the step."""

    weight: nn.Parameter = field(default_factory=lambda: nn.Parameter(torch.tensor([0.3, -0.2])))
    before: Callable[[int], None] = lambda step: None
    factor: Callable[[int], float] = lambda step: 1.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    schedule: Any = field(default_factory=tiny_schedule)
    step: int = 0

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, told: Conditioning) -> torch.Tensor:
        self.step += 1
        self.before(self.step)
        return latents * self.weight.sum() * self.factor(self.step)


@dataclass
class Trained:
    model: OneProduct
    optimizer: torch.optim.Optimizer
    told: list[StepDone] = field(default_factory=list)
    seen: list[torch.Tensor] = field(default_factory=list)
    stop_after: int = 1000

    def run(self, steps: int = 6, *, late: bool = False, dtype: torch.dtype = torch.float32) -> None:
        def after_step(done: StepDone) -> None:
            self.told.append(done)
            self.seen.append(self.model.weight.detach().clone())

        train(
            self.model,  # type: ignore[arg-type]
            lambda captions, sizes: Conditioning(torch.zeros(1, 77, 2)),
            batches(),
            state_of(self.optimizer, dtype),
            LearningRates(self.optimizer, OptimizerConfig(schedule="constant"), steps),
            LoopOptions(steps, dtype, 1.0, late=late),
            after_step,
            lambda: len(self.told) >= self.stop_after,
        )


class NoRecipe(Recipe):
    """What learns is the test's own."""


def state_of(optimizer: torch.optim.Optimizer, dtype: torch.dtype = torch.float32) -> TrainState:
    scaler = loss_scaler(torch.device("cpu"), dtype)
    return TrainState(NoRecipe(), optimizer, scaler, torch.Generator().manual_seed(3), Objective(tiny_schedule()))


def batches() -> Iterator[StepBatches]:
    generator = torch.Generator().manual_seed(1)
    for _ in itertools.count():
        latents = torch.randn(1, 4, 8, 8, generator=generator)
        yield StepBatches(1, [Batch(latents, ["a"], [SIZE])])


def trained(kind: str = "fused", **changes: Any) -> Trained:
    model = OneProduct(**changes)
    return Trained(model, OPTIMIZERS[kind]([{"params": [model.weight], "lr": 0.05, "name": "unet"}]))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_telling_late_tells_the_same_with_the_parameters_of_its_step(kind: str) -> None:
    at_once, late = trained(kind), trained(kind)
    at_once.run()
    late.run(late=True)
    assert [d.step for d in late.told] == [1, 2, 3, 4, 5, 6] == [d.step for d in at_once.told]
    for one, other in zip(late.told, at_once.told):
        assert (one.loss, one.gradient_norm, one.learning_rates) == (
            other.loss, other.gradient_norm, other.learning_rates,
        )  # fmt: skip
    assert all(torch.equal(one, other) for one, other in zip(late.seen, at_once.seen))
    assert len({tuple(weight.tolist()) for weight in late.seen}) == 6
    assert late.model.step == 6 and all(done.applied for done in late.told)


def test_telling_late_means_when_the_next_gradients_are_there() -> None:
    order: list[str] = []
    late = trained(before=lambda step: order.append(f"forward {step}"))
    real = late.told.append
    late.told = type("Told", (list,), {"append": lambda self, done: order.append(f"told {done.step}") or real(done)})()
    late.run(3, late=True)
    assert order == ["forward 1", "forward 2", "told 1", "forward 3", "told 2", "told 3"]


@pytest.mark.parametrize("late", [True, False], ids=["late", "at once"])
def test_stopping_applies_nothing_that_is_not_told(late: bool) -> None:
    run, whole = trained(), trained()
    run.stop_after = 2
    run.run(late=late)
    whole.run()
    assert [done.step for done in run.told] == [1, 2]
    assert torch.equal(run.model.weight, whole.seen[1])


@pytest.mark.parametrize("late", [True, False], ids=["late", "at once"])
@pytest.mark.parametrize("stop_after", [2, 1000])
def test_no_gradient_outlives_the_last_step(stop_after: int, late: bool) -> None:
    """The host is put back after it, for which the device may have to make room."""
    run = trained()
    run.stop_after = stop_after
    run.run(late=late)
    assert run.told and run.model.weight.grad is None


@pytest.mark.parametrize("late", [True, False], ids=["late", "at once"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_step_is_never_applied_and_named(kind: str, late: bool, bad: float) -> None:
    run, whole = trained(kind, factor=lambda step: bad if step == 4 else 1.0), trained(kind)
    whole.run()
    with pytest.raises(NumericalError, match=r"at step 4, so the run was ended with the weights of step 3"):
        run.run(late=late)
    assert [done.step for done in run.told] == [1, 2, 3]
    assert torch.equal(run.model.weight, whole.seen[2])
    assert run.model.weight.grad is None


@pytest.mark.parametrize("late", [True, False], ids=["late", "at once"])
def test_an_error_lets_go_of_its_graph_and_the_step_before_is_told(late: bool) -> None:
    graphs: list[Any] = []

    class Holding(OneProduct):
        def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, told: Conditioning) -> torch.Tensor:
            out = super().predict(latents, timesteps, told)
            graphs.append(weakref.ref(out))
            if self.step == 3:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return out

    model = Holding()
    run = Trained(model, OPTIMIZERS["fused"]([{"params": [model.weight], "lr": 0.05, "name": "unet"}]))
    with pytest.raises(torch.cuda.OutOfMemoryError) as kept:
        run.run(late=late)
    assert [done.step for done in run.told] == [1, 2]
    assert all(graph() is None for graph in graphs), "while the error is still held"
    assert model.weight.grad is None
    del kept


def test_a_step_without_anything_to_learn_goes_by() -> None:
    """Module dropout may leave every adapter out (a defect once: `element 0 does not require grad`)."""

    class Left(OneProduct):
        def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, told: Conditioning) -> torch.Tensor:
            out = super().predict(latents, timesteps, told)
            return out.detach() if self.step == 2 else out

    model = Left()
    run = Trained(model, OPTIMIZERS["fused"]([{"params": [model.weight], "lr": 0.05, "name": "unet"}]))
    run.run(3)
    assert [done.applied for done in run.told] == [True, False, True]
    assert torch.equal(run.seen[0], run.seen[1]) and not torch.equal(run.seen[1], run.seen[2])
    assert run.told[1].gradient_norm == 0 and run.told[1].loss > 0


def test_a_step_that_loss_scaling_passes_over_is_told_as_such() -> None:
    """On a CPU whose torch has products in it. The first scale, 65536, overflows in fp16."""
    if not _cpu_multiplies_fp16():
        pytest.skip("torch has no products in fp16 on the CPU")
    run = trained()
    run.run(8, dtype=torch.float16)
    applied = [done.applied for done in run.told]
    assert not applied[0] and applied[-1], applied
    for index, done in enumerate(run.told[1:], 1):
        assert torch.equal(run.seen[index], run.seen[index - 1]) == (not done.applied)


@pytest.mark.parametrize("late", [True, False], ids=["late", "at once"])
def test_a_run_whose_gradients_overflow_at_every_scale_ends(late: bool) -> None:
    """Instead of going through all its steps and writing a file that has learned nothing."""

    if not _cpu_multiplies_fp16():
        pytest.skip("torch has no products in fp16 on the CPU")

    class Overflowing(OneProduct):
        def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, told: Conditioning) -> torch.Tensor:
            out = super().predict(latents, timesteps, told)
            if self.step > 20:
                out.register_hook(lambda gradient: gradient * torch.inf)
            return out

    model = Overflowing()
    run = Trained(model, OPTIMIZERS["fused"]([{"params": [model.weight], "lr": 0.05, "name": "unet"}]))
    with pytest.raises(NumericalError, match=f"gradients are not finite at step {20 + HOPELESS}, .* 'fp32'"):
        run.run(1000, late=late, dtype=torch.float16)
    assert run.told[19].applied and not any(done.applied for done in run.told[20:])
    assert torch.equal(model.weight, run.seen[19])


def test_many_batches_make_one_step() -> None:
    """Gradient accumulation: the mean of the batches' gradients, as of one batch of all their pictures."""
    drawn = next(batches()).batches * 3
    run = trained()
    optimizer = torch.optim.SGD([{"params": [run.model.weight], "lr": 1.0, "name": "unet"}])
    run.optimizer = optimizer
    train(
        run.model,  # type: ignore[arg-type]
        lambda captions, sizes: Conditioning(torch.zeros(1, 77, 2)),
        iter([StepBatches(1, drawn)]),
        state_of(optimizer),
        LearningRates(optimizer, OptimizerConfig(schedule="constant"), 1),
        LoopOptions(1, torch.float32, 0.0),
        run.told.append,
        lambda: False,
    )
    assert run.model.step == 3 and run.told[0].step == 1
    moved = (torch.tensor([0.3, -0.2]) - run.model.weight.detach()).norm()
    assert float(moved) == pytest.approx(run.told[0].gradient_norm, rel=1e-5)
