"""Which precision a device can train in, and loss scaling for fp16."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from lib_trainer.errors import ConfigError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of `auto`, `bf16`, `fp16` or `fp32` on a device. Raises `ConfigError` if the device cannot."""
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if device.type == "cpu" and _cpu_multiplies_bf16() else torch.float32
    dtype = DTYPES[name]
    if dtype is torch.float16 and device.type == "cpu":
        raise ConfigError("training.precision = 'fp16' needs a GPU: take bf16, fp32 or auto on the CPU.")
    if dtype is torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("training.precision = 'bf16' is not supported by this GPU: take fp16 or auto.")
    return dtype


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
