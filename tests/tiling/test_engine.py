"""Plans, budgets, running out of memory, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from lib_trainer.memory import free_bytes, is_out_of_memory
from lib_trainer.refusals import MemoryExhausted
from lib_trainer.tiling import engine
from lib_trainer.tiling.adapters import describe
from lib_trainer.tiling.choose import candidates, fitting, untiled_bytes
from lib_trainer.tiling.engine import Options, run
from lib_trainer.tiling.executor import Execution
from lib_trainer.tiling.network import UnsupportedVae
from lib_trainer.tiling.plan import HALVINGS, Plan, Tier, predict
from tests.tiling.conftest import MODULES, error, given, padded


class Stopped(Exception):
    pass


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("name", MODULES[:2])
def test_the_work_is_the_predicted(modules: dict[str, Any], name: str, tier: Tier, window: int | None) -> None:
    """In whole bands; bands compute a row or two twice."""
    network, x = describe(modules[name]), given(name, 2, 16, 8)
    height = max(x.shape[2], network.output_shape(tuple(x.shape))[2])
    plan = predict(network, x.shape, Plan(tier, 1 << 30, height, window=window), 4)
    execution = Execution(network, plan)
    with torch.no_grad():
        execution.run(x)
    assert execution.done == pytest.approx(plan.macs, rel=0.03)


def test_each_tier_takes_less_and_works_more() -> None:
    """With SD1's channel counts; no weight is there."""
    with torch.device("meta"):
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **kinds)
    network = describe(vae.decoder)
    resident, recompute, host = (candidates(network, (1, 4, 128, 128), 4, tiers=(tier,))[0] for tier in Tier)
    assert resident.device_bytes > recompute.device_bytes > host.device_bytes
    assert recompute.macs > resident.macs == host.macs
    assert host.host_bytes > 0 == resident.host_bytes
    untiled = untiled_bytes(network, (1, 4, 128, 128), 4)
    assert resident.device_bytes < 0.4 * untiled
    halves = candidates(network, (1, 4, 128, 128), 4, tiers=(Tier.RESIDENT,))
    sizes = [plan.device_bytes for plan in halves]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert fitting(halves, sizes[1], 0) == halves[1:]


def test_out_of_memory_halves_bands_and_then_takes_the_next_tier(
    modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = given("ldm decoder", 1, 8, 8)
    with torch.no_grad():
        expected = modules["ldm decoder"](x)
    own, tried = engine.attempt, list[Plan]()

    def attempt(network: Any, plan: Plan, *rest: Any) -> torch.Tensor:
        tried.append(plan)
        if plan.tier is Tier.RESIDENT:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")
        return own(network, plan, *rest)

    monkeypatch.setattr(engine, "attempt", attempt)
    assert error(run(describe(modules["ldm decoder"]), x), expected)[0] <= 1e-4
    assert [plan.tier for plan in tried] == [Tier.RESIDENT] * HALVINGS + [Tier.RECOMPUTE]
    assert [plan.elements for plan in tried[:3]] == [1 << 20, 1 << 19, 1 << 18]


def test_no_plan_that_fits_is_a_sentence(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(*_: Any) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "attempt", attempt)
    with pytest.raises(MemoryExhausted, match=r"not enough memory to decode a picture.*even in the smallest bands"):
        run(describe(modules["ldm decoder"]), given("ldm decoder", 1, 8, 8))


def test_other_errors_are_passed_on_at_once(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def attempt(*_: Any) -> torch.Tensor:
        tried.append(1)
        raise RuntimeError("something else")

    monkeypatch.setattr(engine, "attempt", attempt)
    with pytest.raises(RuntimeError, match="something else"):
        run(describe(modules["ldm decoder"]), given("ldm decoder", 1, 8, 8))
    assert len(tried) == 1


def test_a_budget_chooses_the_tier(modules: dict[str, Any]) -> None:
    network, x = describe(modules["ldm decoder"]), given("ldm decoder", 1, 24, 24)
    plans = candidates(network, x.shape, 4, tiers=(Tier.RESIDENT, Tier.RECOMPUTE))
    chosen: list[Plan] = []
    lowest = plans[-1]
    found = run(network, x, Options(budget=lowest.device_bytes, chosen=chosen.append))
    assert chosen == [lowest] and chosen[0].tier is Tier.RECOMPUTE
    with torch.no_grad():
        assert error(found, modules["ldm decoder"](x))[0] <= 1e-4
    with pytest.raises(MemoryExhausted, match=r"budget of less than 0\.01 GiB is too small.*at least 0\.\d\d GiB"):
        run(network, x, Options(budget=1000))


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 3, 8, 8), (1, 16, 8, 8)])
def test_latents_of_another_shape(modules: dict[str, Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Latents of shape .* do not fit .*\(batch, 4, height, width\)"):
        run(describe(modules["ldm decoder"]), torch.zeros(shape))


def test_a_picture_too_small_to_be_halved(modules: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="too small"):
        run(describe(modules["ldm encoder"]), torch.zeros(1, 3, 4, 64))


def test_progress_goes_from_nothing_to_all_and_can_stop(modules: dict[str, Any]) -> None:
    network, x, seen = describe(modules["ldm decoder"]), given("ldm decoder", 1, 8, 8), list[float]()
    run(network, x, Options(progress=seen.append))
    assert seen == sorted(seen) and 0 < seen[0] < 0.05 and seen[-1] > 0.97

    def stop(fraction: float) -> None:
        if fraction > 0.3:
            raise Stopped

    with pytest.raises(Stopped):
        run(network, x, Options(progress=stop))


def test_nan_stays_nan(modules: dict[str, Any]) -> None:
    """The host looks at one pixel and tries again: it must find the NaN there."""
    x = given("ldm decoder", 1, 8, 8)
    x[0, 0, 3, 3] = float("nan")
    assert bool(run(describe(modules["ldm decoder"]), x).isnan().all())


def test_windowed_attention_is_an_approximation(modules: dict[str, Any]) -> None:
    network, x = describe(modules["ldm decoder"]), given("ldm decoder", 1, 16, 8)
    with torch.no_grad():
        expected = modules["ldm decoder"](x)
    plan = Plan(Tier.RESIDENT, 128 * 8 * 2, 128, window=3)
    with torch.no_grad():
        narrow = engine.attempt(network, plan, x, Options())
    assert 1e-4 < error(narrow, expected)[0] < 3
    whole = run(network, x, Options(window=16))
    assert error(whole, expected)[0] <= 1e-4, "a window over everything is exact"


@pytest.mark.parametrize(
    "change",
    ["taesd", "linear attention", "no norm", "reflect", "give_pre_end", "stride"],
)
def test_what_is_no_kl_vae_is_refused_by_name(modules: dict[str, Any], change: str) -> None:
    module: Any = copy.deepcopy(modules["ldm decoder"])
    if change == "taesd":
        module = nn.Sequential(nn.Conv2d(4, 64, 3, padding=1), nn.ReLU())
    elif change == "linear attention":
        module.mid.attn_1 = nn.Linear(4, 4)
    elif change == "no norm":
        module.norm_out = nn.BatchNorm2d(32)
    elif change == "reflect":
        module.conv_out.padding_mode = "reflect"
    elif change == "give_pre_end":
        module.give_pre_end = True
    else:
        module.conv_in = nn.Conv2d(4, 128, 3, stride=2, padding=1)
    with pytest.raises(UnsupportedVae):
        describe(module)


def test_xformers_attention_block_is_known(modules: dict[str, Any]) -> None:
    """`MemoryEfficientAttnBlock` has the same parts under the same names, whatever its forward calls."""
    module = copy.deepcopy(modules["ldm decoder"])
    own = module.mid.attn_1

    class MemoryEfficientAttnBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.q, self.k, self.v, self.proj_out = own.norm, own.q, own.k, own.v, own.proj_out

    module.mid.attn_1 = MemoryEfficientAttnBlock()
    x = given("ldm decoder", 1, 6, 6)
    with torch.no_grad():
        assert error(run(describe(module), x), modules["ldm decoder"](x))[0] <= 1e-4


def test_a_tanh_at_the_end(modules: dict[str, Any]) -> None:
    module = copy.deepcopy(modules["ldm decoder"])
    module.tanh_out = True
    x = given("ldm decoder", 1, 6, 6)
    with torch.no_grad():
        assert error(run(describe(module), x), module(x))[0] <= 1e-4


def test_the_description_follows_the_padding(modules: dict[str, Any]) -> None:
    """The WebUI switches its convolutions between two generations; nothing is remembered from the first."""
    module, x = modules["ldm decoder"], given("ldm decoder", 1, 6, 6)
    plain = run(describe(module), x)
    with padded(module, "circular"):
        wrapped = run(describe(module), x)
    assert error(wrapped, plain)[0] > 0.1
    assert error(run(describe(module), x), plain)[0] <= 1e-6


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("x")) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("could not create a memory object"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert free_bytes(torch.device("cpu")) > 1 << 20
