"""The parts, each against a reference of its own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lib_trainer.tiling import statistics
from lib_trainer.tiling.attention import attend, chunked
from lib_trainer.tiling.computed import Upsampled, composed, polyphase
from lib_trainer.tiling.host_memory import in_host_memory
from lib_trainer.tiling.maps import Given, Map, OnDevice, Shape, Windows, rows
from lib_trainer.tiling.network import Conv, Norm
from lib_trainer.tiling.plan import Plan, Tier
from lib_trainer.tiling.statistics import Moments
from tests.without_fp64 import OnArc


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.floats(-50, 50), st.integers(0, 99))
def test_statistics_of_bands_are_those_of_the_whole(heights: list[int], mean: float, seed: int) -> None:
    """Against NumPy in float64, and torch's group_norm in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 8, sum(heights), 7, generator=generator) * 3 + mean
    x += torch.linspace(-5, 5, x.shape[2])[:, None]
    norm = Norm(4, 1e-6, torch.randn(8, generator=generator), torch.randn(8, generator=generator))
    moments = Moments(4)
    for band in x.split(heights, dim=2):
        moments.add(band)
    exact = x.double().numpy().reshape(2, 4, -1)
    assert moments._mean is not None and moments._squares is not None
    np.testing.assert_allclose(moments._mean.numpy(), exact.mean(2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moments._squares.numpy() / moments._count, exact.var(2), rtol=1e-4)
    expected = F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps)
    torch.testing.assert_close(moments.affine(norm)(x).double(), expected, rtol=1e-4, atol=1e-3)


def test_statistics_on_a_device_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "widest_float", lambda device: torch.float32)
    x = (torch.randn(1, 8, 12, 7, generator=torch.Generator().manual_seed(1)) * 3 + 2).bfloat16()
    norm, moments, exact = Norm(4, 1e-6, torch.ones(8), torch.zeros(8)), Moments(4), Moments(4)
    for band in x.split(5, dim=2):
        moments.add(band.as_subclass(OnArc))
        exact.add(band.double())
    torch.testing.assert_close(
        moments.affine(norm)(x.float()).cpu(), exact.affine(norm)(x.float()), rtol=1e-5, atol=1e-5
    )


def test_a_constant_map_has_no_variance() -> None:
    moments = Moments(2)
    for _ in range(3):
        moments.add(torch.full((1, 4, 2, 5), 7.0))
    assert moments._squares is not None
    assert float(moments._squares.max()) < 1e-6


@pytest.mark.parametrize("circular", [False, True])
def test_polyphase_is_the_convolution_of_the_doubled_map(circular: bool) -> None:
    """Against interpolate and conv2d in float64."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 6, 7), torch.randn(4, 5, 3, 3)
    mode = "circular" if circular else "constant"
    doubled = F.pad(F.interpolate(x, scale_factor=2.0).double(), (1, 1, 1, 1), mode=mode)
    expected = F.conv2d(doubled, weight.double())
    padded = F.pad(x, (1, 1, 1, 1), mode=mode)
    for (down, right), phase in polyphase(weight).items():
        found = F.conv2d(padded, phase)[:, :, down : down + 6, right : right + 7]
        torch.testing.assert_close(found.double(), expected[:, :, down::2, right::2], rtol=1e-5, atol=1e-5)


class Told:
    """What `Upsampled` needs to know of a run."""

    late = False

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.counted = dtype, 0

    def count(self, macs: int) -> None:
        self.counted += macs


@pytest.mark.parametrize(
    ("dtype", "products"),
    # per band of three rows, of which one is computed with its pair: four 2×2 with an edge, or one 3×3
    [(torch.float32, 4 * 3 * 8 * 4), (torch.bfloat16, 4 * 14 * 9)],
    ids=["fp32", "bf16"],
)
def test_upsampling_rounds_no_more_than_the_convolution_itself(dtype: torch.dtype, products: int) -> None:
    """The sums of taps are not rounded to half precision."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 32, 6, 7).to(dtype), (torch.randn(16, 32, 3, 3) / 17).to(dtype)
    told = Told(dtype)
    upsampled = Upsampled(told, Given(x), Conv(weight, None))
    found = torch.cat([rows(upsampled, first, first + 3) for first in range(0, 12, 3)], dim=2)
    truth = F.conv2d(F.interpolate(x.double(), scale_factor=2.0), weight.double(), padding=1)
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, padding=1)
    error, own = ((one.double() - truth).abs().mean() for one in (found, plain))
    assert found.shape == truth.shape
    assert error <= 1.05 * own + 1e-6
    assert told.counted == 4 * products * 16 * 32
    phases = polyphase(weight)
    window = F.pad(x, (1, 1, 1, 1))
    merged = F.conv2d(window, phases[0, 0])[:, :, :6, :7].double()
    assert dtype is torch.float32 or (merged - truth[:, :, ::2, ::2]).abs().mean() > 1.1 * own


def test_a_pointwise_convolution_after_another_is_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 5, 6, 7)
    inner = Conv(torch.randn(6, 5, 3, 3), torch.randn(6))
    outer = Conv(torch.randn(3, 6, 1, 1), torch.randn(3))
    expected = F.conv2d(F.conv2d(x.double(), inner.weight.double(), inner.bias.double()), outer.weight.double())
    expected += outer.bias.double()[:, None, None]
    one = composed(outer, inner)
    torch.testing.assert_close(F.conv2d(x, one.weight, one.bias).double(), expected, rtol=1e-5, atol=1e-4)
    bare = composed(Conv(outer.weight, None), Conv(inner.weight, None))
    torch.testing.assert_close(F.conv2d(x, bare.weight, bare.bias), F.conv2d(F.conv2d(x, inner.weight), outer.weight))


def test_attention_is_softmax_of_the_scaled_product() -> None:
    """Vaswani et al. 2017, eq. 1, in float64."""
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 9, 16), torch.randn(2, 21, 16), torch.randn(2, 21, 16)
    weights = torch.softmax(torch.einsum("bqc,bkc->bqk", query.double(), key.double()) / 16**0.5, -1)
    expected = torch.einsum("bqk,bkc->bqc", weights, value.double())
    torch.testing.assert_close(attend(query, key, value).double(), expected, rtol=1e-5, atol=1e-5)
    four = [one.unsqueeze(1) for one in (query, key, value)]
    for limit in (1, 1000, 5000):
        found = chunked(*four, limit=limit).squeeze(1)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("store", [OnDevice, in_host_memory(torch.device("cpu"))], ids=["device", "host"])
def test_a_map_gives_its_rows_back_and_forgets_the_released(store: object) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 10, 4)
    kept = Map(Shape(*x.shape), store())  # type: ignore[operator]
    for band in x.split([3, 1, 4, 2], dim=2):
        kept.append(band.clone())
    for first in range(10):
        for last in range(first + 1, 11):
            assert torch.equal(rows(kept, first, last), x[:, :, first:last])
    kept.release(4)
    assert torch.equal(rows(kept, 4, 10), x[:, :, 4:])
    with pytest.raises(AssertionError, match="released too early"):
        rows(kept, 3, 5)


@pytest.mark.parametrize("circular", [False, True])
def test_windows_are_the_padded_map(circular: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 7, 5)
    expected = F.pad(x, (1, 1, 1, 1), mode="circular" if circular else "constant")
    windows = Windows(Given(x), circular=circular, affine=None, dtype=torch.float32, late=False)
    for first, last in ((0, 7), (0, 1), (2, 5), (6, 7)):
        assert torch.equal(windows.get(first, last), expected[:, :, first : last + 2])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.integers(1, 3000), st.integers(1, 100_000), st.one_of(st.none(), st.integers(1, 600)))
def test_bands_are_a_partition(height: int, row: int, elements: int, rows_fixed: int | None) -> None:
    plan = Plan(Tier.RESIDENT, elements, height, rows=rows_fixed)
    bands = plan.bands(row, height)
    assert bands[0][0] == 0 and bands[-1][1] == height
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bands))
    tallest = max(last - first for first, last in bands)
    assert tallest <= max(rows_fixed or 1, 1 if rows_fixed else elements // row, 1)
