"""Optimizers, learning-rate schedules and precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from lib_trainer.config import OptimizerConfig
from lib_trainer.refusals import ConfigError
from lib_trainer.training import precision
from lib_trainer.training.optimizers import OPTIMIZERS, SCHEDULES, LearningRates, check_optimizer
from lib_trainer.training.precision import autocast, loss_scaler, resolve_precision

CPU = torch.device("cpu")


def test_adamw_is_the_papers_update() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in float64 by hand, for two groups with rates of their own."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(5)), torch.nn.Parameter(torch.randn(3))]
    rates, decay = [0.1, 0.01], 0.2
    mine = [parameter.detach().double().clone() for parameter in parameters]
    first, second = ([torch.zeros_like(p) for p in mine] for _ in range(2))
    groups: list[dict[str, Any]] = [
        {"params": [parameter], "lr": rate, "name": name} for parameter, rate, name in zip(parameters, rates, "ab")
    ]
    optimizer = OPTIMIZERS["AdamW"](groups, OptimizerConfig(weight_decay=decay))
    for step in range(1, 6):
        for index, parameter in enumerate(parameters):
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient
            g = gradient.double()
            first[index] = 0.9 * first[index] + 0.1 * g
            second[index] = 0.999 * second[index] + 0.001 * g * g
            mhat, vhat = first[index] / (1 - 0.9**step), second[index] / (1 - 0.999**step)
            mine[index] -= rates[index] * (mhat / (vhat.sqrt() + 1e-8) + decay * mine[index])
        optimizer.step()
    for parameter, expected in zip(parameters, mine):
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_adamw_8bit_on_the_cpu_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.name = 'AdamW8bit' needs an NVIDIA card: take AdamW\."):
        check_optimizer("AdamW8bit", CPU)
    check_optimizer("AdamW", CPU)


def test_adamw_8bit_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs bitsandbytes, which is not installed: take AdamW"):
        check_optimizer("AdamW8bit", torch.device("cuda"))


def test_every_choice_has_an_entry() -> None:
    hints = {field.name: field.type for field in msgspec.structs.fields(OptimizerConfig)}
    assert str(sorted(OPTIMIZERS)) in str(sorted(_choices(hints["name"])))
    assert sorted(SCHEDULES) == sorted(_choices(hints["schedule"]))


def _choices(hint: Any) -> list[str]:
    info = msgspec.inspect.type_info(hint)
    inner = info.type if isinstance(info, msgspec.inspect.Metadata) else info
    return list(inner.values)  # type: ignore[union-attr]


def _factors(name: str, total: int, warmup: int = 0) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": 0.5, "name": "unet"}])
    config = OptimizerConfig(schedule=name, warmup_steps=warmup)  # type: ignore[arg-type]
    rates = LearningRates(optimizer, config, total)
    seen = []
    for step in range(total):
        told = rates.set(step)
        assert told == {"unet": optimizer.param_groups[0]["lr"]}
        seen.append(told["unet"] / 0.5)
    return seen


def test_constant() -> None:
    assert _factors("constant", 7, warmup=5) == [1.0] * 7


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert _factors("cosine", 20) == pytest.approx(expected, abs=1e-9)
    assert SCHEDULES["cosine"](20, 20, 0) == pytest.approx(0, abs=1e-12)


def test_warmup_rises_in_a_line_and_stays() -> None:
    seen = _factors("constant_with_warmup", 12, warmup=5)
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0] + [1.0] * 7)
    assert _factors("constant_with_warmup", 3, warmup=0) == [1.0] * 3
    assert all(math.isfinite(factor) and 0 < factor <= 1 for factor in seen)


@pytest.mark.parametrize(
    ("flags", "expected"), [("avx2 avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx2", torch.float32)]
)
def test_auto_on_a_cpu_takes_bf16_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, flags: str, expected: torch.dtype
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **kw: f"flags : {flags}")
    precision._cpu_multiplies_bf16.cache_clear()
    try:
        assert resolve_precision("auto", CPU) is expected
    finally:
        precision._cpu_multiplies_bf16.cache_clear()


FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
HALVES = (BF16, FP16)
DEVICES: dict[str, tuple[str, dict[str, Any], tuple[torch.dtype, ...]]] = {
    # what it is: kind, what it says of itself, what it trains in (`auto` takes the first)
    "RTX 20, GTX 16, T4": ("cuda", {"capability": (7, 5)}, (FP16,)),
    "GTX 10": ("cuda", {"capability": (6, 1)}, (FP16,)),
    "A100": ("cuda", {"capability": (8, 0)}, HALVES),
    "RTX 40": ("cuda", {"capability": (8, 9)}, HALVES),
    "RX 6000": ("cuda", {"capability": (10, 3), "arch": "gfx1030:sramecc+:xnack-"}, (FP16,)),
    "RX 7000": ("cuda", {"capability": (11, 0), "arch": "gfx1100"}, HALVES),
    "MI200": ("cuda", {"capability": (9, 0), "arch": "gfx90a:sramecc+:xnack-"}, HALVES),
    "Arc": ("xpu", {"has_bfloat16_conversions": True, "has_fp16": True}, HALVES),
    "Intel graphics without bf16": ("xpu", {"has_bfloat16_conversions": False, "has_fp16": True}, (FP16,)),
    "Arc by a torch that does not tell": ("xpu", {}, HALVES),
    "Arc without autocast": ("xpu", {"autocasts": ()}, ()),
    "Apple, macOS 14": ("mps", {"macos": (14, 0)}, (BF16,)),  # torch scales no losses there
    "Apple, macOS 13": ("mps", {"macos": (13, 6)}, ()),
    "Apple, torch 2.1": ("mps", {"macos": (14, 0), "autocasts": ()}, ()),
    "DirectML": ("privateuseone", {"autocasts": ()}, ()),
    "a plug-in with autocast": ("privateuseone", {"autocasts": (BF16,)}, (BF16,)),
}


@pytest.fixture
def device_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, dict[str, Any]], Any]]:
    """Makes a device that says the given things of itself, and sees that no other one is asked."""
    asked: list[Any] = []
    made: list[Any] = []

    def make(kind: str, says: dict[str, Any]) -> Any:
        device = SimpleNamespace(type=kind)
        made.append(device)

        def told(value: Any) -> Callable[[Any], Any]:
            return lambda which: asked.append(which) or value

        arch = says.get("arch")
        known = says.get("autocasts", HALVES)
        monkeypatch.setattr(precision, "autocasts", lambda which, dtype: which == kind and dtype in known)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)  # as newer torch has it
        monkeypatch.setattr(torch.cuda, "get_device_capability", told(says.get("capability")))
        monkeypatch.setattr(torch.cuda, "get_device_properties", told(SimpleNamespace(gcnArchName=arch)))
        monkeypatch.setattr(torch.version, "hip", arch and "6.0")
        monkeypatch.setattr(torch.xpu, "get_device_properties", told(SimpleNamespace(**says)), raising=False)
        monkeypatch.setattr(
            torch.backends.mps, "is_macos_or_newer", lambda *version: says["macos"] >= version, raising=False
        )
        return device

    yield make
    assert all(device in made for device in asked)


@pytest.mark.parametrize("name", DEVICES)
def test_each_device_takes_what_it_has(name: str, device_of: Callable[[str, dict[str, Any]], Any]) -> None:
    kind, says, takes = DEVICES[name]
    device = device_of(kind, says)
    assert resolve_precision("auto", device) is (*takes, FP32)[0]
    assert resolve_precision("fp32", device) is FP32
    for asked, dtype in (("bf16", BF16), ("fp16", FP16)):
        if dtype in takes:
            assert resolve_precision(asked, device) is dtype
        else:
            other = "another device" if dtype is FP16 else f"take {'fp16' if FP16 in takes else 'fp32'} or auto"
            with pytest.raises(ConfigError, match=f"precision = '{asked}' .*{other}"):
                resolve_precision(asked, device)
    assert not loss_scaler(device, FP32).is_enabled()


def test_fp16_on_a_cpu_wants_a_torch_that_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_multiplies_fp16", lambda: True)
    assert resolve_precision("fp16", CPU) is torch.float16
    monkeypatch.setattr(precision, "_cpu_multiplies_fp16", lambda: False)
    with pytest.raises(ConfigError, match=r"training\.precision = 'fp16' needs a GPU or torch 2\.4: take bf16, fp32"):
        resolve_precision("fp16", CPU)
    assert resolve_precision("fp32", CPU) is torch.float32
    assert resolve_precision("bf16", CPU) is torch.bfloat16


def test_autocast_and_scaling_are_on_only_where_they_are_needed() -> None:
    a = torch.ones(2, 2)
    for dtype in (torch.float32, torch.bfloat16):
        with autocast(CPU, dtype):
            assert (a @ a).dtype is dtype
        assert not loss_scaler(CPU, dtype).is_enabled()
    if precision._cpu_multiplies_fp16():
        with autocast(CPU, torch.float16):
            assert (a @ a).dtype is torch.float16
        assert loss_scaler(CPU, torch.float16).is_enabled()
