"""Every picture as often as it should, one size a batch, no batch too many."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_trainer.dataset.batches import FixedSize, batches_per_epoch, epoch_batches
from lib_trainer.refusals import ConfigError

SETS = st.lists(st.tuples(st.sampled_from([(64, 64), (64, 128), (128, 64)]), st.integers(0, 5)), max_size=15)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=150, deadline=None)
@given(SETS, st.integers(1, 7), st.integers(0, 2**32))
def test_an_epoch_is_complete_uniform_and_short(
    pictures: list[tuple[tuple[int, int], int]], batch_size: int, seed: int
) -> None:
    sizes, repeats = [size for size, _ in pictures], [count for _, count in pictures]
    batches = epoch_batches(sizes, repeats, batch_size, seeded(seed))
    seen = Counter(index for batch in batches for index in batch)
    assert seen == Counter({index: count for index, count in enumerate(repeats) if count})
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert all(len({sizes[index] for index in batch}) == 1 for batch in batches)
    per_size: Counter[tuple[int, int]] = Counter()
    for size, count in pictures:
        per_size[size] += count
    fewest = sum(math.ceil(count / batch_size) for count in per_size.values())
    assert len(batches) == fewest == batches_per_epoch(sizes, repeats, batch_size)
    assert batches == epoch_batches(sizes, repeats, batch_size, seeded(seed))


def test_the_order_is_shuffled_within_and_across_sizes_and_goes_on_with_the_generator() -> None:
    sizes, repeats = [(64, 64)] * 20 + [(64, 128)] * 20, [2] * 40
    generator = seeded()
    first, second = (epoch_batches(sizes, repeats, 4, generator) for _ in range(2))
    assert first != second
    assert first != epoch_batches(sizes, repeats, 4, seeded(2))
    order = [index for batch in first for index in batch]
    assert order != sorted(order)
    kinds = [sizes[batch[0]] for batch in first]
    assert sum(a != b for a, b in itertools.pairwise(kinds)) > 2


def test_nothing_but_the_generator_decides() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    epoch_batches([(64, 64)] * 5, [3] * 5, 2, seeded())
    assert torch.equal(before, torch.get_rng_state())


def test_every_place_in_an_epoch_is_equally_likely() -> None:
    generator, places = seeded(), Counter[int]()
    for _ in range(2000):
        batches = epoch_batches([(64, 64)] * 4, [1] * 4, 1, generator)
        places[batches.index([0])] += 1
    assert all(abs(count - 500) < 100 for count in places.values())  # 5 standard deviations


@pytest.mark.parametrize(
    ("sizes", "repeats", "batch_size"),
    [([(64, 64)], [1], 0), ([(64, 64)], [-1], 1), ([(64, 64)], [1, 1], 1), ([(64, 64)] * 2, [1], 1)],
)
def test_nonsense_is_refused(sizes: list[tuple[int, int]], repeats: list[int], batch_size: int) -> None:
    with pytest.raises(ValueError):
        epoch_batches(sizes, repeats, batch_size, seeded())
    with pytest.raises(ValueError):
        batches_per_epoch(sizes, repeats, batch_size)


def test_a_fixed_size_is_fixed() -> None:
    assert FixedSize(512, 768).size_for((10, 4000)) == (512, 768)


@pytest.mark.parametrize(("width", "height", "said"), [(100, 64, "width is 100"), (64, 0, "height is 0")])
def test_sides_that_the_vae_cannot_encode_are_named(width: int, height: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FixedSize(width, height)
