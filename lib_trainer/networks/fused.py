"""torch's MultiheadAttention as four layers that adapters may wrap.

It keeps the projections of q, k and v in one weight and reads that of its output without calling it, and in eval mode
it has a kernel of its own for all of it: adapters on its parts would never be called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.patching import replaced_forward

PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""transformers' names of the projections, in the order in which the fused weight has them."""


class SlicedLinear(nn.Linear):
    """One projection of a fused attention. Its weight and bias are views of what the attention holds at the moment."""

    fused: FusedAttention

    def __init__(self, fused: FusedAttention, place: int) -> None:
        nn.Module.__init__(self)
        self.in_features = self.out_features = int(fused.attention.embed_dim)
        self.__dict__["fused"] = fused  # the attention is no submodule of its parts
        self.__dict__["place"] = place

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return self._view("weight")  # type: ignore[return-value]

    @property
    def bias(self) -> torch.Tensor | None:  # type: ignore[override]
        return self._view("bias")

    @property
    def kept_in(self) -> tuple[nn.Module, str, slice]:
        """The module and the name of the parameter that holds the weight, and its rows there."""
        attention, place = self.__dict__["fused"].attention, self.__dict__["place"]
        if place == len(PARTS) - 1:
            return attention.out_proj, "weight", slice(None)
        return attention, "in_proj_weight", slice(place * self.out_features, (place + 1) * self.out_features)

    def _view(self, name: str) -> torch.Tensor | None:
        attention, place = self.__dict__["fused"].attention, self.__dict__["place"]
        if place == len(PARTS) - 1:
            own: torch.Tensor | None = getattr(attention.out_proj, name)
            return own
        whole: torch.Tensor | None = getattr(attention, f"in_proj_{name}")
        return None if whole is None else whole[place * self.out_features : (place + 1) * self.out_features]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight, self.bias
        if weight.itemsize == 1:  # a host stores some layers in 8 bits, and widens them where it calls them
            weight, bias = weight.to(input.dtype), None if bias is None else bias.to(input.dtype)
        return F.linear(input, weight, bias)


class FusedAttention:
    """A text encoder's `nn.MultiheadAttention`, in place: self-attention in which each token sees those before it.

    `refresh` is called before a pass without gradients: a host may have changes of its own to bring in.
    """

    refresh: Callable[[nn.Module], object] | None = None

    def __init__(self, attention: Any) -> None:
        self.attention = attention
        self.layers = {name: SlicedLinear(self, place) for place, name in enumerate(PARTS)}

    def forward(self, query: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        """As MultiheadAttention without weights: (T, N, D), or (N, T, D) where it has the batch first."""
        if self.refresh is not None and not torch.is_grad_enabled():
            self.refresh(self.attention)
        first = self.attention.batch_first
        x = query if first else query.transpose(0, 1)
        folded = (*x.shape[:2], self.attention.num_heads, -1)
        q, k, v = (self.layers[name](x).view(folded).transpose(1, 2) for name in PARTS[:3])
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = self.layers[PARTS[3]](attended.transpose(1, 2).reshape(x.shape))
        return out if first else out.transpose(0, 1), None

    @contextlib.contextmanager
    def called(self) -> Iterator[None]:
        """The attention computes through its four layers."""
        with replaced_forward(self.attention, self.forward):
            yield
