"""The bucket of a picture is the one that crops it least, within the bounds that the job sets."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_trainer.dataset.buckets import Buckets, bucket_sizes, kept_share
from lib_trainer.dataset.pictures import fit

SIDES = st.integers(1, 6000)
STEPS = st.sampled_from([32, 64, 128])
SQUARES = st.sampled_from([512, 640, 768, 1024])


def kohya_buckets(side: int, low: int, high: int, step: int) -> set[tuple[int, int]]:
    """sd-scripts' make_bucket_resolutions, from its description in facts/settings.md 2.6."""
    found = {(side // step * step,) * 2}
    for width in range(low, high + 1, step):
        height = min(high, side * side // width // step * step)
        if height >= low:
            found |= {(width, height), (height, width)}
    return found


@pytest.mark.parametrize(("side", "step"), [(512, 64), (768, 64), (1024, 64), (1024, 32)])
def test_the_set_is_that_of_sd_scripts(side: int, step: int) -> None:
    assert set(bucket_sizes((side, side), step, 256, 2048)) == kohya_buckets(side, 256, 2048, step)


@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, SQUARES, STEPS, st.booleans())
def test_a_bucket_is_within_its_bounds_and_crops_least(
    width: int, height: int, side: int, step: int, enlarge: bool
) -> None:
    low, high = 256, 1536
    ((across, down),) = Buckets(((side, side),), step, low, high, enlarge).sizes_for((width, height))
    assert across % step == 0 and down % step == 0 and 0 < across * down <= side * side
    assert max(across, down) <= high
    mine = kept_share((width, height), (across, down))
    enlarged = across > width or down > height
    if enlarge:
        assert min(across, down) >= low
    else:
        assert not enlarged or across == step or down == step, "only what is smaller than a step is enlarged"
    if enlarge or (min(across, down) >= low and not min(width, height) < side):
        best = max(kept_share((width, height), one) for one in kohya_buckets(side, low, high, step))
        assert math.isclose(mine, best)


def test_a_small_picture_keeps_its_size_where_nothing_is_enlarged() -> None:
    buckets = Buckets(((512, 512),), 64, 256, 2048, enlarge=False)
    assert buckets.sizes_for((300, 200)) == ((256, 192),)
    assert buckets.sizes_for((500, 800)) == ((384, 640),), "shrunk by nothing, and then the pixels are fewer"
    assert buckets.sizes_for((3000, 2000)) == ((640, 384),), "a large one has its bucket"
    assert buckets.sizes_for((20, 20)) == ((64, 64),), "a step is the least"


def test_every_resolution_has_its_own_bucket() -> None:
    buckets = Buckets(((512, 512), (768, 768)), 64, 256, 2048)
    assert buckets.sizes_for((1000, 500)) == ((704, 320), (1088, 512))


def test_a_resolution_that_is_no_square_is_a_bucket_itself() -> None:
    assert Buckets(((512, 768),), 64, 256, 2048).sizes_for((1024, 1536)) == ((512, 768),)


@given(SIDES, SIDES, SIDES, SIDES)
def test_the_kept_share_is_what_covering_leaves(width: int, height: int, across: int, down: int) -> None:
    scale = max(across / width, down / height)
    assert math.isclose(kept_share((width, height), (across, down)), across * down / (width * height * scale**2))


def test_what_sdxl_is_told_is_that_of_the_bucket() -> None:
    ((width, height),) = Buckets(((1024, 1024),), 64, 256, 2048).sizes_for((1500, 1000))
    fitted, size = fit(Image.new("RGB", (1500, 1000)), width, height)
    assert fitted.size == (width, height) == (1216, 832)
    assert size.original == (1000, 1500) and size.target == (832, 1216), "height first"
    scale = max(1216 / 1500, 832 / 1000)
    assert size.crop == (0, int((1500 * scale - 1216) / 2))
