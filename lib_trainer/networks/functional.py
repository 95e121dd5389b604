"""Maths of low-rank adapters, as pure functions.

Low-Rank Adaptation (Hu et al. 2021, arXiv:2106.09685, eq. 3): h = W₀x + (α/r)·B·A·x. The product B·A is never formed:
two thin products cost less than one full one and need no second copy of the weight.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.autocasting import compute_dtype

Forward = Callable[[torch.Tensor], torch.Tensor]


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
    up = up.to(hidden.dtype)
    return base(x) + F.conv2d(hidden, up if scale == 1 else up * scale)


PLAIN_FORWARDS = {
    ("torch.nn.modules.linear", "Linear.forward"),
    ("torch.nn.modules.conv", "Conv2d.forward"),
    ("lib_trainer.networks.fused", "SlicedLinear.forward"),
}
PLAIN_CONVOLUTION = ("torch.nn.modules.conv", "Conv2d._conv_forward")


def is_plain(layer: nn.Module, forward: Callable[..., object]) -> bool:
    """Whether `forward` is torch's own of this layer, so that its product may be computed without calling it.

    Told by where the function was defined: hosts replace the attribute of the class. A convolution's forward calls
    `_conv_forward`, which extensions for tiled pictures replace.
    """
    convolution = getattr(layer, "_conv_forward", None)
    if convolution is not None and _defined(layer, convolution) != PLAIN_CONVOLUTION:
        return False
    return _defined(layer, forward) in PLAIN_FORWARDS


def _defined(layer: nn.Module, method: Any) -> tuple[str, str]:
    """Module and name of the function that is bound to `layer`; empty where it is bound to anything else."""
    function, bound = getattr(method, "__func__", None), getattr(method, "__self__", None) is layer
    if isinstance(method, functools.partial):
        function, bound = method.func, method.args == (layer,) and not method.keywords
    return (getattr(function, "__module__", ""), getattr(function, "__qualname__", "")) if bound else ("", "")


def is_pointwise(layer: nn.Module) -> bool:
    """Whether a convolution is a product of each pixel's channels with one matrix."""
    return isinstance(layer, nn.Conv2d) and (
        (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)
    )


def convolve(layer: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x ∗ weight as the layer convolves, without its bias."""
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def factorization(dimension: int, factor: int) -> tuple[int, int]:
    """(m, n) with m·n = dimension and m ≤ n, for LoKr (Yeh et al. 2023, arXiv:2309.14859; the choice is LyCORIS').

    A positive `factor` that divides is one of the two; otherwise m is the divisor nearest to √dimension that does not
    exceed `factor` (-1: any).
    """
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    limit = dimension if factor < 0 else factor
    m = max(d for d in range(1, math.isqrt(dimension) + 1) if dimension % d == 0 and (d <= limit or d == 1))
    return m, dimension // m


def loha_weight(
    w1_a: torch.Tensor, w1_b: torch.Tensor, w2_a: torch.Tensor, w2_b: torch.Tensor, scale: float
) -> torch.Tensor:
    """scale·(w1_a·w1_b)∘(w2_a·w2_b): each a (out, r), each b (r, in·k·k) → (out, in·k·k).

    Hyeon-Woo et al. 2022, arXiv:2108.06098.
    """
    return (w1_a @ w1_b) * (w2_a @ w2_b) * scale


def kron_linear(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """(w1⊗w2)·x without forming the product. x (…, c·d), w1 (a, c), w2 (b, d) → (…, a·b)."""
    folded = x.reshape(*x.shape[:-1], w1.shape[1], w2.shape[1])
    hidden = F.linear(folded, w2)  # (…, c, b)
    return F.linear(hidden.transpose(-1, -2), w1).transpose(-1, -2).reshape(*x.shape[:-1], -1)


def kron_conv2d(layer: nn.Conv2d, x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """(w1⊗w2)∗x without forming the product. x (B, c·d, H, W), w1 (a, c), w2 (b, d, k, k) → (B, a·b, H', W')."""
    batch, c = x.shape[0], w1.shape[1]
    folded = x.reshape(batch * c, w2.shape[1], *x.shape[2:])
    hidden = F.conv2d(folded, w2, None, layer.stride, layer.padding, layer.dilation)
    mixed = F.linear(hidden.reshape(batch, c, -1).transpose(1, 2), w1).transpose(1, 2)  # (B, a, b·H'·W')
    return mixed.reshape(batch, w1.shape[0] * w2.shape[0], *hidden.shape[2:])


def input_norm(weight: torch.Tensor) -> torch.Tensor:
    """Norms over all axes but the input's. weight (out, in, …) → (1, in, …) with ones elsewhere."""
    norm: torch.Tensor = torch.linalg.vector_norm(weight.transpose(0, 1).flatten(1), dim=1)
    return norm.reshape(1, -1, *[1] * (weight.ndim - 2))


def shared_out(magnitude: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """magnitude/norm; of weights that are all 0, which some layers have for an input, no NaN."""
    return magnitude / norm.clamp_min(torch.finfo(norm.dtype).tiny)


def dora_input_scale(magnitude: torch.Tensor, norm: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """magnitude/norm, (1, in, …), in the shape that multiplies a layer's input `x`."""
    scale = shared_out(magnitude, norm).to(x.dtype)
    return scale if norm.ndim == 4 else scale.reshape(-1)
