"""The VAE over row bands where it is needed: SD1's own size on a card, in half precision, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_trainer.tiling.adapters import describe
from lib_trainer.tiling.engine import Options, attempt, run
from lib_trainer.tiling.plan import Plan, Tier, predict
from tests.card import CARD, DEVICES, ON_A_CARD
from tests.tiling.conftest import CHANNELS, build_diffusers, given

SD1 = (128, 256, 512, 512)


@pytest.fixture(scope="module")
def vaes() -> dict[torch.device, Any]:
    return {}


def part_of(vaes: dict[torch.device, Any], device: torch.device, kind: str) -> Any:
    if device not in vaes:
        large = device.type == "cuda"
        vaes[device] = build_diffusers(SD1 if large else CHANNELS).to(device, torch.float16 if large else torch.float32)
    return getattr(vaes[device], kind)


def peak(device: torch.device) -> int:
    """Above what is there already, since `reset`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def reset(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@torch.no_grad()
def test_bands_are_the_whole_in_less_memory(
    vaes: dict[torch.device, Any], device: torch.device, kind: str, tier: Tier
) -> None:
    """A picture of 1024²; what bands take is what the plan said that they would."""
    module, large = part_of(vaes, device, kind), device.type == "cuda"
    x = given(kind, 1, 128 if large else 8, 128 if large else 8).to(device, next(module.parameters()).dtype)
    network = describe(module)
    start = reset(device)
    whole = module(x)
    untiled = peak(device) - start
    height = max(x.shape[2], whole.shape[2])
    plan = predict(network, x.shape, Plan(tier, 1 << 22, height), x.itemsize)
    start = reset(device)
    found = attempt(network, plan, x, Options())
    tiled = peak(device) - start
    assert found.dtype is whole.dtype and found.shape == whole.shape
    found, whole = found.cpu().double(), whole.cpu().double()
    off = (found - whole).abs() / whole.std()
    assert float(off.mean()) < (0.005 if large else 1e-5) and float(off.max()) < (0.2 if large else 1e-3)
    if large:
        print(f"{kind} {tier.value}: {untiled >> 20} MiB whole, {tiled >> 20} in bands, {plan.device_bytes >> 20} said")
        assert tiled < 0.75 * untiled
        assert tiled < 1.35 * plan.device_bytes + (64 << 20)


@pytest.mark.parametrize("device", [ON_A_CARD])
@torch.no_grad()
def test_a_full_card_decodes_in_bands_what_it_cannot_decode_whole(
    vaes: dict[torch.device, Any], device: torch.device
) -> None:
    """2048² within 3 GiB, in the fast mode's window of attention and exactly."""
    module, large = part_of(vaes, device, "decoder"), device.type == "cuda"
    x = given("decoder", 1, 256 if large else 8, 256 if large else 8).to(device, next(module.parameters()).dtype)
    network = describe(module)
    start = reset(device)
    if large:
        limit = (start + (3 << 30)) / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(limit, device)
    try:
        if large:
            with pytest.raises(torch.cuda.OutOfMemoryError):
                module(x)
        found = run(network, x, Options())
        near = run(network, x, Options(window=16))
    finally:
        if large:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    whole, found, near = (one.cpu().double() for one in (module(x), found, near))
    assert float((found - whole).abs().mean() / whole.std()) < 0.005
    assert float((near - whole).abs().mean() / whole.std()) < 0.5


@pytest.mark.parametrize("device", [ON_A_CARD])
def test_nothing_of_it_is_left(vaes: dict[torch.device, Any], device: torch.device) -> None:
    module = part_of(vaes, device, "decoder")
    x = given("decoder", 1, 32, 32).to(device, next(module.parameters()).dtype)
    start = reset(device)
    for tier in Tier:
        run(describe(module), x, Options(tiers=(tier,)))
    assert reset(CARD) <= start + (64 << 20)  # cuBLAS and cuDNN keep workspaces
