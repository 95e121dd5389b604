"""Maths of low-rank adapters, as pure functions.

Low-Rank Adaptation (Hu et al. 2021, arXiv:2106.09685, eq. 3): h = W₀x + (α/r)·B·A·x. The product B·A is never formed:
two thin products cost less than one full one and need no second copy of the weight.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

Forward = Callable[[torch.Tensor], torch.Tensor]


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """What a product of `x` is computed in: autocast's dtype where autocast is on."""
    kind = x.device.type
    if kind not in ("cpu", "cuda"):
        return x.dtype
    if hasattr(torch, "get_autocast_dtype"):  # from torch 2.4 on, which warns about the older names
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if kind == "cuda":
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else x.dtype
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else x.dtype


def lora_linear(base: Forward, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """base(x) + scale·up·down·x. x (…, in), down (r, in), up (out, r) → (…, out).

    `x` is cast once for both products, and the addition happens inside the second one (`addmm_` on the fresh output of
    the base layer, whose backward does not need it), so no tensor of the output's size is made besides the output.
    """
    dtype = compute_dtype(x)
    flat = x.to(dtype).reshape(-1, x.shape[-1])
    out = base(flat)
    hidden = F.linear(flat, down.to(dtype))
    out = out.addmm_(hidden.to(out.dtype), up.to(out.dtype).t(), alpha=scale)
    return out.view(*x.shape[:-1], out.shape[-1])


def lora_conv2d(
    base: Forward, layer: nn.Conv2d, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float
) -> torch.Tensor:
    """base(x) + scale·up∗(down∗x): `down` (r, in/groups, k, k) with the layer's stride, `up` (out, r, 1, 1)."""
    x = x.to(compute_dtype(x))
    hidden = F.conv2d(x, down.to(x.dtype), None, layer.stride, layer.padding, layer.dilation, layer.groups)
    delta = F.conv2d(hidden, up.to(hidden.dtype) * scale)
    return base(x) + delta
