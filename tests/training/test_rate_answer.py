"""Ranges of made-up runs whose best rate is known."""

from __future__ import annotations

import math

import pytest
import torch

from lib_trainer.training.rate_answer import Pictures, Short, best_factor, range_of, tried

FACTORS = [10 ** (half / 2) for half in range(-4, 5)]
PICTURES = torch.arange(12).repeat(8)
KNOWN = Pictures(PICTURES, PICTURES % 2)


def made_up(best: float, *, spread: float, own: float = 0.0, steps: int = 24, seeds: int = 2) -> list[Short]:
    """The error falls by a third at `best`, and less the farther a rate lies from it. `spread`: how far pictures are
    apart in what they gain; `own`: how far they are in their own best rate, in decades."""
    generator = torch.Generator().manual_seed(1)
    level, places = torch.randn(12, generator=generator) * spread, torch.randn(12, generator=generator) * own
    found = []
    for seed in range(seeds):
        noise = torch.randn(len(PICTURES), generator=generator) * spread / 3
        for factor in FACTORS:
            away = math.log10(factor / best) - places[PICTURES]
            found.append(Short(factor, steps, seed, 0.4 - 0.3 * away**2 + level[PICTURES] + noise))
    return found


@pytest.mark.parametrize("best", [0.05, 1.0, 7.0])
def test_the_range_holds_the_best_rate_whatever_pictures_have_in_common(best: float) -> None:
    """What all rates share, however large, falls out of the comparison: the noise is paired."""
    runs = made_up(best, spread=0.5)
    assert best_factor(tried(runs, KNOWN)) is not None
    found = range_of(runs, KNOWN, whole=24)
    assert found.low < best < found.high
    assert math.log10(found.high / found.low) == pytest.approx(0.5, abs=0.01)
    assert found.middle == pytest.approx(best, rel=0.05)


def test_pictures_that_disagree_make_a_wider_range() -> None:
    narrow, wide = (range_of(made_up(1.0, spread=0.1, own=own), KNOWN, 24) for own in (0.1, 2.0))
    assert wide.high / wide.low > 1.5 * narrow.high / narrow.low
    assert 0.85 <= wide.sure <= 0.95


@pytest.mark.parametrize(("apart", "held"), [(0.1, True), (0.03, False)])
def test_what_cannot_be_told_from_the_best_rate_is_in_the_range(apart: float, held: bool) -> None:
    """Half a decade above the best one pictures gain 0.05 less, and differ in that by `apart`: a mean of twelve."""
    runs, generator = made_up(1.0, spread=0.1), torch.Generator().manual_seed(4)
    away = torch.randn(12, generator=generator)
    away = ((away - away.mean()) / away.std() * apart - 0.05)[PICTURES]
    gains = {one.seed: one.gains for one in runs if one.factor == 1.0 and one.gains is not None}
    other = max(factor for factor in FACTORS if factor < 4)
    runs = [Short(one.factor, 24, one.seed, gains[one.seed] + away) if one.factor == other else one for one in runs]
    found = range_of(runs, KNOWN, 24)
    assert (found.high >= other) == held
    assert found.sure >= 0.9


def test_less_is_known_of_a_longer_run() -> None:
    runs = made_up(1.0, spread=0.1)
    same, longer = range_of(runs, KNOWN, 24), range_of(runs, KNOWN, 2400)
    assert longer.middle == pytest.approx(same.middle, rel=0.1)
    assert longer.high / longer.low > 10 > 5 > same.high / same.low


def test_a_rate_that_overflows_is_no_answer() -> None:
    whole = made_up(7.0, spread=0.1)
    runs = [one if one.factor <= 1 else Short(one.factor, one.steps, one.seed, None) for one in whole]
    listed = tried(runs, KNOWN)
    assert [one.factor for one in listed] == sorted(FACTORS)
    assert [one.gain is None for one in listed] == [factor > 1 for factor in FACTORS]
    best = best_factor(listed)
    assert best is not None and best.factor == 1.0
    assert range_of(runs, KNOWN, 24).middle <= 1.0


def test_nothing_is_seen_where_gains_are_chance() -> None:
    generator = torch.Generator().manual_seed(2)
    runs = [Short(factor, 24, 0, torch.randn(len(PICTURES), generator=generator) * 0.1) for factor in FACTORS]
    flat = [Short(one.factor, 24, 0, one.gains * 0 + torch.randn(12, generator=generator)[PICTURES]) for one in runs]
    assert best_factor(tried(flat, KNOWN)) is None


def test_a_gain_is_told_as_a_share_of_the_error() -> None:
    (one,) = tried([Short(1.0, 24, 0, torch.full((len(PICTURES),), 0.5), 0.25)], KNOWN)
    assert one.gain == pytest.approx(0.5) and one.error == pytest.approx(0, abs=1e-6) and one.moved == 0.25


def test_a_folder_counts_as_much_as_it_does() -> None:
    """What separates folders is no chance: an error of the mean comes from pictures of one folder alone."""
    gains = torch.where(PICTURES % 2 == 0, 1.0, -0.5)
    (one,) = tried([Short(1.0, 24, 0, gains)], KNOWN)
    assert one.gain == pytest.approx(0.25) and one.error == pytest.approx(0, abs=1e-6)
    (mixed,) = tried([Short(1.0, 24, 0, gains)], Pictures(PICTURES, PICTURES * 0))
    assert mixed.error == pytest.approx(0.75 / math.sqrt(11), rel=1e-4)
