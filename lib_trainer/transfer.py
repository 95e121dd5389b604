"""Tensors on their way to a device and back, without making the host wait for it."""

from __future__ import annotations

from collections.abc import Callable

import torch


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`. To a GPU it goes through pinned memory, so that the host queues the copy and goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def is_recorded(device: torch.device) -> bool:
    """Whether what is sent to `device` is recorded now, to be repeated later, and not computed."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def has_place(tensor: torch.Tensor) -> bool:
    """Whether its bytes lie where they can be read as another tensor. DirectML's tensors are opaque."""
    return torch._C._has_storage(tensor)


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
