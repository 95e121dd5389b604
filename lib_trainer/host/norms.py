"""Norms in the run's precision, without a detour over fp32.

Autocast, and ldm's own GroupNorm, turn activations to fp32 before a norm and back behind it: two copies of each map,
and a third that waits for the backward pass. torch's kernels take half precision and sum in fp32 as they are.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer import autocasting
from lib_trainer.patching import replaced_forward

NORMS = (nn.GroupNorm, nn.LayerNorm)


@contextlib.contextmanager
def direct_norms(dtype: torch.dtype, *roots: nn.Module) -> Iterator[None]:
    """Every GroupNorm and LayerNorm computes in its input's precision, whatever autocast says.

    Their weights are best held in `dtype` for as long. Norms that learn are computed as they were, in fp32. Where
    `dtype` is fp32 nothing changes.
    """
    norms = [module for root in roots for module in root.modules() if isinstance(module, NORMS)]
    with contextlib.ExitStack() as stack:
        for norm in norms if dtype is not torch.float32 else ():
            stack.enter_context(replaced_forward(norm, functools.partial(_direct, norm, norm.forward)))
        yield


def _direct(norm: Any, before: Callable[..., torch.Tensor], input: torch.Tensor) -> torch.Tensor:
    if norm.weight is None or norm.weight.requires_grad:
        return before(input)
    autocast = autocasting.switch(input.device.type)
    if autocast is None or not autocast.is_on():
        return _normed(norm, input)
    autocast.turn(False)
    try:
        return _normed(norm, input)
    finally:
        autocast.turn(True)


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    weight, bias = norm.weight.to(x.dtype), None if norm.bias is None else norm.bias.to(x.dtype)
    if isinstance(norm, nn.GroupNorm):
        return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
