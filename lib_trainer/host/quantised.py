"""Frozen weights in 8 bits while a model trains: float8 with a scale for each output channel, widened at each use.

Half of what fp16 takes, and a loss of precision that docs/memory.md states. The format is e4m3 (Micikevicius et al.
2022, arXiv:2209.05433). Scales are powers of two, which multiply without rounding in any precision.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from lib_trainer.autocasting import compute_dtype, without_autocast
from lib_trainer.host.weights import Bus, Form, Held
from lib_trainer.patching import replaced_forward

LARGEST = 448.0
"""The largest number of e4m3."""

FEWEST_CHANNELS = 16
"""The UNet's first and last layer have fewer on one side: all of the picture goes through them, and they are small."""


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes in e4m3 and a scale (out, 1, …) in fp32: weight ≈ codes·scale. weight (out, …), finite."""
    wide = weight.detach().float()
    largest = wide.abs().flatten(1).amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny * 2**10)
    scale = torch.exp2(torch.ceil(torch.log2(largest / LARGEST))).reshape(-1, *[1] * (wide.ndim - 1))
    return (wide / scale).to(torch.float8_e4m3fn), scale


def widened(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return codes.to(dtype) * scale.to(dtype)


class HeldInEightBits(Held):
    """A weight whose run's form is not the parameter's: the parameter waits, and the layer reads `codes`."""

    codes: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    def take(self, form: Form) -> None:
        if form != "run's":
            self.codes = self.scale = None
        elif self.codes is None:
            made = quantise(self.parameter.data)  # on the CPU where it waits there: what crosses is half as wide
            self.codes, self.scale = (one.to(self._bus.device) for one in made)
            self.wait()
            return
        else:
            return
        super().take(form)

    def give_back(self) -> None:
        self.codes = self.scale = None
        super().give_back()


def is_quantised(module: nn.Module) -> bool:
    """Whether the weights of a layer are held in 8 bits."""
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or min(module.weight.shape[:2]) < FEWEST_CHANNELS:
        return False
    return isinstance(module, nn.Linear) or (module.padding_mode == "zeros" and not isinstance(module.padding, str))


def quantised_parameters(root: nn.Module, bus: Bus, others: Sequence[Held]) -> tuple[dict[nn.Module, Any], list[Held]]:
    """The layers of `root` that are held in 8 bits with their weights, and all of its parameters as they are held."""
    held = {id(one.parameter): one for one in others}
    layers: dict[nn.Module, Any] = {}
    for module in root.modules():
        if is_quantised(module) and id(module.weight) in held:
            one = held[id(module.weight)]
            if not isinstance(one, HeldInEightBits):
                one = held[id(module.weight)] = HeldInEightBits(module.weight, one.wanted, bus)  # type: ignore[arg-type]
            layers[module] = one
    return layers, list(held.values())


@contextlib.contextmanager
def quantised_layers(layers: dict[nn.Module, HeldInEightBits]) -> Iterator[None]:
    """Forwards that read the 8-bit weights wherever they are there; adapters go on top of them."""
    with contextlib.ExitStack() as stack:
        for module, held in layers.items():
            stack.enter_context(replaced_forward(module, functools.partial(_forward, module, held, module.forward)))
        yield


def _forward(module: Any, held: HeldInEightBits, own: Any, x: torch.Tensor) -> torch.Tensor:
    if held.codes is None:
        out: torch.Tensor = own(x)
        return out
    x = x.to(compute_dtype(x))
    bias = None if module.bias is None else module.bias.to(x.dtype)
    if isinstance(module, nn.Conv2d):
        geometry = (module.stride, module.padding, module.dilation, module.groups)
        out = _Convolution.apply(x, held.codes, held.scale, bias, geometry)
    else:
        out = _Product.apply(x, held.codes, held.scale, bias)
    return out


class _Product(torch.autograd.Function):
    """x·Wᵀ + b. The backward pass widens W anew, so that no wide copy is kept between the two."""

    @staticmethod
    def forward(ctx: Any, x: Any, codes: Any, scale: Any, bias: Any) -> torch.Tensor:
        ctx.save_for_backward(codes, scale)
        with without_autocast(x.device.type):
            return F.linear(x, widened(codes, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        codes, scale = ctx.saved_tensors
        return gradient @ widened(codes, scale, gradient.dtype), None, None, None


class _Convolution(torch.autograd.Function):
    """x ∗ W + b, likewise. `geometry` is stride, padding, dilation and groups."""

    @staticmethod
    def forward(ctx: Any, x: Any, codes: Any, scale: Any, bias: Any, geometry: Any) -> torch.Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.geometry, ctx.shape = geometry, x.shape
        with without_autocast(x.device.type):
            return F.conv2d(x, widened(codes, scale, x.dtype), bias, *geometry)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        codes, scale = ctx.saved_tensors
        weight = widened(codes, scale, gradient.dtype)
        with without_autocast(gradient.device.type):
            return conv2d_input(ctx.shape, weight, gradient, *ctx.geometry), None, None, None, None
