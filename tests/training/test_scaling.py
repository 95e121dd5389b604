"""Loss scaling: as torch's, on devices that torch's does not know."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_trainer.config import OptimizerConfig
from lib_trainer.refusals import ConfigError
from lib_trainer.training import scaling
from lib_trainer.training.optimizers import make_optimizer, step_unless
from lib_trainer.training.scaling import LossScaler, loss_scaler
from tests.without_fp64 import WithoutFp64

CPU = torch.device("cpu")
OVERFLOWS = (1, 4, 5, 12)
STEPS = 16
FUSED_SGD = OptimizerConfig(name="SGDNesterov", arguments="fused=True")


def learned() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([0.3, -0.2])), nn.Parameter(torch.tensor([[0.5]])), nn.Parameter(torch.ones(1))]


def loss_of(parameters: list[nn.Parameter], step: int) -> torch.Tensor:
    """The last parameter gets no gradient."""
    loss = (parameters[0] * (step + 1) / 7).square().sum() + parameters[1].sin().sum()
    return loss * torch.inf if step in OVERFLOWS else loss


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.1, foreach=False)


def ours(scaler: LossScaler, parameters: list[nn.Parameter], steps: range) -> list[float]:
    optimizer, scales = adam(parameters), []
    for step in steps:
        optimizer.zero_grad()
        scaler.scale(loss_of(parameters, step)).backward()
        scaler.unscale_(parameters)
        bad = sum(one.grad.sum() for one in parameters if one.grad is not None).isfinite().logical_not()  # type: ignore[union-attr]
        step_unless(optimizer, bad)
        scaler.update(bad)
        scales.append(float(scaler.state_dict()["scale"]))
    return scales


def test_a_run_goes_as_with_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same scales and the same parameters, bit for bit; and no float64 on the way."""
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("torch has no scaler for the CPU")
    monkeypatch.setattr(scaling, "INTERVAL", 3)
    scaler, wanted, expected = torch.amp.GradScaler("cpu", growth_interval=3), learned(), []
    optimizer = adam(wanted)
    for step in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(loss_of(wanted, step)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        expected.append(scaler.get_scale())
    found = learned()
    with WithoutFp64():
        assert ours(loss_scaler(CPU, torch.float16), found, range(STEPS)) == expected
    assert min(expected) < expected[-1] < expected[0], "it falls and grows"
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_half_a_run_and_its_state_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "INTERVAL", 3)
    whole = ours(LossScaler(CPU), learned(), range(STEPS))
    first, second = LossScaler(CPU), LossScaler(CPU)
    begun = ours(first, learned(), range(8))
    second.load_state_dict(first.state_dict())
    assert begun + ours(second, learned(), range(8, STEPS)) == whole


@pytest.mark.parametrize(("bad", "end"), [(True, scaling.SMALLEST), (False, scaling.LARGEST)])
def test_a_scale_and_its_inverse_stay_numbers(monkeypatch: pytest.MonkeyPatch, bad: bool, end: float) -> None:
    monkeypatch.setattr(scaling, "INTERVAL", 1)
    scaler, parameter = LossScaler(CPU), nn.Parameter(torch.ones(1))
    for _ in range(200):
        scaler.update(torch.tensor(bad))
    assert float(scaler.state_dict()["scale"]) == end
    parameter.grad = scaler.scale(torch.ones(1))
    scaler.unscale_([parameter])
    assert parameter.grad.tolist() == [1.0]


def test_a_first_step_of_fused_sgd_that_is_left_out_leaves_its_momentum_unmade(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16's first steps overflow: torch went on from whatever lay in the memory of a momentum that nobody filled."""
    try:
        make_optimizer([{"params": learned(), "lr": 0.1, "name": "unet"}], FUSED_SGD)
    except ConfigError:
        pytest.skip("this torch has no fused SGD on the CPU")
    monkeypatch.setattr(torch, "empty_like", lambda one, **_: torch.full_like(one, torch.nan))
    found = []
    for bad in ([], [True, True]):
        parameters = learned()
        optimizer = make_optimizer([{"params": parameters, "lr": 0.1, "name": "unet"}], FUSED_SGD)
        for left_out in (*bad, False, False):
            optimizer.zero_grad()
            loss_of(parameters, 0).backward()
            step_unless(optimizer, torch.tensor(left_out))
        found.append(parameters)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_without_fp16_nothing_is_done() -> None:
    scaler, parameter = loss_scaler(CPU, torch.bfloat16), nn.Parameter(torch.ones(1))
    parameter.grad = torch.full((1,), 3.0)
    scaler.unscale_([parameter])
    scaler.update(torch.tensor(True))
    assert not scaler.is_enabled() and scaler.state_dict() == {} and parameter.grad.tolist() == [3.0]
    assert scaler.scale(loss := torch.ones(())) is loss
    scaler.load_state_dict({})
