"""Half precision and autocast: no further from the fp32 truth than the untiled module is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lib_trainer.tiling.adapters import describe
from lib_trainer.tiling.engine import Options, attempt, computed_in, run
from lib_trainer.tiling.plan import Plan, Tier
from tests.tiling.conftest import MODULES, given

SLACK = 1.1
"""Two roundings of the same numbers differ by chance; the mean over thousands of pixels by far less than this."""


def mean_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth.double()).abs().mean() / truth.double().std())


@pytest.mark.parametrize(
    ("dtype", "tier"), [(torch.float16, Tier.RESIDENT), (torch.bfloat16, Tier.RECOMPUTE)], ids=["fp16", "bf16"]
)
@pytest.mark.parametrize("name", MODULES)
def test_half_precision(modules: dict[str, Any], name: str, dtype: torch.dtype, tier: Tier) -> None:
    module = modules[name]
    half = copy.deepcopy(module).to(dtype)
    x = given(name, 1, 5, 6)
    with torch.no_grad():
        truth, untiled = module(x), half(x.to(dtype))
        height = max(x.shape[2], truth.shape[2])
        found = attempt(describe(half), Plan(tier, 0, height, rows=20), x.to(dtype), Options())
    assert found.dtype is untiled.dtype is dtype
    assert mean_error(found, truth) <= SLACK * mean_error(untiled, truth)
    assert mean_error(untiled, truth) > 1e-4, "half precision would be as good as fp32 here"


@pytest.mark.parametrize("name", MODULES)
def test_under_autocast(modules: dict[str, Any], name: str) -> None:
    """The WebUI encodes img2img's picture under autocast with fp32 weights or fp16 ones."""
    module, x = modules[name], given(name, 1, 5, 6)
    with torch.no_grad():
        truth = module(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            untiled = module(x)
            found = run(describe(module), x)
    assert found.dtype is untiled.dtype is torch.bfloat16
    assert mean_error(found, truth) <= SLACK * mean_error(untiled, truth)


def test_what_is_computed_in(modules: dict[str, Any]) -> None:
    network = describe(modules["ldm decoder"])
    assert computed_in(network, torch.device("cpu")) == (torch.float32, False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert computed_in(network, torch.device("cpu")) == (torch.bfloat16, True)


def test_attention_in_fp32_where_the_option_asks_for_it(modules: dict[str, Any]) -> None:
    half = copy.deepcopy(modules["ldm decoder"]).to(torch.bfloat16)
    x = given("ldm decoder", 1, 8, 8).bfloat16()
    plain, upcast = (run(describe(half), x, Options(upcast_attention=on)) for on in (False, True))
    assert upcast.dtype is torch.bfloat16
    assert not torch.equal(plain, upcast)
    assert mean_error(upcast, plain) < 0.05
