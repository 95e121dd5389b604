"""Row bands against the untiled module in fp32: the bounds of the promise, 1e-4 at most and 1e-5 on average."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_trainer.tiling import statistics
from lib_trainer.tiling.adapters import describe
from lib_trainer.tiling.engine import Options, attempt, run
from lib_trainer.tiling.plan import Plan, Tier, predict
from tests.tiling.conftest import MODULES, error, padded
from tests.tiling.conftest import given as input_for

MOST, MEAN = 1e-4, 1e-5


def banded(module: Any, x: torch.Tensor, tier: Tier, rows: int | None, elements: int = 20_000) -> torch.Tensor:
    network = describe(module)
    height = max(x.shape[2], network.output_shape(tuple(x.shape))[2])
    plan = predict(network, x.shape, Plan(tier, elements, height, rows=rows), 4)
    with torch.no_grad():
        return attempt(network, plan, x, Options())


def check(module: Any, x: torch.Tensor, tier: Tier, rows: int | None, elements: int = 20_000) -> None:
    with torch.no_grad():
        expected = module(x)
    most, mean = error(banded(module, x, tier, rows, elements), expected)
    assert most <= MOST and mean <= MEAN


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("name", MODULES)
def test_equals_the_untiled_module(modules: dict[str, Any], name: str, tier: Tier, mode: str) -> None:
    with padded(modules[name], mode):
        check(modules[name], input_for(name, 2, 6, 9), tier, rows=5)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 1000])
@pytest.mark.parametrize("name", MODULES[:2])
def test_bands_of_any_height(modules: dict[str, Any], name: str, rows: int) -> None:
    for tier in (Tier.RESIDENT, Tier.RECOMPUTE):
        check(modules[name], input_for(name, 1, 4, 3), tier, rows)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(MODULES),
    batch=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    tier=st.sampled_from(Tier),
    elements=st.integers(1, 60_000),
    circular=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_size_and_band(
    modules: dict[str, Any], name: str, batch: int, height: int, width: int, tier: Tier, elements: int, circular: bool,
    seed: int,
) -> None:  # fmt: skip
    """Sizes and aspects, band heights from one row to the whole."""
    with padded(modules[name], "circular" if circular else "zeros"):
        check(modules[name], input_for(name, batch, height, width, seed), tier, None, elements)


@pytest.mark.parametrize("size", [(61, 43), (17, 40), (9, 8)])
def test_sizes_that_eight_does_not_divide(modules: dict[str, Any], size: tuple[int, int]) -> None:
    """The untiled encoder halves them downwards, and so do bands."""
    x = torch.rand(1, 3, *size) * 2 - 1
    check(modules["ldm encoder"], x, Tier.RESIDENT, 7)
    check(modules["diffusers encoder"], x, Tier.RECOMPUTE, 7)


def test_the_bounds_would_be_broken(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics whose bands' means are ignored, as pooling variances does, are far outside."""
    own = statistics.Moments.add

    def pooled(self: statistics.Moments, band: torch.Tensor) -> None:
        before = self._mean
        if before is not None and self._squares is not None:
            count, squares = self._count, self._squares
            own(self, band)
            fresh = statistics.group_moments(band, self.groups)[1].double() * (self._count - count)
            self._squares = squares + fresh
        else:
            own(self, band)

    monkeypatch.setattr(statistics.Moments, "add", pooled)
    x = input_for("ldm decoder", 1, 8, 8) + torch.linspace(-2, 2, 8)[:, None]
    with torch.no_grad():
        expected = modules["ldm decoder"](x)
    most, mean = error(banded(modules["ldm decoder"], x, Tier.RESIDENT, 4), expected)
    assert most > 100 * MOST and mean > 100 * MEAN


@pytest.mark.parametrize("name", MODULES)
def test_run_chooses_by_itself(modules: dict[str, Any], name: str) -> None:
    x = input_for(name, 1, 8, 8)
    with torch.no_grad():
        expected = modules[name](x)
    kept = x.clone()
    found = run(describe(modules[name]), x)
    assert error(found, expected)[0] <= MOST
    assert torch.equal(x, kept), "the input is the caller's"
