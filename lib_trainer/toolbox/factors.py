"""Adapters of every kind as products up·down, where their kind is one, and scaled by a strength within their kind."""

from __future__ import annotations

import torch

from lib_trainer.toolbox.adapters import (
    SPARSE,
    Kind,
    Own,
    hada_pair,
    kind_of,
    lokr_factors,
    lora_pair,
    needs_base,
    scale_of,
)

SCALED = {Kind.LORA: "lora_up.weight", Kind.LOHA: "hada_w1_a", Kind.DIFF: "diff", Kind.NORM: "w_norm"}
"""The tensor that a strength multiplies, kind by kind; LoKr has two forms."""


def factors(own: Own) -> tuple[torch.Tensor, torch.Tensor] | None:
    """up (out, k) and down (k, n) in fp32, whose product is the difference with its scale.

    LoRA has its own; LoHa has k = r², the Khatri-Rao products of its two pairs; LoKr has w1⊗I and I⊗w2 around its
    thinner factor. None where the kind is no such product, depends on the model, or k would be no smaller than a side.
    """
    kind = kind_of(own)
    if kind not in (Kind.LORA, Kind.LOHA, Kind.LOKR) or needs_base(own) or any(name in own for name in SPARSE):
        return None
    own = {name: one.float() for name, one in own.items()}
    if kind is Kind.LORA:
        up, down = lora_pair(own)
    elif kind is Kind.LOHA:
        (a1, b1), (a2, b2) = hada_pair(own, 1), hada_pair(own, 2)
        if a1.shape[1] * a2.shape[1] >= min(a1.shape[0], b1.shape[1]):
            return None
        up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
        down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    else:
        found = _kronecker(own)
        if found is None:
            return None
        up, down = found
    return (up * scale_of(own), down) if up.shape[1] < min(up.shape[0], down.shape[1]) else None


def _kronecker(own: Own) -> tuple[torch.Tensor, torch.Tensor] | None:
    """kron(w1, a·b) = kron(w1, a)·kron(I, b), for a second factor that is stored as a product."""
    if "lokr_w2_a" not in own or "lokr_t2" in own:
        return None
    w1, _ = lokr_factors({**own, "lokr_w2": torch.zeros(1)})
    a, b = own["lokr_w2_a"], own["lokr_w2_b"]
    if w1.shape[1] * a.shape[1] >= w1.shape[0] * a.shape[0]:
        return None
    eye = torch.eye(w1.shape[1])
    return torch.kron(w1, a), torch.kron(eye.reshape(*eye.shape, *[1] * (b.ndim - 2)), b.contiguous()).flatten(1)


def scaled(own: Own, strength: float) -> dict[str, torch.Tensor] | None:
    """The module with this strength put into its numbers, in their types; None where its kind cannot hold that.

    One factor is multiplied, so that a module's strength is not squared; alpha stays what it is, because some tools
    read one for all modules.
    """
    if strength == 1:
        return dict(own)
    if needs_base(own):
        return None
    kind = kind_of(own)
    assert kind is not None
    name = ("lokr_w1" if "lokr_w1" in own else "lokr_w1_a") if kind is Kind.LOKR else SCALED[kind]
    return {
        suffix: (one.float() * strength).to(one.dtype) if suffix in (name, "bias_values", "diff_b", "b_norm") else one
        for suffix, one in own.items()
    }
