"""Tensors on their way to a device and back, without making the host wait for it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from lib_trainer.memory import is_out_of_memory

EXCHANGED = ("cuda", "xpu", "mps", "hpu")
"""Kinds of device whose tensors and the CPU's can stand for one another, in every torch from 2.1 on."""


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`. To a GPU it goes through pinned memory, so that the host queues the copy and goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def moves(device: torch.device) -> bool:
    """Whether a device's parameters can wait on the CPU and come back, the same objects with other bytes.

    Those of the CPU itself have nowhere else to go. With a plug-in's device (Ascend's NPU, DirectML) torch exchanges no
    bytes of a parameter: to move a module there is to make new ones (`has_compatible_shallow_copy_type`,
    c10/core/TensorImpl.h).
    """
    return device.type in EXCHANGED


def is_recorded(device: torch.device) -> bool:
    """Whether what is sent to `device` is recorded now, to be repeated later, and not computed."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def has_place(tensor: torch.Tensor) -> bool:
    """Whether its bytes lie where they can be read as another tensor. DirectML's tensors are opaque."""
    return torch._C._has_storage(tensor)


@functools.cache
def widest_float(device: torch.device) -> torch.dtype:
    """The widest floating point numbers that a device computes with: float64, or float32 (Apple's MPS, Intel's Arc).

    It is asked by a sum; raises what it raises where there is no room for that.
    """
    try:
        torch.ones(1, dtype=torch.float64, device=device).add_(1.0)
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return torch.float32
    return torch.float64


def arriving(values: torch.Tensor) -> Callable[[], list[float]]:
    """Send a vector of fp32 from its device; the call that is returned waits for it and gives its numbers."""
    if values.device.type != "cuda":
        return values.tolist
    landed = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    landed.copy_(values, non_blocking=True)
    sent_off = torch.cuda.Event()
    sent_off.record(torch.cuda.current_stream(values.device))

    def numbers() -> list[float]:
        sent_off.synchronize()
        return landed.tolist()

    return numbers
