"""Learning-rate schedules against the formulas that others use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import optimization as diffusers
from torch.optim import Optimizer

from lib_trainer.config import OptimizerConfig, from_values
from lib_trainer.refusals import ConfigError
from lib_trainer.training.optimizers import BY_PATH, OPTIMIZERS, known, make_optimizer, to_average
from lib_trainer.training.schedules import (
    SCHEDULES,
    LearningRates,
    check_schedule,
    factor,
    schedule_name,
    told,
    warmup_steps,
)

TOTAL, WARMUP = 40, 8


def having(name: str, **options: Any) -> OptimizerConfig:
    return OptimizerConfig(schedule=name, **options)  # type: ignore[arg-type]


def factors(config: OptimizerConfig, total: int) -> list[float]:
    """What a run sets its rates to, as shares of 0.5."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": 0.5, "name": "unet"}])
    rates = LearningRates(optimizer, config, total)
    seen = []
    for step in range(total):
        shown = rates.set(step)
        assert shown == {"unet": optimizer.param_groups[0]["lr"]}
        seen.append(shown["unet"] / 0.5)
    return seen


def of_others(make: Callable[[Optimizer], Any], total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, seen = make(optimizer), []
    for _ in range(total):
        seen.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return seen


OTHERS: dict[str, tuple[dict[str, Any], Callable[[Optimizer, int], Any]]] = {
    "constant": ({}, diffusers.get_constant_schedule_with_warmup),
    "linear": ({}, lambda one, rise: diffusers.get_linear_schedule_with_warmup(one, rise, TOTAL)),
    "cosine": ({}, lambda one, rise: diffusers.get_cosine_schedule_with_warmup(one, rise, TOTAL)),
    "cosine_with_restarts": (
        {"cycles": 3},
        lambda one, rise: diffusers.get_cosine_with_hard_restarts_schedule_with_warmup(one, rise, TOTAL, 3),
    ),
    "polynomial": (
        {"power": 2.0},
        lambda one, rise: diffusers.get_polynomial_decay_schedule_with_warmup(one, rise, TOTAL, lr_end=0.0, power=2.0),
    ),
}


@pytest.mark.parametrize("rise", [0, WARMUP])
@pytest.mark.parametrize("name", OTHERS)
def test_after_the_warm_up_they_are_diffusers(name: str, rise: int) -> None:
    """In the warm-up diffusers' loses its first step at 0, so ours is a step ahead."""
    options, make = OTHERS[name]
    ours, theirs = factors(having(name, warmup=rise, **options), TOTAL), of_others(lambda one: make(one, rise), TOTAL)
    assert ours[rise:] == pytest.approx(theirs[rise:], abs=1e-9)
    assert ours[:rise] == pytest.approx(theirs[1 : rise + 1] if rise == 0 else [*theirs[1:rise], 1.0], abs=1e-9)


def test_cosine_is_torchs() -> None:
    cosine = of_others(lambda one: torch.optim.lr_scheduler.CosineAnnealingLR(one, T_max=20), 20)
    assert factors(having("cosine"), 20) == pytest.approx(cosine, abs=1e-9)


def test_a_floor_lifts_the_end() -> None:
    """transformers' `cosine_with_min_lr`: factor · (1 − r) + r; torch's `eta_min` is the same."""
    expected = of_others(lambda one: torch.optim.lr_scheduler.CosineAnnealingLR(one, T_max=20, eta_min=0.1), 20)
    assert factors(having("cosine", floor=0.1), 20) == pytest.approx(expected, abs=1e-9)
    for name in SCHEDULES:
        least = min(factors(having(name, floor=0.25), 200))
        assert least == pytest.approx(1.0 if name == "constant" else 0.25, abs=0.02)


def test_constant_then_a_decay() -> None:
    """Hu et al. 2024: a warm-up, a plateau, a short decay; transformers' decay is half a cosine."""
    seen = factors(having("warmup_stable_decay", warmup=10, decay_share=0.25), 50)
    assert seen[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert seen[10:41] == [1.0] * 31
    half = of_others(lambda one: torch.optim.lr_scheduler.CosineAnnealingLR(one, T_max=10), 10)
    assert seen[40:] == pytest.approx(half, abs=1e-9)


def test_rex_is_the_papers() -> None:
    """Chen et al. 2021: η = η₀ · (1 − t/T) / (1/2 + 1/2 · (1 − t/T))."""
    for step, value in enumerate(factors(having("rex"), 20)):
        left = 1 - step / 20
        assert value == pytest.approx(left / (0.5 + 0.5 * left))
    assert factor(having("rex"), 10, 20) == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_one_begins_at_the_full_rate_and_stays_between_0_and_1(name: str) -> None:
    for total in (1, 2, 3, 50):
        seen = factors(having(name), total)
        assert seen[0] == 1.0 and all(0 <= value <= 1 for value in seen)
    assert (min(factors(having(name, decay_share=0.5), 500)) < 0.02) == (name != "constant")


def test_a_warm_up_is_in_steps_or_a_share() -> None:
    assert warmup_steps(having("linear", warmup=0.25), 40) == 10 == warmup_steps(having("linear", warmup=10), 40)
    assert factors(having("linear", warmup=0.25), 40) == factors(having("linear", warmup=10), 40)
    assert factors(having("constant", warmup=5), 8) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0])


def test_one_that_averages_has_no_schedule_but_a_warm_up() -> None:
    config = OptimizerConfig(name="AdamWScheduleFree", schedule="cosine", warmup=2, floor=0.5)
    assert schedule_name(config) == "constant"
    assert [factor(config, step, 5) for step in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_each_part_of_a_difference_has_a_schedule_of_its_own() -> None:
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0, "name": "unet"}])
    rates = LearningRates(optimizer, having("linear", warmup=0.5), 12, base_steps=4)
    seen = [rates.set(step)["unet"] for step in range(12)]
    assert seen == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25])


class AtOnce(Optimizer):
    """It makes its state when it is made, as Adagrad of torch 2.1 does."""

    def __init__(self, params: Any, lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr})
        for parameter in (one for group in self.param_groups for one in group["params"]):
            self.state[parameter]["sum"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in (one for one in group["params"] if one.grad is not None):
                self.state[parameter]["sum"].addcmul_(parameter.grad, parameter.grad)
                parameter.addcdiv_(parameter.grad, self.state[parameter]["sum"].sqrt(), value=-group["lr"])


@pytest.mark.parametrize("name", [*(name for name, entry in OPTIMIZERS.items() if not entry.card), BY_PATH])
def test_each_part_of_a_difference_has_an_optimizer_as_if_it_were_alone(name: str) -> None:
    """What one has counted, found and averaged while others learned would make the second part's steps a thousand times
    as large (a rate that was found over sums of all), or half as large (an average that began before)."""
    path = f"{__name__}.AtOnce" if name == BY_PATH else ""
    config, steps = OptimizerConfig(name=name, class_path=path, schedule="cosine"), 60  # type: ignore[arg-type]
    if not known(config).installed:
        pytest.skip(f"{known(config).module.partition('.')[0]} is not installed (requirements/test.txt)")
    parts = [torch.nn.Parameter(torch.zeros(4, 4)) for _ in range(2)]
    rate = 1.0 if known(config).finds_rate else 0.01
    groups = [{"params": [own], "lr": rate, "name": part} for own, part in zip(parts, ("before", "unet"), strict=True)]
    optimizer = make_optimizer(groups, config)
    rates = LearningRates(optimizer, config, 2 * steps, base_steps=steps)
    wanted = torch.randn(steps, 4, 4, generator=torch.Generator().manual_seed(1)) + 0.5
    seen: list[list[float]] = []
    for step in range(2 * steps):
        seen.append([list(rates.set(step).values())[step // steps], rates.done(step)])
        optimizer.zero_grad()
        own = parts[step // steps]
        own.grad = own.detach() - wanted[step % steps]
        optimizer.step()
    to_average(optimizer)
    assert seen[:steps] == seen[steps:]
    assert float(parts[0].detach().abs().max()) > 0
    assert torch.equal(parts[0], parts[1])


def test_a_warm_up_that_leaves_no_step_is_refused() -> None:
    job = from_values({"optimizer.warmup": 20})
    check_schedule(job, 21)
    check_schedule(from_values({"optimizer.warmup": 0.5}), 2)
    check_schedule(from_values({}), 1)
    for total, base, shortest in ((20, 0, 20), (60, 10, 10), (60, 45, 15)):
        with pytest.raises(ConfigError, match=rf"optimizer\.warmup = 20 leaves none of {shortest} steps"):
            check_schedule(job, total, base)


def test_what_files_say_of_it() -> None:
    assert told(having("constant", warmup=3), 10) == {
        "ss_lr_scheduler": "constant_with_warmup",
        "ss_lr_warmup_steps": 3,
    }
    assert told(having("rex", warmup=0.2), 10) == {"ss_lr_scheduler": "rex", "ss_lr_warmup_steps": 2}
    assert told(having("constant"), 10)["ss_lr_scheduler"] == "constant"
