"""Adapters: what is added to one frozen Linear or Conv2d layer while a model runs.

Every kind computes an addition to its layer's output and knows the weight difference that it stands for. Dropouts and
the decomposition of DoRA are the same for all kinds and are done here; without them a kind's own fast way is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.autocasting import compute_dtype, without_autocast
from lib_trainer.networks.flat import Flat
from lib_trainer.networks.functional import (
    convolve,
    dora_input_scale,
    input_norm,
    is_plain,
    is_pointwise,
    lora_conv2d,
    lora_linear,
)
from lib_trainer.networks.products import LoraPointwise, LoraProduct
from lib_trainer.ports import AdaptableModule

Forward = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Dropouts:
    """Probabilities in [0, 1): of a hidden value, of a rank, and of the whole adapter in one step."""

    values: float = 0.0
    ranks: float = 0.0
    modules: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.values or self.ranks or self.modules)


@dataclass(frozen=True)
class AdapterSpec:
    """How an adapter is made. `rank` ≥ 1; `alpha` as the user gives it; `factor` and `both` are LoKr's."""

    kind: Literal["lora", "loha", "lokr"]
    rank: int
    alpha: float
    factor: int = -1
    both: bool = False
    dora: bool = False
    rank_stabilised: bool = False
    dropouts: Dropouts = Dropouts()

    @property
    def stored_alpha(self) -> float:
        """alpha as a file holds it, which is read as alpha/r.

        Rank-stabilised (Kalajdzievski 2023, arXiv:2312.03732) means alpha/√r.
        """
        return self.alpha * math.sqrt(self.rank) if self.rank_stabilised else self.alpha


class Adapter(nn.Module):
    """The addition to one layer. Parameters are fp32 and live on the layer's device.

    `layout` names the parameters' tensors in a file, behind the module's key.
    """

    layout: ClassVar[dict[str, str]] = {}
    _flat: tuple[Flat, slice] | None = None

    def __init__(self, target: AdaptableModule, rank: int, alpha: float) -> None:
        super().__init__()
        layer = target.module
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            raise TypeError(f"{target.key}: LoRA wraps Linear and Conv2d, not {type(layer).__name__}")
        self.key, self.part, self.block = target.key, target.part, target.block
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        self.dropouts = Dropouts()
        self.dora_scale: nn.Parameter | None = None
        self._target = (layer,)  # in a tuple: the frozen layer is no submodule of the adapter

    @property
    def layer(self) -> Any:
        return self._target[0]

    def empty(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(shape, device=self.layer.weight.device))

    def reset(self, generator: torch.Generator) -> None:
        """Draw the start from a CPU generator, so that every device starts from the same numbers; it adds nothing."""
        raise NotImplementedError

    def delta(self) -> torch.Tensor:
        """The weight difference at full strength, before a decomposition, in the layer's shape."""
        raise NotImplementedError

    def added(self, x: torch.Tensor) -> torch.Tensor:
        """What is added to the layer's output for `x`, with dropouts while it trains."""
        raise NotImplementedError

    @property
    def names(self) -> list[str]:
        """The parameters that there are, in the layout's order."""
        return [name for name in self.layout if getattr(self, name) is not None]

    @property
    def can_be_flat(self) -> bool:
        """Whether every step computes with all parameters, and with nothing but their values in the run's precision."""
        return self.dora_scale is None and not self.dropouts

    @property
    def is_flat(self) -> bool:
        return self._flat is not None

    def lie_in(self, flat: Flat, place: int) -> None:
        """Take the parameters from place `place` of `flat` on; gradients arrive at its leaves from now on."""
        names = self.names
        self._flat = flat, slice(place, place + len(names))
        for name, tensor in zip(names, flat.tensors[place:]):
            setattr(self, name, tensor)

    def current(self, dtype: torch.dtype) -> Sequence[torch.Tensor]:
        """The parameters by `names`, for a product in `dtype`; a flat gives copies in it, 1×1 kernels as matrices."""
        if self._flat is None:
            return [getattr(self, name) for name in self.names]
        flat, own = self._flat
        return flat.working(dtype)[own]

    def decompose(self) -> None:
        """DoRA (Liu et al. 2024, arXiv:2402.09353): learn the size of each input's weights apart from their direction.

        `dora_scale` has the shape (1, in, 1, 1) or (1, in), the axis that the WebUI's loader normalises over.
        """
        self.dora_scale = nn.Parameter(input_norm(self.layer.weight.detach().float()))

    def wrap(self, base: Forward, multiplier: float = 1.0) -> Forward:
        """A forward that adds this adapter times `multiplier` to `base`, the layer's forward as the host has it."""
        if self.dora_scale is not None:
            return lambda input: self._decomposed(base, input, multiplier)
        return lambda input: self._plain(base, input, multiplier)

    def _plain(self, base: Forward, x: torch.Tensor, multiplier: float) -> torch.Tensor:
        x = x.to(compute_dtype(x))
        if self._skipped():
            return base(x)
        added = self.added(x)
        return base(x) + (added if multiplier == 1 else added * multiplier)

    def _decomposed(self, base: Forward, x: torch.Tensor, multiplier: float) -> torch.Tensor:
        """m/‖W+Δ‖ per input channel scales the input instead of the weight; the norm is a constant (section 4.3)."""
        x = x.to(compute_dtype(x))
        if self._skipped():
            return base(x)
        assert self.dora_scale is not None
        with torch.no_grad(), without_autocast(x.device.type):
            norm = input_norm(self.layer.weight.float() + self.delta().float())
        scaled = x * dora_input_scale(self.dora_scale, norm, x)
        out = base(scaled) + self.added(scaled)
        return out if multiplier == 1 else base(x) * (1 - multiplier) + out * multiplier

    def _skipped(self) -> bool:
        if not self.dropping or not self.dropouts.modules:
            return False
        return torch.rand((), device="cpu").item() < self.dropouts.modules

    @property
    def dropping(self) -> bool:
        """Previews and prompts run without gradients, and without dropouts."""
        return bool(self.dropouts) and torch.is_grad_enabled()

    def dropped(self, hidden: torch.Tensor, *, channels: int) -> torch.Tensor:
        """Dropouts on what the first product gave; `channels` is the dimension that holds the ranks."""
        if not self.dropping:
            return hidden
        if self.dropouts.values:
            hidden = F.dropout(hidden, self.dropouts.values)
        if self.dropouts.ranks:
            hidden = hidden * self.rank_mask(hidden, channels, by_sample=hidden.ndim > 1)
        return hidden

    def rank_mask(self, ranked: torch.Tensor, dimension: int, *, by_sample: bool = False) -> torch.Tensor:
        """Zero for the ranks left out in this step, 1/(1−p) for the others; drawn anew for each sample, as sd-scripts
        does it, or once where the ranks are those of a weight, as LyCORIS does it."""
        shape = [1] * ranked.ndim
        shape[dimension] = ranked.shape[dimension]
        if by_sample:
            shape[0] = ranked.shape[0]
        kept = torch.rand(shape, device=ranked.device) >= self.dropouts.ranks
        return kept.to(ranked.dtype) / (1 - self.dropouts.ranks)

    def norm(self) -> torch.Tensor:
        """Of `delta`, a scalar on the device."""
        norm: torch.Tensor = self.delta().float().norm()
        return norm

    def bound(self, norm: float) -> None:
        """Scale `delta` down to `norm` (Frobenius) where it is larger: all factors alike, as sd-scripts'
        `scale_weight_norms` does it. The device is not waited for."""
        factor = (norm / self.norm().clamp_min(1e-12)).clamp_max(1.0) ** (1 / len(self.names))
        for name in self.names:
            getattr(self, name).mul_(factor)

    def file_tensors(self) -> dict[str, torch.Tensor]:
        """Names behind the key, and parameters."""
        found = {suffix: getattr(self, name) for name, suffix in self.layout.items()}
        return found if self.dora_scale is None else {**found, "dora_scale": self.dora_scale}


class LoraAdapter(Adapter):
    """LoRA and LoCon: `down` (r, in, …) with the layer's stride, `up` (out, r, 1, 1)."""

    layout: ClassVar = {"down": "lora_down.weight", "up": "lora_up.weight"}

    def __init__(self, target: AdaptableModule, rank: int, alpha: float) -> None:
        super().__init__(target, rank, alpha)
        layer = self.layer
        if isinstance(layer, nn.Conv2d):
            self.down = self.empty(rank, layer.in_channels // layer.groups, *layer.kernel_size)
            self.up = self.empty(layer.out_channels, rank, 1, 1)
        else:
            self.down, self.up = self.empty(rank, layer.in_features), self.empty(layer.out_features, rank)

    def reset(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            self.down.copy_(drawn_kaiming(self.down.shape, generator))
            self.up.zero_()

    def wrap(self, base: Forward, multiplier: float = 1.0) -> Forward:
        """A layer whose forward is torch's own is computed in one step with its adapter; any other is called."""
        if not self.can_be_flat:
            return super().wrap(base, multiplier)
        layer, scale, plain = self.layer, self.scale * multiplier, is_plain(self.layer, base)

        def linear(input: torch.Tensor) -> torch.Tensor:
            dtype = compute_dtype(input)
            down, up = self.current(dtype)
            weight, bias = layer.weight, layer.bias  # each look takes a microsecond
            if plain and _computed_in(dtype, weight, bias, down, up):
                out: torch.Tensor = LoraProduct.apply(input, weight, bias, down, up, scale, dtype)
                return out
            return lora_linear(base, input, down, up, scale)

        def pointwise(input: torch.Tensor) -> torch.Tensor:
            dtype = compute_dtype(input)
            down, up = self.current(dtype)
            weight, bias = layer.weight, layer.bias
            if not plain or not _computed_in(dtype, weight, bias, down, up):
                return convolution(input)
            own = weight.flatten(1), bias, down.flatten(1), up.flatten(1), scale, dtype
            if not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last):
                rows: torch.Tensor = LoraProduct.apply(input.permute(0, 2, 3, 1), *own)
                return rows.permute(0, 3, 1, 2)
            out: torch.Tensor = LoraPointwise.apply(input, *own)
            return out

        def convolution(input: torch.Tensor) -> torch.Tensor:
            down, up = (one if one.ndim == 4 else one[:, :, None, None] for one in self.current(compute_dtype(input)))
            return lora_conv2d(base, layer, input, down, up, scale)

        if isinstance(layer, nn.Linear):
            return linear
        return pointwise if is_pointwise(layer) else convolution

    def added(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.layer, nn.Conv2d):
            hidden = self.dropped(convolve(self.layer, x, self.down.to(x.dtype)), channels=1)
            return F.conv2d(hidden, self.up.to(hidden.dtype) * self.scale)
        hidden = self.dropped(F.linear(x, self.down.to(x.dtype)), channels=-1)
        return F.linear(hidden, self.up.to(hidden.dtype) * self.scale)

    def norm(self) -> torch.Tensor:
        """By the products of rank size: ‖BA‖² = tr(BᵀB · AAᵀ)."""
        up, down = self.up.flatten(1).float(), self.down.flatten(1).float()
        return ((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt() * abs(self.scale)

    def delta(self) -> torch.Tensor:
        product = self.up.flatten(1) @ self.down.flatten(1)
        return product.reshape(self.layer.weight.shape) * self.scale


def _computed_in(
    dtype: torch.dtype, weight: torch.Tensor, bias: torch.Tensor | None, down: torch.Tensor, up: torch.Tensor
) -> bool:
    """Whether all of a product's tensors are of this dtype, and its frozen weight gets no gradient."""
    if weight.requires_grad or weight.dtype is not dtype or down.dtype is not dtype or up.dtype is not dtype:
        return False
    return bias is None or bias.dtype is dtype


def drawn_kaiming(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Uniform in ±1/√fan_in, which is what kaiming_uniform with a = √5 comes to."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
