"""Which precision each device trains in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_trainer.refusals import ConfigError
from lib_trainer.training import precision
from lib_trainer.training.precision import autocast, resolve_precision
from lib_trainer.training.scaling import loss_scaler

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "expected"), [("avx2 avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx2", torch.float32)]
)
def test_auto_on_a_cpu_takes_bf16_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, expected: torch.dtype
) -> None:
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    precision.CPU_INFO.write_text(f"flags : {flags}", encoding="ascii")
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
    "Ascend 910B": ("npu", {"overflows": True}, HALVES),
    "Ascend 910A, whose sums stop at the largest number": ("npu", {"autocasts": (FP16,), "overflows": False}, ()),
    "a plug-in without bf16": ("npu", {"autocasts": (FP16,), "overflows": True}, (FP16,)),
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
        monkeypatch.setattr(precision, "_overflows", lambda which: bool(told(says["overflows"])(which)))
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


def test_a_device_is_asked_whether_fp16_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU does; one that makes it the largest number, or multiplies none, does not."""
    whole = torch.Tensor.isinf
    try:
        precision._overflows.cache_clear()
        assert precision._overflows(CPU)
        precision._overflows.cache_clear()
        monkeypatch.setattr(torch.Tensor, "isinf", lambda self: whole(self.clamp(-65504, 65504)))
        assert not precision._overflows(CPU)
    finally:
        precision._overflows.cache_clear()
    assert not precision._overflows(torch.device("hpu"))


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
