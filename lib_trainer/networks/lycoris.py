"""The kinds of adapters beside LoRA, in LyCORIS' layout (Yeh et al. 2023, arXiv:2309.14859)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.networks.adapters import Adapter, drawn_kaiming
from lib_trainer.networks.functional import factorization, kron_conv2d, kron_linear, loha_weight
from lib_trainer.networks.products import LohaProduct
from lib_trainer.ports import AdaptableModule


class LohaAdapter(Adapter):
    """LoHa: the product, element by element, of two low-rank matrices, so that rank r reaches r²."""

    layout: ClassVar = {"w1_a": "hada_w1_a", "w1_b": "hada_w1_b", "w2_a": "hada_w2_a", "w2_b": "hada_w2_b"}

    def __init__(self, target: AdaptableModule, rank: int, alpha: float) -> None:
        super().__init__(target, rank, alpha)
        out, *rest = self.layer.weight.shape
        inner = math.prod(rest)
        self.w1_a, self.w2_a = self.empty(out, rank), self.empty(out, rank)
        self.w1_b, self.w2_b = self.empty(rank, inner), self.empty(rank, inner)

    def reset(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for parameter, deviation in ((self.w1_a, 0.1), (self.w1_b, 1.0), (self.w2_b, 1.0)):
                parameter.copy_(torch.empty(parameter.shape).normal_(0, deviation, generator=generator))
            self.w2_a.zero_()

    def delta(self) -> torch.Tensor:
        weight = loha_weight(self.w1_a, self.w1_b, self.w2_a, self.w2_b, self.scale)
        return weight.reshape(self.layer.weight.shape)

    def added(self, x: torch.Tensor) -> torch.Tensor:
        w1_a, w1_b, w2_a, w2_b = self.current(x.dtype)
        if self.dropping:
            x = F.dropout(x, self.dropouts.values) if self.dropouts.values else x
            w1_b = w1_b * self.rank_mask(w1_b, 0) if self.dropouts.ranks else w1_b
        out: torch.Tensor = LohaProduct.apply(x, w1_a, w1_b, w2_a, w2_b, self.scale, self.layer)
        return out


class LokrAdapter(Adapter):
    """LoKr: the Kronecker product of a small matrix and a large one; what is large enough is split into two thin ones.

    `w1` (a, c) or `w1_a` (a, r) · `w1_b` (r, c); `w2` (b, d, …) or `w2_a` (b, r) · `w2_b` (r, d·k·k), where out = a·b
    and in = c·d. A factor is split only where its rank is below half of its larger side. Where neither is, the scale is
    1: the WebUI then knows no rank to divide alpha by.
    """

    layout: ClassVar = {name: f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")}
    w1: Any  # each of these is an nn.Parameter, or None where the other form is taken
    w1_a: Any
    w1_b: Any
    w2: Any
    w2_a: Any
    w2_b: Any

    def __init__(self, target: AdaptableModule, rank: int, alpha: float, factor: int = -1, both: bool = False) -> None:
        super().__init__(target, rank, alpha)
        out, inner, *kernel = self.layer.weight.shape
        (a, b), (c, d) = factorization(out, factor), factorization(inner, factor)
        split = (both and rank < max(a, c) / 2, rank < max(b, d) / 2)
        self._make((a, c), (b, d, *kernel), split)

    def _make(self, small: tuple[int, ...], large: tuple[int, ...], split: tuple[bool, bool]) -> None:
        """Parameters of the two factors' shapes. A layer is as large as their product."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape, thin in (("w1", small, split[0]), ("w2", large, split[1])):
            if thin:
                shapes[f"{name}_a"], shapes[f"{name}_b"] = (shape[0], self.rank), (self.rank, math.prod(shape[1:]))
            else:
                shapes[name] = shape
        for name in self.layout:
            setattr(self, name, self.empty(*shapes[name]) if name in shapes else None)
        self._large = large
        self.scale = self.alpha / self.rank if any(split) else 1.0

    @classmethod
    def of_tensors(cls, target: AdaptableModule, tensors: dict[str, torch.Tensor], alpha: float | None) -> LokrAdapter:
        """An adapter of the shapes that a file has. Raises `ValueError` where they do not multiply to the layer's."""
        w1, w2 = tensors.get("lokr_w1"), tensors.get("lokr_w2")
        thin = [tensors[f"lokr_{name}_b"] for name in ("w1", "w2") if f"lokr_{name}_b" in tensors]
        rank = thin[-1].shape[0] if thin else 1
        adapter = cls(target, rank, float(rank) if alpha is None else alpha)
        out, inner, *kernel = adapter.layer.weight.shape
        a, c = (tensors["lokr_w1_a"].shape[0], tensors["lokr_w1_b"].shape[1]) if w1 is None else w1.shape
        b = (tensors["lokr_w2_a"] if w2 is None else w2).shape[0]
        if a * b != out or inner % c:
            raise ValueError(f"{target.key}: Kronecker factors {a}×{c} and {b} do not fit {out}×{inner}")
        adapter._make((a, c), (b, inner // c, *kernel), (w1 is None, w2 is None))
        return adapter

    def reset(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for name in self.layout:
                parameter: Any = getattr(self, name)
                if parameter is not None:
                    zero = name in ("w2", "w2_b")
                    parameter.copy_(torch.zeros(1) if zero else drawn_kaiming(parameter.shape, generator))

    def factors(self, own: dict[str, torch.Tensor], *, dropping: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """w1 (a, c) and w2 (b, d, …), whole, from the parameters by name."""
        w1 = own["w1"] if "w1" in own else own["w1_a"] @ own["w1_b"]
        if "w2" in own:
            return w1, own["w2"].reshape(self._large)
        w2_b = own["w2_b"]
        w2_b = w2_b * self.rank_mask(w2_b, 0) if dropping and self.dropouts.ranks else w2_b
        return w1, (own["w2_a"] @ w2_b).reshape(self._large)

    def delta(self) -> torch.Tensor:
        w1, w2 = self.factors({name: getattr(self, name) for name in self.names})
        w1 = w1.reshape(*w1.shape, *[1] * (w2.ndim - 2))
        return torch.kron(w1, w2.contiguous()).reshape(self.layer.weight.shape) * self.scale

    def added(self, x: torch.Tensor) -> torch.Tensor:
        if self.dropping and self.dropouts.values:
            x = F.dropout(x, self.dropouts.values)
        own = dict(zip(self.names, self.current(x.dtype)))
        w1, w2 = (factor.to(x.dtype) for factor in self.factors(own, dropping=self.dropping))
        w1 = w1 * self.scale
        return kron_conv2d(self.layer, x, w1, w2) if isinstance(self.layer, nn.Conv2d) else kron_linear(x, w1, w2)

    def file_tensors(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in super().file_tensors().items() if tensor is not None}
