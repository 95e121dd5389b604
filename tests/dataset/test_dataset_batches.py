"""Every picture as often as it should, one size a batch, no batch too many."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_trainer.dataset.batches import FixedSize, batches_per_epoch, epoch_batches, evened_batches
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


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=30),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(0, 2**32),
)
def test_evened_batches_are_full_and_show_everything(
    pictures: list[tuple[int, int]], batch_size: int, together: int, epochs: int, seed: int
) -> None:
    """Whatever the sizes: at the end of an epoch no picture is more than its repeats behind, none is ahead, and at the
    end of the run all have been shown exactly as often as they were to be; only the last batch may be short."""
    sizes, repeats = [(64 * side, 64) for side, _ in pictures], [count for _, count in pictures]
    left, seen, lengths = list[int](), Counter[int](), list[int]()
    for epoch in range(1, epochs + 1):
        last = epoch == epochs
        found = evened_batches(sizes, repeats, batch_size, together, left, seeded(seed + epoch), last=last)
        again = evened_batches(sizes, repeats, batch_size, together, left, seeded(seed + epoch), last=last)
        assert found == again, "nothing but the generator decides"
        assert last or not len(found.batches) % together
        left = found.left
        for batch in found.batches:
            assert all(len({sizes[index] for index in part}) == 1 for part in batch)
            seen.update(index for part in batch for index in part)
            lengths.append(sum(len(part) for part in batch))
        behind = [epoch * count - seen[index] for index, count in enumerate(repeats)]
        assert min(behind) >= 0
        if sum(repeats) >= batch_size * together:
            assert all(late <= count for late, count in zip(behind, repeats, strict=True))
    assert not left and all(seen[index] == epochs * count for index, count in enumerate(repeats))
    assert all(length == batch_size for length in lengths[:-1])
    assert len(lengths) == math.ceil(epochs * sum(repeats) / batch_size)


def test_few_batches_are_divided_among_sizes() -> None:
    """A thousand pictures in ten sizes: only what would else wait a second time shares a batch."""
    sizes = [(64 * (1 + index % 10), 64) for index in range(1000)]
    left, divided = list[int](), 0
    for epoch in range(1, 10):
        found = evened_batches(sizes, [1] * 1000, 7, 1, left, seeded(epoch))
        left, divided = found.left, divided + sum(len(batch) > 1 for batch in found.batches)
    assert divided == 0


def test_a_fixed_size_is_fixed() -> None:
    assert FixedSize(512, 768).sizes_for((10, 4000)) == ((512, 768),)


@pytest.mark.parametrize(("width", "height", "said"), [(100, 64, "width is 100"), (64, 0, "height is 0")])
def test_sides_that_the_vae_cannot_encode_are_named(width: int, height: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FixedSize(width, height)
