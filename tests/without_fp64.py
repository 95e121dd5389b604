"""Devices without float64 (Apple's MPS, Intel's Arc), on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REFUSED = "Required aspect fp64 is not supported on the device"
"""As SYCL says it."""


class WithoutFp64(TorchDispatchMode):
    """While this is on, no operation may give numbers in float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _checked(func(*args, **(kwargs or {})))


class OnArc(torch.Tensor):
    """A tensor of such a device, and whatever is computed with it; `cpu()` gives a plain one."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        return found.as_subclass(torch.Tensor) if func is torch.Tensor.cpu else _checked(found)


def _checked(found: Any) -> Any:
    if any(isinstance(one, torch.Tensor) and one.dtype is torch.float64 for one in tree_leaves(found)):
        raise RuntimeError(REFUSED)
    return found
