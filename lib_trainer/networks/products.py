"""Parts of a network as single steps of autograd.

Written out by hand, a frozen layer with its adapter costs eight products and nothing else: autograd alone would cast
the thin factors at every use, scale them, and add gradients of the layer's whole size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import dtype as Dtype
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Layer = nn.Linear | nn.Conv2d


class Product(torch.autograd.Function):
    """A step of autograd that costs the host little: `apply` is autograd's own.

    `torch.autograd.Function.apply` first looks through all arguments for functorch's transforms (vmap, jvp), which
    nobody uses while a model trains; for a layer of a small model that takes as long as its products do.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]


class LoraProduct(Product):
    """x·Wᵀ + b + scale·(x·Aᵀ)·Bᵀ, with gradients for x, A and B.

    x (…, in), W (out, in), b (out,) or None, A (r, in), B (out, r); all but x are in `dtype`, to which x is cast and in
    which the result (…, out) is.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float, dtype: Dtype
    ) -> Tensor:
        flat = x.to(dtype).reshape(-1, x.shape[-1])
        out, hidden = F.linear(flat, weight, bias), F.linear(flat, down)
        out.addmm_(hidden, up.t(), alpha=scale)
        ctx.save_for_backward(flat, hidden, weight, down, up)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        # another adapter may add to a result of two dimensions in place, which no view made in here allows
        return out if x.ndim == 2 else out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        flat, hidden, weight, down, up = ctx.saved_tensors
        g = gradient.to(flat.dtype).reshape(-1, gradient.shape[-1])
        g_hidden = _scaled_product(g, up, ctx.scale, up[0])
        g_x = g_down = g_up = None
        if ctx.needs_input_grad[0]:
            g_x = g.mm(weight).addmm_(g_hidden, down).view(ctx.shape).to(ctx.dtype)
        if ctx.needs_input_grad[3]:
            g_down = g_hidden.t().mm(flat)
        if ctx.needs_input_grad[4]:
            g_up = _scaled_product(g.t(), hidden, ctx.scale, up[0])
        return g_x, None, None, g_down, g_up, None, None


class LoraPointwise(Product):
    """The same for a 1×1 convolution of pictures x (B, in, H, W) whose channels lie apart: nothing is transposed.

    W (out, in), b (out,) or None, A (r, in), B (out, r) → (B, out, H, W).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float, dtype: Dtype
    ) -> Tensor:
        flat = x.to(dtype).flatten(2)
        count = len(flat)
        wide = weight.expand(count, -1, -1)
        out = wide.bmm(flat) if bias is None else torch.baddbmm(bias[:, None], wide, flat)
        hidden = down.expand(count, -1, -1).bmm(flat)
        out.baddbmm_(up.expand(count, -1, -1), hidden, alpha=scale)
        ctx.save_for_backward(flat, hidden, weight, down, up)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return out.view(count, -1, *x.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        flat, hidden, weight, down, up = ctx.saved_tensors
        count, scale = len(flat), ctx.scale
        g = gradient.to(flat.dtype).flatten(2)
        g_hidden = torch.baddbmm(hidden, up.t().expand(count, -1, -1), g, beta=0, alpha=scale)
        g_x = g_down = g_up = None
        if ctx.needs_input_grad[0]:
            whole = weight.t().expand(count, -1, -1).bmm(g)
            g_x = whole.baddbmm_(down.t().expand(count, -1, -1), g_hidden).view(ctx.shape).to(ctx.dtype)
        if ctx.needs_input_grad[3]:
            g_down = _summed(g_hidden.bmm(flat.transpose(1, 2)))
        if ctx.needs_input_grad[4]:
            g_up = _summed(torch.baddbmm(up, g, hidden.transpose(1, 2), beta=0, alpha=scale))
        return g_x, None, None, g_down, g_up, None, None


def _summed(gradients: Tensor) -> Tensor:
    """Of all pictures of a batch."""
    return gradients[0] if len(gradients) == 1 else gradients.sum(0)


def _scaled_product(one: Tensor, other: Tensor, scale: float, row: Tensor) -> Tensor:
    """scale·one·other in one kernel; `row` is any tensor of as many columns, which beta = 0 leaves out."""
    return one.mm(other) if scale == 1 else torch.addmm(row, one, other, beta=0, alpha=scale)


class LohaProduct(Product):
    """x times scale·(w1_a·w1_b)∘(w2_a·w2_b) as a layer's weight, by a Linear or Conv2d layer's rules, without its bias.

    Only x and the thin factors are kept for the backward pass; the two products and the weight, each of the layer's
    whole size, are made again there. x, of any dtype, decides what the products are computed in.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, scale: float, layer: Layer
    ) -> Tensor:
        ctx.save_for_backward(x, w1_a, w1_b, w2_a, w2_b)
        ctx.scale, ctx.rules = scale, _rules(layer)
        first, second = (a.to(x.dtype).mm(b.to(x.dtype)) for a, b in ((w1_a, w1_b), (w2_a, w2_b)))
        weight = first.mul_(second).mul_(scale)
        if ctx.rules is None:
            return F.linear(x, weight)
        return F.conv2d(x, weight.view(ctx.rules[0]), None, *ctx.rules[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, *factors = ctx.saved_tensors
        w1_a, w1_b, w2_a, w2_b = (factor.to(x.dtype) for factor in factors)
        gradient = gradient.to(x.dtype)
        first, second = w1_a.mm(w1_b).mul_(ctx.scale), w2_a.mm(w2_b)
        g_x, g_weight = _gradients_of(x, first * second, gradient, ctx.rules, of_x=ctx.needs_input_grad[0])
        g_first, g_second = g_weight * second.mul_(ctx.scale), g_weight.mul_(first)
        own = g_first.mm(w1_b.t()), w1_a.t().mm(g_first), g_second.mm(w2_b.t()), w2_a.t().mm(g_second)
        return g_x, *own, None, None


Rules = tuple[torch.Size, Any, Any, Any, int]
"""A convolution's weight shape, stride, padding, dilation and groups."""


def _rules(layer: Layer) -> Rules | None:
    if isinstance(layer, nn.Linear):
        return None
    return layer.weight.shape, layer.stride, layer.padding, layer.dilation, layer.groups


def _gradients_of(
    x: Tensor, weight: Tensor, gradient: Tensor, rules: Rules | None, *, of_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Of x, if it is asked for, and of the weight (out, in·k·k)."""
    if rules is None:
        g = gradient.reshape(-1, gradient.shape[-1])
        g_x = g.mm(weight).view(x.shape) if of_x else None
        return g_x, g.t().mm(x.reshape(-1, x.shape[-1]))
    shape, stride, padding, dilation, groups = rules
    g_x, g_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight.view(shape), None, stride, padding, dilation, False, [0, 0], groups, [of_x, True, False]
    )
    return g_x, g_weight.flatten(1)


class GatedGelu(Product):
    """x·gelu(gate) for the two halves (…, n) of a tensor (…, 2n); Shazeer 2020, arXiv:2002.05202.

    The gradients of both halves are written where they belong; autograd would make two tensors and join them.
    """

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        x, gate = both.chunk(2, dim=-1)
        opened = F.gelu(gate)
        ctx.save_for_backward(both, opened)
        return x * opened

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        both, opened = ctx.saved_tensors
        x, gate = both.chunk(2, dim=-1)
        out = torch.empty_like(both)
        g_x, g_gate = out.chunk(2, dim=-1)
        torch.mul(gradient, opened, out=g_x)
        torch.ops.aten.gelu_backward.grad_input(gradient * x, gate, grad_input=g_gate)
        return out
