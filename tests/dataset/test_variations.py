"""What a variation does to a picture, and what SDXL is then told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_trainer.dataset.pictures import fit, placement
from lib_trainer.dataset.variations import PLAIN, Variation, Variations

SHARES = st.floats(0, 1)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@settings(max_examples=60, deadline=None)
@given(st.integers(65, 300), st.integers(33, 300), SHARES, SHARES)
def test_a_mirrored_picture_is_the_picture_mirrored(width: int, height: int, across: float, down: float) -> None:
    """Its crop is where it lies in the mirrored picture: counted from what was the right edge."""
    image, upright = noise(width, height), Variation(at=(across, down))
    one, size = fit(image, 64, 32, upright)
    other, told = fit(image, 64, 32, Variation(at=(across, down), mirrored=True))
    assert np.array_equal(np.asarray(one)[:, ::-1], np.asarray(other))
    scale = placement(image.size, 64, 32)[0]
    assert size.crop[1] + 64 + told.crop[1] == pytest.approx(width * scale, abs=0.51)
    assert (told.crop[0], told.original, told.target) == (size.crop[0], (height, width), (32, 64))


@given(st.integers(64, 999), st.integers(32, 999), SHARES, SHARES)
def test_a_crop_lies_in_the_picture(width: int, height: int, across: float, down: float) -> None:
    scale, size = placement((width, height), 64, 32, Variation(at=(across, down)))
    assert 0 <= size.crop[0] <= height * scale - 32 + 1e-3 and 0 <= size.crop[1] <= width * scale - 64 + 1e-3


def test_a_crop_at_an_end_shows_that_end() -> None:
    image = noise(128, 32)
    for at, start in ((0.0, 0), (1.0, 64), (0.5, 32)):
        fitted, size = fit(image, 64, 32, Variation(at=(at, 0.0)))
        assert size.crop == (0, start)
        assert np.array_equal(np.asarray(fitted), np.asarray(image)[:, start : start + 64])


def test_colours_change_and_shapes_stay() -> None:
    image = noise(64, 32)
    brighter = np.asarray(Variation(brightness=1.2).coloured(image)).astype(int)
    assert np.abs(brighter - np.clip(np.asarray(image) * 1.2, 0, 255)).max() <= 1
    turned = Variation(hue=1 / 3).coloured(Image.new("RGB", (4, 4), (255, 0, 0)))
    assert np.abs(np.asarray(turned)[0, 0].astype(int) - (0, 255, 0)).max() <= 8, "red turns green"
    grey = np.asarray(Variation(grey=True).coloured(image))
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all()
    assert PLAIN.coloured(image) is image


def test_variations_hang_on_the_content_and_their_number_alone() -> None:
    four = Variations(crop=True, colour=0.2, grey=0.5, count=4).of("digest")
    assert four[:3] == Variations(crop=True, colour=0.2, grey=0.5, count=3).of("digest")
    assert len({one.told for one in four}) == 4
    assert four != Variations(crop=True, colour=0.2, grey=0.5, count=4).of("another")
    alone = Variations(crop=True, count=4).of("digest")
    assert [one.at for one in alone] == [one.at for one in four], "an option does not move what another draws"
    assert all(one == Variation(at=one.at) for one in alone)
    both = Variations(mirror=True, crop=True, count=2).of("digest")
    assert [one.mirrored for one in both] == [False, False, True, True]
    assert [one.at for one in both[:2]] == [one.at for one in both[2:]]


def test_without_options_there_is_the_picture_as_it_is() -> None:
    assert Variations(count=9).of("digest") == (PLAIN,) and len(Variations(count=9)) == 1
    assert PLAIN.told == ""
    assert Variations(mirror=True).of("digest") == (PLAIN, Variation(mirrored=True))


def test_a_share_of_the_variations_is_grey() -> None:
    drawn = [one.grey for number in range(200) for one in Variations(grey=0.25, count=5).of(str(number))]
    assert 0.2 < sum(drawn) / len(drawn) < 0.3
