"""Which precision a device can train in."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from lib_trainer.autocasting import autocasts
from lib_trainer.refusals import ConfigError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROCM_WITH_BF16 = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")
"""AMD's matrix units that take bf16: CDNA, and RDNA from the third generation on."""


CPU_INFO = Path("/proc/cpuinfo")
"""What Linux says of the processor."""


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of `auto`, `bf16`, `fp16` or `fp32` on a device. Raises `ConfigError` if the device cannot."""
    if name == "auto":
        return _automatic(device)
    dtype = DTYPES[name]
    if trains_in(dtype, device):
        return dtype
    if dtype is torch.float16:
        raise ConfigError(
            "precision.no_fp16_on_cpu" if device.type == "cpu" else "precision.no_fp16", field="training.precision"
        )
    other = "fp16" if trains_in(torch.float16, device) else "fp32"
    raise ConfigError("precision.no_bf16", field="training.precision", other=other)


def _automatic(device: torch.device) -> torch.dtype:
    if device.type == "cpu" and not _cpu_multiplies_bf16():
        return torch.float32
    return next(dtype for dtype in (torch.bfloat16, torch.float16, torch.float32) if trains_in(dtype, device))


def trains_in(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device's hardware multiplies `dtype` and torch has autocast to it there.

    The hardware is asked, and of the device that is used: newer torch's own answers for bf16 count emulation, which is
    slower than fp32. AMD's cards are `cuda` to ROCm. A plug-in (Ascend's NPU) says by its autocast what its hardware
    takes; DirectML has none, and trains in fp32. fp16 needs overflows that show (`_overflows`); on Apple's it was
    never tried.
    """
    kind, bf16 = device.type, dtype is torch.bfloat16
    if dtype is torch.float32:
        return True
    if kind == "cuda":
        return not bf16 or _card_multiplies_bf16(device)
    if not autocasts(kind, dtype):
        return False
    backend: Any = getattr(torch, kind, None)
    if kind == "cpu":
        return bf16 or _cpu_multiplies_fp16()
    if kind == "xpu" and hasattr(backend, "get_device_properties"):
        name = "has_bfloat16_conversions" if bf16 else "has_fp16"  # earlier versions do not tell
        return bool(getattr(backend.get_device_properties(device), name, True))
    if kind == "mps":
        newer = getattr(torch.backends.mps, "is_macos_or_newer", None)
        return bf16 and (newer is None or bool(newer(14, 0)))
    return bf16 or kind == "xpu" or _overflows(device)


@functools.cache
def _overflows(device: torch.device) -> bool:
    """Whether what is too large for fp16 becomes infinite there, by which loss scaling knows it. Ascend's older NPUs
    make it the largest number that there is."""
    try:
        return bool((torch.full((1,), 6e4, dtype=torch.float16, device=device) * 2).isinf())
    except Exception:  # as each plug-in refuses
        return False


def _card_multiplies_bf16(device: torch.device) -> bool:
    if torch.version.hip:
        arch = str(getattr(torch.cuda.get_device_properties(device), "gcnArchName", ""))
        return arch.startswith(ROCM_WITH_BF16)
    return torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _cpu_multiplies_fp16() -> bool:
    """torch has fp16 products on the CPU from 2.4 on; slow, but they are what a card computes."""
    one = torch.ones(1, 1, dtype=torch.float16)
    try:
        return bool(torch.isfinite(one @ one)) and bool(torch.nn.functional.conv2d(one[None], one[None, None]).sum())
    except RuntimeError:
        return False


@functools.cache
def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bf16 products (AVX512-BF16 or AMX). Without them bf16 is emulated and slower than fp32."""
    try:
        flags = CPU_INFO.read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Autocast to `dtype`; nothing for fp32."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)
