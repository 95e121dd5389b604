"""Autocast (automatic mixed precision) on any kind of device: what it computes in just now, and how it is turned off.

torch 2.4 brought one set of functions for all kinds of device. Earlier versions have a name of its own for each, and
leave Intel's XPU, and what a plug-in registers (DirectML, whose kind is `privateuseone`), to the plug-in's module;
Apple's MPS they do not know, and refuse even to turn autocast off there. What is not known cannot be on.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch


class Switch(NamedTuple):
    """Autocast of one kind of device in this thread."""

    is_on: Callable[[], bool]
    dtype: Callable[[], torch.dtype]
    turn: Callable[[bool], None]


@functools.cache
def switch(kind: str) -> Switch | None:
    """The bare switch, for places that are passed a hundred times a step: entering `torch.autocast` costs far more.

    None where autocast does not know the kind of device.
    """
    if hasattr(torch, "get_autocast_dtype"):  # from torch 2.4 on, which warns about the older names
        if not _available(kind):
            return None
        parts: Any = (torch.is_autocast_enabled, torch.get_autocast_dtype, torch.set_autocast_enabled)
        return Switch(*(functools.partial(part, kind) for part in parts))
    middle = {"cuda": ("", "_gpu"), "cpu": ("_cpu", "_cpu"), "xpu": ("_xpu", "_xpu")}.get(kind, ("", ""))
    names = (f"is_autocast{middle[0]}_enabled", f"get_autocast{middle[1]}_dtype", f"set_autocast{middle[0]}_enabled")
    owner = torch if kind in ("cuda", "cpu") else getattr(torch, kind, None)
    found = [getattr(owner, name, None) for name in names]
    return None if None in found else Switch(*found)  # type: ignore[arg-type]


def _available(kind: str) -> bool:
    try:
        return torch.amp.is_autocast_available(kind)
    except RuntimeError:  # a kind that torch has never heard of
        return False


def autocast_dtype(kind: str) -> torch.dtype | None:
    """Autocast's dtype on a kind of device; None where it is off or not known there."""
    found = switch(kind)
    return found.dtype() if found is not None and found.is_on() else None


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """What a product of `x` is computed in: autocast's dtype where autocast is on."""
    return autocast_dtype(x.device.type) or x.dtype


@functools.cache
def autocasts(kind: str, dtype: torch.dtype | None = None) -> bool:
    """Whether autocast knows the kind of device, and the dtype on it where one is given."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where it knows only the device it warns and stays off
            context = torch.autocast(kind, dtype, enabled=dtype is not None)
    except Exception:  # each version of torch and each device's plug-in refuses with an error of its own
        return False
    return dtype is None or bool(context._enabled)


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Everything is in the right dtype already."""
    return torch.autocast(kind, enabled=False) if autocasts(kind) else nullcontext()
