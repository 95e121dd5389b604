"""Half precision and autocast: no further from the fp32 truth than the untiled module is."""

from __future__ import annotations

import copy
import statistics
from typing import Any

import pytest
import torch

from lib_trainer.tiling.adapters import describe
from lib_trainer.tiling.engine import Options, attempt, computed_in, run
from lib_trainer.tiling.plan import Plan, Tier
from tests.tiling.conftest import MODULES, given

PICTURES = 6


def mean_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth.double()).abs().mean() / truth.double().std())


def pictures(name: str) -> list[torch.Tensor]:
    """Inputs of one shape with the scale of the module's own."""
    first = given(name, 1, 5, 2)
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(first.shape, generator=generator) * first.std() + first.mean() for _ in range(PICTURES)]


@pytest.mark.parametrize(
    ("dtype", "tier"), [(torch.float16, Tier.RESIDENT), (torch.bfloat16, Tier.RECOMPUTE)], ids=["fp16", "bf16"]
)
@pytest.mark.parametrize("name", MODULES)
def test_half_precision(modules: dict[str, Any], name: str, dtype: torch.dtype, tier: Tier) -> None:
    module = modules[name]
    half = copy.deepcopy(module).to(dtype)
    network = describe(half)
    own, ratios = [], []
    for x in pictures(name):
        with torch.no_grad():
            truth, untiled = module(x), half(x.to(dtype))
            height = max(x.shape[2], truth.shape[2])
            found = attempt(network, Plan(tier, 0, height, rows=20), x.to(dtype), Options())
        assert found.dtype is untiled.dtype is dtype
        own.append(mean_error(untiled, truth))
        ratios.append(mean_error(found, truth) / own[-1])
    # two roundings of the same numbers differ by chance, on each processor otherwise: four standard errors are left
    chance = statistics.stdev(ratios) / PICTURES**0.5
    assert statistics.mean(ratios) <= 1 + min(0.1, 0.01 + 4 * chance)
    assert min(own) > 1e-4, "half precision would be as good as fp32 here"


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
    assert mean_error(found, truth) <= 1.1 * mean_error(untiled, truth)


def test_what_is_computed_in(modules: dict[str, Any]) -> None:
    network = describe(modules["ldm decoder"])
    assert computed_in(network, torch.device("cpu")) == (torch.float32, False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert computed_in(network, torch.device("cpu")) == (torch.bfloat16, True)


def test_attention_in_fp32_where_the_option_asks_for_it(modules: dict[str, Any]) -> None:
    half = copy.deepcopy(modules["ldm decoder"]).to(torch.bfloat16)
    x = given("ldm decoder", 1, 5, 2).bfloat16()
    plain, upcast = (run(describe(half), x, Options(upcast_attention=on)) for on in (False, True))
    assert upcast.dtype is torch.bfloat16
    assert not torch.equal(plain, upcast)
    assert mean_error(upcast, plain) < 0.05
