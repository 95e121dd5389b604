"""Attention for training on ldm's modules.

The WebUI replaces `CrossAttention.forward` on the class; several of its optimisations are slow or wrong under
gradients, and a hypernetwork that was used in a prompt is applied in all of them. While a model trains, each attention
module gets a forward of its own over torch's fused kernels (Dao et al. 2022, arXiv:2205.14135; Rabe
& Staats 2021, arXiv:2112.05682).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.networks.products import GatedGelu
from lib_trainer.patching import replaced_forward

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out", "heads")


@contextlib.contextmanager
def efficient_attention(unet: nn.Module) -> Iterator[None]:
    """Fused attention in every module that has ldm's projections, whatever its class is called."""
    with contextlib.ExitStack() as stack:
        for module in unet.modules():
            if all(hasattr(module, name) for name in PROJECTIONS):
                stack.enter_context(replaced_forward(module, functools.partial(attend, module)))
        yield


@contextlib.contextmanager
def efficient_gates(unet: nn.Module) -> Iterator[None]:
    """The gated halves of feed-forward layers (ldm's and diffusers' GEGLU) in one step of autograd."""
    with contextlib.ExitStack() as stack:
        for module in unet.modules():
            if type(module).__name__ == "GEGLU" and hasattr(module, "proj"):
                stack.enter_context(replaced_forward(module, functools.partial(_gated, module)))
        yield


def _gated(module: Any, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = GatedGelu.apply(module.proj(x))
    return out


def attend(
    module: Any, x: torch.Tensor, context: torch.Tensor | None = None, mask: Any = None, **others: Any
) -> torch.Tensor:
    """Multi-head attention of `x` (B, N, C) on `context` (B, M, D), or on itself. `mask` is not used by SD models."""
    if mask is not None:
        raise ValueError("Attention masks are not part of the UNets that are trained here")
    out: torch.Tensor = module.to_out(attended(module, x, x if context is None else context))
    return out


def attended(module: Any, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """What the heads of a module with ldm's or diffusers' projections see: (B, N, C), before `to_out`."""
    batch, length, _ = x.shape
    q, k, v = (
        projected.view(batch, -1, module.heads, projected.shape[-1] // module.heads).transpose(1, 2)
        for projected in (module.to_q(x), module.to_k(told), module.to_v(told))
    )
    seen = F.scaled_dot_product_attention(q, k, v)
    return seen.transpose(1, 2).reshape(batch, length, -1)
