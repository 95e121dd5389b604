"""What short runs at several learning rates say of the right one: a range and how sure it is, or that they do not say.

All rates of a job are moved together, by one factor. What is asked for is the factor at which the error falls most;
pictures and seeds are drawn anew many times (the bootstrap, Efron 1979), and as far as the answers lie apart, so wide
is the range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

RESAMPLES = 1000
INSIDE = 0.9
"""Share of the resamplings that the range holds."""
SHIFT = (-0.32, 0.32)
"""A run that is k times as long has its best rate k^s times as high, and of s no more is known than these bounds.
Bjorck et al. 2024 (arXiv:2409.19913) found -0.32 for language models; the miniature's rose about as much from 8 to 24
steps, as a rate that unsettles what is known needs time to mend it."""
MAY_BE_BEST = 0.025
"""A range holds every rate that was tried and is the best of them in this share of the resamplings (two standard
errors): it cannot be told from the best one (Hansen, Lunde and Nason 2011, "The Model Confidence Set"). What lies
between rates that were tried is reckoned from a shape, and a rate itself is not."""
LEAST_WIDTH = 0.5
"""Decades: rates that lie closer were not told apart."""
WIDEST = 1.75
"""Decades: what is wider says too little to be called an answer."""
LOST = -10.0
"""The gain of a run whose numbers overflowed."""
SEEN = 2.0
"""Standard errors by which the error must have fallen to have fallen at all."""


@dataclass(frozen=True)
class Short:
    """A short run. `gains` (points,): by how much the error fell at each point, as a share of the mean error before;
    None where its numbers overflowed. `moved`: by which share of their size the UNet's answers have changed."""

    factor: float
    steps: int
    seed: int
    gains: torch.Tensor | None
    moved: float = math.nan


@dataclass(frozen=True)
class Pictures:
    """Of each point (points,): the number of its picture, and that of the folder that this lies in. Points of a picture
    are not independent, and how much each folder counts is the job's choice and no chance."""

    own: torch.Tensor
    folders: torch.Tensor

    def sums(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """(…, pictures) sums over the points of each picture, (pictures,) how many they are, and the pictures of each
        folder by their place in these."""
        names = self.own.unique()
        member = torch.stack([self.own == one for one in names])
        places = torch.tensor([int(self.folders[one][0]) for one in member])
        strata = [(places == one).nonzero().flatten() for one in places.unique()]
        return values @ member.to(values.dtype).T, member.sum(1), strata


@dataclass(frozen=True)
class Tried:
    """What the runs at one factor came to: `gain` is by which share the error fell (below 0: it rose), `error` its
    standard error; None where numbers overflowed."""

    factor: float
    steps: int
    gain: float | None
    error: float = 0.0
    moved: float = math.nan


@dataclass(frozen=True)
class Range:
    """Factors on the rates of the job. `sure`: the share of resamplings that it holds."""

    low: float
    middle: float
    high: float
    sure: float


def two_digits(rate: float) -> float:
    """A rate as somebody would set it."""
    return float(f"{rate:.1e}")


def rate_text(rate: float) -> str:
    """A learning rate as people write it: 1e-4, 2.5e-5."""
    if rate == 0 or not math.isfinite(rate):
        return f"{rate:g}"
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def tried(runs: Sequence[Short], pictures: Pictures) -> list[Tried]:
    """One for each factor and length, in their order."""
    found = []
    for steps, factor in sorted({(one.steps, one.factor) for one in runs}):
        own = [one for one in runs if (one.steps, one.factor) == (steps, factor)]
        if any(one.gains is None for one in own):
            found.append(Tried(factor, steps, None))
            continue
        gains = torch.stack([one.gains for one in own if one.gains is not None]).mean(0)
        moved = sum(one.moved for one in own) / len(own)
        found.append(Tried(factor, steps, float(gains.mean()), _error(gains, pictures), moved))
    return found


def _error(gains: torch.Tensor, pictures: Pictures) -> float:
    """The standard error of their mean, from how far pictures of a folder lie apart; of one alone nothing is known."""
    sums, sizes, strata = pictures.sums(gains)
    variance, known = 0.0, False
    for own in strata:
        if len(own) > 1:
            away = sums[own] - sums[own].sum() / sizes[own].sum() * sizes[own]
            variance += float(away.square().sum() * len(own) / (len(own) - 1))
            known = True
    return math.sqrt(variance) / len(gains) if known else math.inf


def best_factor(found: Sequence[Tried]) -> Tried | None:
    """The one whose error fell most; None where none fell by more than chance."""
    seen = [one for one in found if one.gain is not None and one.gain > SEEN * one.error]
    return max(seen, key=lambda one: one.gain or 0.0, default=None)


def range_of(runs: Sequence[Short], pictures: Pictures, whole: int, seed: int = 0) -> Range:
    """Of the runs of the longest length, carried over to a run of `whole` steps. Some rate must have been seen to
    learn."""
    steps = max(one.steps for one in runs)
    own = [one for one in runs if one.steps == steps]
    by_seed = {number: {one.factor: one.gains for one in own if one.seed == number} for number in {o.seed for o in own}}
    seen = {one.factor for one in own if one.gains is not None}
    factors = sorted(factor for factor in seen if all(factor in runs_of for runs_of in by_seed.values()))
    logarithms = torch.tensor([math.log10(factor) for factor in factors], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    chosen = _resampled(by_seed, factors, pictures, generator)
    tops = torch.tensor([_top(logarithms, curve) for curve in chosen], dtype=torch.float64)
    low, high = SHIFT
    shifts = low + (high - low) * torch.rand(len(tops), generator=generator, dtype=torch.float64)
    tops = tops + shifts * math.log10(max(1.0, whole / steps))
    edge = (1 - INSIDE) / 2
    first, middle, last = (float(torch.quantile(tops, share)) for share in (edge, 0.5, 1 - edge))
    if (missing := LEAST_WIDTH - (last - first)) > 0:
        first, last = first - missing / 2, last + missing / 2
    often = torch.bincount(chosen.argmax(1), minlength=len(factors)) / len(chosen)
    maybe = logarithms[often >= MAY_BE_BEST]
    first, last = min(first, float(maybe.min())), max(last, float(maybe.max()))
    inside = ((tops >= first - 1e-9) & (tops <= last + 1e-9)).double().mean()
    return Range(10**first, 10**middle, 10**last, float(inside))


def _resampled(
    by_seed: Mapping[int, Mapping[float, torch.Tensor | None]],
    factors: Sequence[float],
    pictures: Pictures,
    generator: torch.Generator,
) -> torch.Tensor:
    """(RESAMPLES, factors): mean gains over seeds and over pictures of each folder, drawn with replacement, the same
    for all factors."""
    lost = torch.full((len(pictures.own),), LOST)
    rows = [[lost if (one := own.get(factor)) is None else one for factor in factors] for own in by_seed.values()]
    gains = torch.stack([torch.stack(row) for row in rows])
    sums, sizes, strata = pictures.sums(gains)
    seeds = _counts(len(gains), generator) / len(gains)
    own = torch.zeros(RESAMPLES, len(sizes))
    for places in strata:
        drawn = _counts(len(places), generator)
        share = sizes[places].sum() / (drawn @ sizes[places].float())  # a folder counts as much as it does
        own[:, places] = drawn * share.unsqueeze(1)
    return torch.einsum("rs,sfp,rp->rf", seeds, sums, own) / sizes.sum()


def _counts(among: int, generator: torch.Generator) -> torch.Tensor:
    """(RESAMPLES, among): how often each is drawn, of as many draws as there are."""
    drawn = torch.randint(among, (RESAMPLES, among), generator=generator)
    return torch.zeros(RESAMPLES, among).scatter_add_(1, drawn, torch.ones(RESAMPLES, among))


def _top(places: torch.Tensor, curve: torch.Tensor) -> float:
    """Where the curve is highest: the top of the parabola through the highest point and its neighbours."""
    best = int(curve.argmax())
    if best in (0, len(curve) - 1):
        return float(places[best])
    x, y = places[best - 1 : best + 2], curve[best - 1 : best + 2].double()
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    bend = (right - left) / (x[2] - x[0])
    if bend >= 0:
        return float(places[best])
    top = (x[0] + x[1]) / 2 - left / (2 * bend)
    return float(top.clamp(x[0], x[2]))
