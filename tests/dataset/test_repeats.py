"""Fractional repeats: every picture equally often over the epochs, proved by counting."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_trainer.dataset.repeats import Repeats

PARTS = st.sampled_from([0.5, 0.25, 0.1, 0.3, 0.75, 1 / 3, 1.5, 2.25, 1.0, 3.0])


@settings(max_examples=100, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=30), st.integers(0, 2**32 - 1), st.integers(1, 25))
def test_a_picture_is_never_a_whole_one_ahead_or_behind(repeats: list[float], seed: int, epochs: int) -> None:
    made, shown = Repeats(repeats, seed), np.zeros(len(repeats), dtype=int)
    for epoch in range(1, epochs + 1):
        counts = made.of(epoch)
        assert all(count in (math.floor(one), math.ceil(one)) for count, one in zip(counts, repeats, strict=True))
        shown += counts
        assert all(abs(total - epoch * one) < 1 for total, one in zip(shown, repeats, strict=True))


@pytest.mark.parametrize("part", [0.5, 0.2, 0.7])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_epochs_are_of_one_length_and_a_cycle_comes_out_even(part: float, count: int) -> None:
    made, cycle = Repeats([part] * count, 5), Fraction(part).limit_denominator(10).denominator
    counts = np.array([made.of(epoch) for epoch in range(1, 3 * cycle + 1)])
    lengths = counts.sum(1)
    assert set(lengths) <= {math.floor(part * count), math.ceil(part * count)}
    for end in range(cycle, 3 * cycle + 1, cycle):
        assert len(set(counts[:end].sum(0))) == 1


def test_which_pictures_an_epoch_shows_is_drawn_anew() -> None:
    made = Repeats([0.5] * 20, 1)
    halves = [tuple(made.of(epoch)) for epoch in range(1, 21)]
    assert len(set(halves)) == 20, "ten divisions into halves, all different"
    assert halves != [tuple(Repeats([0.5] * 20, 2).of(epoch)) for epoch in range(1, 21)]


def test_an_epoch_hangs_on_its_number_alone() -> None:
    random, repeats = Random(3), [0.5, 0.25, 1.2, 3] * 5
    whole = [Repeats(repeats, 9).of(epoch) for epoch in range(1, 30)]
    asked, made = random.sample(range(1, 30), 20), Repeats(repeats, 9)
    assert [made.of(epoch) for epoch in asked] == [whole[epoch - 1] for epoch in asked]


def test_whole_numbers_draw_nothing_and_the_least_share_is_one_in_a_thousand() -> None:
    assert Repeats([1, 3.0, 0], 1).whole
    assert Repeats([1, 3.0, 0], 1).of(7) == [1, 3, 0]
    tiny = Repeats([1e-9], 1)
    assert sum(tiny.of(epoch)[0] for epoch in range(1, 1001)) == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=30), st.integers(0, 2**32 - 1), st.integers(1, 25))
def test_sums_are_those_of_the_epochs(repeats: list[float], seed: int, epochs: int) -> None:
    counted = [sum(Repeats(repeats, seed).of(epoch)) for epoch in range(1, epochs + 1)]
    made = Repeats(repeats, seed)
    assert [made.total(epoch) for epoch in range(1, epochs + 1)] == counted
    assert made.total_until(epochs) == sum(counted)
