"""How models are merged: each mode's formula, over rows of one tensor at a time, in fp32.

A mode may look at a tensor first (`looks`: norms, thresholds), which is done row by row too, and then computes the rows
each by itself. So a tensor of any size takes the memory of a few rows; only `smooth_add`, whose filters look at a
number's neighbours, holds whole tensors.

Sources: weighted sum, add difference: the WebUI's merger. Sum twice, triple, train difference, smooth add, cosine:
sd-webui-supermerger. DARE: Yu et al. 2024, arXiv:2311.03099. TIES: Yadav et al. 2023, arXiv:2306.01708. Slerp: Shoemake
1985, with the norm between the two. Their peers' differences are told in docs/toolbox.md.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib_trainer.refusals import ConfigError

TRAIN_SCALE = 1.8
"""Supermerger's factor of the train difference."""
PARALLEL = 1e-6
"""Sine of the angle between two tensors below which slerp is a weighted sum."""
SMALLEST = 1e-30
"""What norms count as at least, so that a tensor of zeros is like nothing."""
AT_ONCE = 1 << 18
"""Numbers that are computed together: they fit a processor's cache."""


@dataclass(frozen=True)
class Weights:
    """Of one tensor. `shares`: of each model, where every model has its own."""

    alpha: float
    beta: float = 0.0
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Choices:
    """What a mode is told beside weights. `dropped`: DARE's p, `kept`: TIES' share of entries."""

    seed: int = 0
    dropped: float = 0.5
    kept: float = 0.2


@dataclass(frozen=True)
class Rows:
    """One tensor of several models: `read(i, rows)` is rows of model i in fp32, the caller's own until others are read.

    `whole`: they are all read together.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[int, slice], Tensor]
    models: int
    whole: bool = False

    def __iter__(self) -> Iterator[slice]:
        count = self.shape[0] if self.shape else 1
        step = count if self.whole else max(1, AT_ONCE // max(1, math.prod(self.shape[1:])))
        return (slice(start, min(start + step, count)) for start in range(0, count, max(1, step)))


Looked = Any
"""What a mode found out about one tensor."""
Spread = tuple[float, float]
"""Smallest and largest similarity in whole models."""


@dataclass(frozen=True)
class Mode:
    """A mode of merging.

    label    in words
    models   the fewest it takes, and the most (0: any number)
    beta     whether it has a second weight
    same     the model whose tensor it is exactly, for some weights; None for any other weights
    compute  rows of the models → rows of the result; may change the first model's in place
    looks    at a tensor before that
    surveys  similarities of one tensor, of whose spread in the whole model `looks` is told
    whole    whether it needs a tensor as a whole
    """

    label: str
    models: tuple[int, int]
    compute: Callable[[Sequence[Tensor], Weights, Choices, Looked, str, int], Tensor]
    same: Callable[[Weights], int | None]
    beta: bool = False
    looks: Callable[[Rows, Weights, Choices, Spread], Looked] | None = None
    surveys: Callable[[Rows], np.ndarray[Any, Any]] | None = None
    whole: bool = False
    fields: frozenset[str] = field(default_factory=frozenset)
    """Of `Choices`, those that it reads."""


def _sum(models: Sequence[Tensor], weights: Weights, *rest: Any) -> Tensor:
    """(1 − α)A + αB"""
    return models[0].lerp_(models[1], weights.alpha)


def _add_difference(models: Sequence[Tensor], weights: Weights, *rest: Any) -> Tensor:
    """A + α(B − C)"""
    a, b, c = models
    return a.add_(b.sub_(c), alpha=weights.alpha)


def _triple(models: Sequence[Tensor], weights: Weights, *rest: Any) -> Tensor:
    """(1 − α − β)A + αB + βC"""
    a, b, c = models
    return a.mul_(1 - weights.alpha - weights.beta).add_(b, alpha=weights.alpha).add_(c, alpha=weights.beta)


def _twice(models: Sequence[Tensor], weights: Weights, *rest: Any) -> Tensor:
    """(1 − β)((1 − α)A + αB) + βC"""
    a, b, c = models
    return a.lerp_(b, weights.alpha).lerp_(c, weights.beta)


def _train_difference(models: Sequence[Tensor], weights: Weights, *rest: Any) -> Tensor:
    """A + 1.8α (B − C)·|B − A| / (|B − C| + |B − A|), and A where the denominator is 0"""
    a, b, c = models
    learned, away = b - c, (b - a).abs_()
    both = learned.abs().add_(away)
    added = torch.where(both > 0, learned.mul_(away).div_(both), both)
    return a.add_(added, alpha=TRAIN_SCALE * weights.alpha)


def _smooth_add(models: Sequence[Tensor], weights: Weights, *rest: Any) -> Tensor:
    """A + α·G(M(B − C)): a median over 3 in each direction, then a Gaussian of σ 1"""
    from scipy import ndimage  # type: ignore[import-untyped]

    a, b, c = models
    difference = b.sub_(c).numpy()
    if difference.ndim:
        difference = ndimage.gaussian_filter(ndimage.median_filter(difference, size=3), sigma=1)
    return a.add_(torch.from_numpy(np.asarray(difference)), alpha=weights.alpha)


def _columns(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Products and squares of two models, summed over the first dimension, in float64."""
    sums: tuple[Tensor, ...] = ()
    for part in rows:
        a, b = rows.read(0, part).double(), rows.read(1, part).double()
        found = ((a * b).sum(0), (a * a).sum(0), (b * b).sum(0))
        sums = tuple(one + more for one, more in zip(sums, found, strict=True)) if sums else found
    return sums[0], sums[1], sums[2]


def _cosines(product: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return product / (one * other).sqrt().clamp_min(SMALLEST)


def _alike_by_columns(rows: Rows) -> np.ndarray[Any, Any]:
    return _cosines(*_columns(rows)).reshape(-1).numpy()


def _alike_in_all(rows: Rows) -> np.ndarray[Any, Any]:
    return _combined(rows, normalised=False).reshape(-1).numpy()


def _combined(rows: Rows, *, normalised: bool) -> Tensor:
    """The mean of each column's cosine and that of the whole tensor, whose columns may be normalised before."""
    product, one, other = _columns(rows)
    columns = _cosines(product, one, other)
    if normalised:
        counts = float((one > 0).sum()) * float((other > 0).sum())
        whole = columns.sum() / max(math.sqrt(counts), SMALLEST)
    else:
        whole = _cosines(product.sum(), one.sum(), other.sum())
    return (columns + whole) / 2


def _factor(rows: Rows, weights: Weights, spread: Spread, *, normalised: bool) -> Tensor:
    """k = (s − min)/(max − min) − α, within 0 and 1"""
    low, high = spread
    similar = (_combined(rows, normalised=normalised) - low) / max(high - low, SMALLEST)
    return (similar - weights.alpha).clamp_(0, 1).float()


def _by_factor(models: Sequence[Tensor], weights: Weights, choices: Choices, looked: Tensor, *rest: Any) -> Tensor:
    """B + k(A − B)"""
    a, b = models
    return a.sub_(b).mul_(looked).add_(b)


def _slerp_looks(rows: Rows, weights: Weights, *rest: Any) -> tuple[float, float]:
    """What A and B are multiplied by."""
    product = one = other = 0.0
    for part in rows:
        a, b = rows.read(0, part).double(), rows.read(1, part).double()
        product, one, other = product + float((a * b).sum()), one + float((a * a).sum()), other + float((b * b).sum())
    lengths, alpha = (math.sqrt(one), math.sqrt(other)), weights.alpha
    cosine = product / max(lengths[0] * lengths[1], SMALLEST)
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    sine = math.sin(angle)
    if sine < PARALLEL or not all(lengths):
        return 1 - alpha, alpha
    length = (1 - alpha) * lengths[0] + alpha * lengths[1]
    first, second = math.sin((1 - alpha) * angle), math.sin(alpha * angle)
    return length * first / (sine * lengths[0]), length * second / (sine * lengths[1])


def _combine(models: Sequence[Tensor], weights: Weights, choices: Choices, looked: Sequence[float], *_: Any) -> Tensor:
    a, b = models
    return a.mul_(looked[0]).add_(b, alpha=looked[1])


def _dare(
    models: Sequence[Tensor], weights: Weights, choices: Choices, looked: Looked, name: str, start: int
) -> Tensor:
    """A + α·mask·(B − A)/(1 − p); the mask hangs on the seed, the tensor's name and the place in it"""
    a, b = models
    told = hashlib.sha256(f"{choices.seed} {start} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(told[:7], "little"))
    kept = torch.rand(a.shape, generator=generator) >= choices.dropped
    return a.add_(b.sub_(a).mul_(kept), alpha=weights.alpha / (1 - choices.dropped))


def _ties_looks(rows: Rows, weights: Weights, choices: Choices, *rest: Any) -> list[float]:
    """The size of change, model by model, from which on it is kept."""
    found = []
    for model in range(1, rows.models):
        changes = np.empty(math.prod(rows.shape), np.float32)
        place = 0
        for part in rows:
            change = rows.read(model, part).sub_(rows.read(0, part)).abs_().reshape(-1).numpy()
            changes[place : place + change.size] = change
            place += change.size
        rank = len(changes) - max(1, math.ceil(choices.kept * len(changes)))
        changes.partition(rank)
        found.append(float(changes[rank]))
    return found


def _ties(models: Sequence[Tensor], weights: Weights, choices: Choices, looked: Sequence[float], *rest: Any) -> Tensor:
    """A + α·mean of the kept changes whose sign is that of their sum"""
    base, *others = models
    changes = torch.stack([other.sub_(base) for other in others])
    limits = torch.tensor(looked).reshape(-1, *[1] * base.ndim)
    changes.mul_(changes.abs() >= limits)
    agree = (changes.sign() == changes.sum(0).sign()) & (changes != 0)
    return base.add_(changes.mul_(agree).sum(0).div_(agree.sum(0).clamp_min_(1)), alpha=weights.alpha)


def _average(models: Sequence[Tensor], weights: Weights, *rest: Any) -> Tensor:
    """Σ wᵢMᵢ"""
    result = models[0].mul_(weights.shares[0])
    for model, share in zip(models[1:], weights.shares[1:], strict=True):
        result.add_(model, alpha=share)
    return result


def _ends(weights: Weights) -> int | None:
    return int(weights.alpha) if weights.alpha in (0.0, 1.0) else None


def _nothing(weights: Weights) -> int | None:
    return 0 if weights.alpha == 0 else None


def _all_of_b(weights: Weights) -> int | None:
    return 1 if weights.alpha == 1 else None


def _corner(weights: Weights) -> int | None:
    return {(0.0, 0.0): 0, (1.0, 0.0): 1, (0.0, 1.0): 2}.get((weights.alpha, weights.beta))


def _last_or_end(weights: Weights) -> int | None:
    return 2 if weights.beta == 1 else _ends(weights) if weights.beta == 0 else None


def _only_one(weights: Weights) -> int | None:
    whole = [share for share in weights.shares if share != 0]
    return weights.shares.index(1.0) if whole == [1.0] else None


def _factor_a(rows: Rows, weights: Weights, choices: Choices, spread: Spread) -> Tensor:
    return _factor(rows, weights, spread, normalised=True)


def _factor_b(rows: Rows, weights: Weights, choices: Choices, spread: Spread) -> Tensor:
    return _factor(rows, weights, spread, normalised=False)


MODES: dict[str, Mode] = {
    "weighted_sum": Mode("weighted sum", (2, 2), _sum, _ends),
    "add_difference": Mode("add difference", (3, 3), _add_difference, _nothing),
    "sum_twice": Mode("sum twice", (3, 3), _twice, _last_or_end, beta=True),
    "triple": Mode("triple sum", (3, 3), _triple, _corner, beta=True),
    "train_difference": Mode("train difference", (3, 3), _train_difference, _nothing),
    "smooth_add": Mode("smooth add", (3, 3), _smooth_add, _nothing, whole=True),
    "cosine_a": Mode("cosine A", (2, 2), _by_factor, _all_of_b, looks=_factor_a, surveys=_alike_by_columns),
    "cosine_b": Mode("cosine B", (2, 2), _by_factor, _all_of_b, looks=_factor_b, surveys=_alike_in_all),
    "dare": Mode("DARE", (2, 2), _dare, _nothing, fields=frozenset({"seed", "dropped"})),
    "ties": Mode("TIES", (2, 0), _ties, _nothing, looks=_ties_looks, fields=frozenset({"kept"})),
    "slerp": Mode("slerp", (2, 2), _combine, _ends, looks=_slerp_looks),
    "average": Mode("average", (2, 0), _average, _only_one),
}


def spread_of(similarities: Sequence[np.ndarray[Any, Any]]) -> Spread:
    """The smallest and the largest similarity without the outer hundredths on both sides."""
    every = np.concatenate(similarities)
    every = every[~np.isnan(every)]
    if not len(every):
        raise ConfigError("merge.nothing_alike", field="mode")
    every = every[every >= np.percentile(every, 1, method="midpoint")]
    every = every[every <= np.percentile(every, 99, method="midpoint")]
    return float(every.min()), float(every.max())
