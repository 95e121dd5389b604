"""What a module of a LoRA file does to a weight, for every kind of adapter, as pure functions of tensors.

- LoRA (Hu et al. 2021, arXiv:2106.09685) and LoCon, also with a core (`lora_mid`, Tucker's form)
- LoHa (Hyeon-Woo et al. 2022, arXiv:2108.06098) and LoKr, both in LyCORIS' layouts (Yeh et al. 2023, arXiv:2309.14859)
- OFT (Qiu et al. 2023, arXiv:2306.07280) in sd-scripts' and LyCORIS' layouts, BOFT (Liu et al. 2023, arXiv:2311.06243)
- whole differences (`diff`, `diff_b`) and norms (`w_norm`, `b_norm`)
- DoRA (Liu et al. 2024, arXiv:2402.09353) over a LoRA, LoHa, LoKr or a whole difference

All give a difference ΔW that a strength s multiplies, W + s·ΔW, which is how prompts mean it. Formulas and scales are
those of the WebUI's loader; where LyCORIS means another axis (DoRA over outputs) the tensor's shape tells.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Mapping

import torch

from lib_trainer.networks.functional import input_norm, shared_out

Own = Mapping[str, torch.Tensor]
"""A module's tensors by what stands behind its name: `lora_down.weight`, `alpha` …"""


class Kind(enum.Enum):
    """Of a module in a file; DoRA comes on top of all but the last."""

    LORA = enum.auto()
    LOHA = enum.auto()
    LOKR = enum.auto()
    OFT = enum.auto()
    DIFF = enum.auto()
    NORM = enum.auto()


MARKS: dict[str, Kind] = {
    "lora_down.weight": Kind.LORA,
    "hada_w1_a": Kind.LOHA,
    "lokr_w1": Kind.LOKR,
    "lokr_w1_a": Kind.LOKR,
    "oft_blocks": Kind.OFT,
    "oft_diag": Kind.OFT,
    "diff": Kind.DIFF,
    "w_norm": Kind.NORM,
}
"""By which tensor a kind is known."""

NEEDED: dict[Kind, tuple[str, ...]] = {
    Kind.LORA: ("lora_down.weight", "lora_up.weight"),
    Kind.LOHA: ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    Kind.LOKR: (),
    Kind.OFT: (),
    Kind.DIFF: ("diff",),
    Kind.NORM: ("w_norm",),
}
SPARSE = ("bias_indices", "bias_values", "bias_size")
"""Single entries that LyCORIS' extraction adds to the product."""

EXACT = ("alpha", "scale", "dora_scale")
"""What multiplies a whole product or weight: tools keep it in its own type."""

SUFFIXES = frozenset(
    {*MARKS, *(name for needed in NEEDED.values() for name in needed), *SPARSE, "alpha", "scale", "lora_mid.weight",
     "hada_t1", "hada_t2", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "rescale", "dora_scale",
     "diff_b", "b_norm"}
)  # fmt: skip


def kind_of(suffixes: Collection[str]) -> Kind | None:
    """The kind of a module that has these tensors; None where none is known or some are missing."""
    kind = next((kind for mark, kind in MARKS.items() if mark in suffixes), None)
    if kind is None or not set(NEEDED[kind]) <= set(suffixes):
        return None
    if kind is Kind.LOKR and not all(
        f"lokr_{one}" in suffixes or {f"lokr_{one}_a", f"lokr_{one}_b"} <= set(suffixes) for one in ("w1", "w2")
    ):
        return None
    return kind


def needs_base(suffixes: Collection[str]) -> bool:
    """Whether the difference depends on the weight that it is added to."""
    return "dora_scale" in suffixes or kind_of(suffixes) is Kind.OFT


def rank_of(own: Own) -> int | None:
    """The rank by which alpha is divided; None for a module that has none, whose scale is 1."""
    ranked = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
    found = next((own[name] for name in ranked if name in own), None)
    return None if found is None else int(found.shape[0])


def scale_of(own: Own) -> float:
    """What multiplies the product: alpha/rank, or `scale` where it is there."""
    if "scale" in own:
        return float(own["scale"])
    rank = rank_of(own)
    return float(own["alpha"]) / rank if rank is not None and "alpha" in own else 1.0


def difference(own: Own, weight: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    """ΔW at strength 1 in the weight's `shape`, in fp32, or in fp64 where one of the tensors is.

    `weight` is read by OFT and DoRA alone. Raises `ValueError` where shapes do not fit.
    """
    wide = torch.float64 if any(one.dtype is torch.float64 for one in own.values()) else torch.float32
    own = {name: one.to(wide) if one.is_floating_point() else one for name, one in own.items()}
    kind = kind_of(own)
    if kind is None:
        raise ValueError(f"of no kind that is known ({', '.join(sorted(own))})")
    if needs_base(own):
        if weight is None:
            raise ValueError("needs the weight that it is made for")
        weight = weight.to(wide)
        if kind is Kind.OFT:
            return rotated(own, weight) - weight
    delta = product(own, kind)
    if delta.numel() != math.prod(shape):
        raise ValueError(f"{tuple(delta.shape)} does not fit {shape}")
    delta = delta.reshape(shape)
    if all(name in own for name in SPARSE):
        delta = delta + _sparse(own).reshape(shape)
    delta = delta * scale_of(own)
    if "dora_scale" in own and weight is not None:
        return decomposed(weight + delta, own["dora_scale"]) - weight
    return delta


def why_torn(own: Own) -> str | None:
    """Why a module's tensors do not fit each other; None where they do, or where only a weight would tell."""
    kind = kind_of(own)
    if kind is None or kind is Kind.OFT:
        return None
    try:
        product({name: torch.empty(one.shape, device="meta") for name, one in own.items()}, kind)
    except (RuntimeError, IndexError) as error:
        return " ".join(str(error).split())
    return None


def bias_difference(own: Own) -> torch.Tensor | None:
    """What is added to the bias at strength 1."""
    found = own.get("diff_b", own.get("b_norm"))
    return None if found is None else _wide(found)


def product(own: Own, kind: Kind) -> torch.Tensor:
    """The difference before its scale, of kinds that depend on no weight."""
    if kind is Kind.LORA:
        return _lora(own)
    if kind is Kind.LOHA:
        return _hada(own, 1) * _hada(own, 2)
    if kind is Kind.LOKR:
        w1, w2 = lokr_factors(own)
        return torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2.contiguous())
    return own["diff" if kind is Kind.DIFF else "w_norm"]


def lora_pair(own: Own) -> tuple[torch.Tensor, torch.Tensor]:
    """up (out, r) and down (r, in·k·k) of a LoRA, a core multiplied into the latter."""
    up, down = own["lora_up.weight"].flatten(1), own["lora_down.weight"]
    mid = own.get("lora_mid.weight")
    if mid is not None:
        down = torch.einsum("nm...,mj->nj...", mid, down.flatten(1))
    return up, down.flatten(1)


def _lora(own: Own) -> torch.Tensor:
    up, down = lora_pair(own)
    return up @ down


def hada_pair(own: Own, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One of LoHa's two products as (out, r) and (r, in·k·k)."""
    a, b, core = own[f"hada_w{number}_a"], own[f"hada_w{number}_b"], own.get(f"hada_t{number}")
    if core is None:
        return a.flatten(1), b.flatten(1)
    return a.flatten(1).t(), torch.einsum("ij...,jr->ir...", core, b.flatten(1)).flatten(1)


def _hada(own: Own, number: int) -> torch.Tensor:
    a, b = hada_pair(own, number)
    return a @ b


def lokr_factors(own: Own) -> tuple[torch.Tensor, torch.Tensor]:
    """w1 (a, c) and w2 (b, d, …), whole. A core (`lokr_t2`) has w2_a (r, b) and w2_b (r, d)."""
    w1, w2 = own.get("lokr_w1"), own.get("lokr_w2")
    if w1 is None:
        w1 = own["lokr_w1_a"] @ own["lokr_w1_b"]
    if w2 is None:
        a, b, core = own["lokr_w2_a"], own["lokr_w2_b"], own.get("lokr_t2")
        if core is not None:
            w2 = torch.einsum("ij...,ip,jr->pr...", core, a, b)
        else:
            w2 = (a @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])
    return w1, w2


def rotated(own: Own, weight: torch.Tensor) -> torch.Tensor:
    """R·W. `oft_blocks` (n, b, b) are skew-symmetric once their transpose is taken off; R is their Cayley transform.

    With a fourth dimension they are BOFT's butterflies; `oft_diag` are the rotations themselves.
    """
    blocks = own.get("oft_blocks")
    turned = weight.flatten(1)
    if blocks is None:
        turned = _turn(own["oft_diag"], turned)
    else:
        rotations = _cayley(blocks, float(own.get("alpha", torch.zeros(()))) * weight.shape[0])
        if blocks.ndim == 4:
            turned = _butterflies(rotations, turned)
        else:
            turned = _turn(rotations, turned)
    if "rescale" in own:
        turned = turned * own["rescale"].reshape(-1, 1)
    return turned.reshape(weight.shape)


def _cayley(blocks: torch.Tensor, limit: float) -> torch.Tensor:
    """(I + Q)(I − Q)⁻¹ of Q = B − Bᵀ, whose norm over all blocks is cut to `limit` where that is positive."""
    skew = blocks - blocks.transpose(-1, -2)
    norm = float(torch.linalg.vector_norm(skew))
    if 0 < limit < norm:
        skew = skew * (limit / norm)
    eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype)
    rotations: torch.Tensor = torch.linalg.solve(eye - skew, eye + skew, left=False)
    return rotations


def _turn(rotations: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    """Each block of rows by its rotation, in the order of indices that both projects multiply: Σₙ R[n, m]·W[n]."""
    count, size, _ = rotations.shape
    if count * size != flat.shape[0]:
        raise ValueError(f"{count} blocks of {size} do not fit {flat.shape[0]} rows")
    return torch.einsum("knm,knj->kmj", rotations, flat.reshape(count, size, -1)).reshape(flat.shape)


def _butterflies(rotations: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    """m factors, each between its permutation of the rows and the way back."""
    for number, factor in enumerate(rotations):
        size = factor.shape[-1]
        if factor.shape[0] * size != flat.shape[0]:
            raise ValueError(f"{factor.shape[0]} blocks of {size} do not fit {flat.shape[0]} rows")
        half = (1 << number) * (size // 2)
        mixed = flat.reshape(-1, 2, half, flat.shape[1]).transpose(1, 2).reshape(-1, size, flat.shape[1])
        turned = torch.einsum("bij,bjk->bik", factor, mixed)
        flat = turned.reshape(-1, half, 2, flat.shape[1]).transpose(1, 2).reshape(flat.shape)
    return flat


def decomposed(merged: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """m·V/‖V‖ of V = W + ΔW: by input where the magnitude is (1, in, …), by output where it is (out, …)."""
    out, inner = merged.shape[:2]
    ones = [1] * (merged.ndim - 2)
    if tuple(magnitude.shape[:2]) == (1, inner):
        return merged * shared_out(magnitude.reshape(1, inner, *ones), input_norm(merged))
    if magnitude.numel() != out:
        raise ValueError(f"{tuple(magnitude.shape)} does not fit {tuple(merged.shape)}")
    norm: torch.Tensor = torch.linalg.vector_norm(merged.flatten(1), dim=1)
    return merged * shared_out(magnitude.reshape(-1), norm).reshape(out, 1, *ones)


def _sparse(own: Own) -> torch.Tensor:
    size = [int(one) for one in own["bias_size"]]
    whole = torch.zeros(size, dtype=own["bias_values"].dtype)
    whole[tuple(own["bias_indices"].long())] = own["bias_values"]
    return whole


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float32) if tensor.is_floating_point() and tensor.itemsize < 8 else tensor
