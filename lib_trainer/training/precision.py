"""Which precision a device can train in, and loss scaling for fp16."""

from __future__ import annotations

import functools
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from lib_trainer.errors import ConfigError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROCM_WITH_BF16 = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")
"""AMD's matrix units that take bf16: CDNA, and RDNA from the third generation on."""


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of `auto`, `bf16`, `fp16` or `fp32` on a device. Raises `ConfigError` if the device cannot."""
    if name == "auto":
        return _automatic(device)
    dtype = DTYPES[name]
    if dtype is torch.float16 and not _has_fp16(device):
        where = "a GPU or torch 2.4" if device.type == "cpu" else "another device"
        raise ConfigError(f"training.precision = 'fp16' needs {where}: take bf16, fp32 or auto.")
    if dtype is torch.bfloat16 and not _has_bf16(device):
        other = "fp16" if _has_fp16(device) else "fp32"
        raise ConfigError(f"training.precision = 'bf16' is not supported by this GPU: take {other} or auto.")
    return dtype


def _automatic(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_multiplies_bf16() else torch.float32
    if _has_bf16(device):
        return torch.bfloat16
    return torch.float16 if _has_fp16(device) else torch.float32


def _has_bf16(device: torch.device) -> bool:
    """By compute capability: newer torch's own answer counts emulation, which is slower than fp32."""
    if device.type != "cuda":
        return _autocasts(device.type, torch.bfloat16)
    if torch.version.hip:
        arch = str(getattr(torch.cuda.get_device_properties(device), "gcnArchName", ""))
        return arch.startswith(ROCM_WITH_BF16)
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _has_fp16(device: torch.device) -> bool:
    """fp16 wants loss scaling, which torch has for these devices only."""
    if device.type == "cuda":
        return True
    if device.type not in ("cpu", "xpu") or not hasattr(torch.amp, "GradScaler"):
        return False
    return _autocasts(device.type, torch.float16) and (device.type == "xpu" or _cpu_multiplies_fp16())


@functools.cache
def _autocasts(kind: str, dtype: torch.dtype) -> bool:
    """Whether autocast knows the device and the dtype; where it knows only the device it warns and stays off."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(torch.autocast(kind, dtype)._enabled)
    except Exception:  # each version of torch and each device's plug-in refuses with an error of its own
        return False


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
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Autocast to `dtype`; nothing for fp32."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def loss_scaler(device: torch.device, dtype: torch.dtype) -> Any:
    """Dynamic loss scaling where gradients of fp16 would vanish (Micikevicius et al. 2018, arXiv:1710.03740)."""
    enabled = dtype is torch.float16
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type, enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)
