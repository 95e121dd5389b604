"""The reference preprocessing, against two other ways to compute it, and what other taggers get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_trainer.dataset.pictures import PictureError, load_picture
from lib_trainer.tagging.models import preprocess
from lib_trainer.tagging.models.preprocess import MAX_SIDE, batched, load, squared

SIDE = 48


def reference(image: Image.Image, side: int = SIDE) -> np.ndarray[Any, Any]:
    """As the facts tell it, step by step on a full-sized square: (side, side, 3) blue first."""
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, (255, 255, 255))
    canvas.alpha_composite(rgba)
    longest = max(rgba.size)
    square = Image.new("RGB", (longest, longest), (255, 255, 255))
    square.paste(canvas.convert("RGB"), ((longest - rgba.width) // 2, (longest - rgba.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.BICUBIC)
    return np.asarray(square, dtype=np.float32)[:, :, ::-1]


def bicubic(array: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """Keys' cubic (a = -1/2), widened by the scale when it makes smaller, in float64 and without Pillow."""

    def along(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        length = values.shape[0]
        scale = length / side
        stretch = max(scale, 1.0)
        out = np.zeros((side, *values.shape[1:]))
        for place in range(side):
            centre = (place + 0.5) * scale
            taps = np.arange(max(0, int(centre - 2 * stretch + 0.5)), min(length, int(centre + 2 * stretch + 0.5)))
            t = np.abs((taps - centre + 0.5) / stretch)
            inner, outer = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
            weights = np.where(t < 1, inner, np.where(t < 2, outer, 0))
            out[place] = np.tensordot(weights / weights.sum(), values[taps], 1)
        return np.clip(np.rint(out), 0, 255)

    return along(along(array.astype(float).transpose(1, 0, 2)).transpose(1, 0, 2))


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 256, (max(1, height // 3), max(1, width // 3), len(mode)), dtype=np.uint8)
    return Image.fromarray(low if len(mode) > 1 else low[..., 0], mode).resize((width, height), Image.NEAREST)


SIZES = [
    (48, 48),
    (300, 200),
    (200, 300),
    (1, 1),
    (7, 5),
    (1, 2000),
    (2000, 1),
    (48, 20),
    (20, 48),
    (777, 1033),
    (49, 48),
]


@pytest.mark.parametrize("size", SIZES)
def test_the_same_numbers_as_the_reference(size: tuple[int, int]) -> None:
    image = noise(*size)
    ours = batched([squared(image, SIDE)])
    assert ours.shape == (1, SIDE, SIDE, 3) and ours.dtype == np.float32 and ours.flags.c_contiguous
    np.testing.assert_array_equal(ours[0], reference(image))


@pytest.mark.parametrize("size", [(300, 200), (61, 90), (20, 31)])
def test_the_same_as_a_bicubic_of_our_own(size: tuple[int, int]) -> None:
    image = noise(*size)
    longest = max(size)
    square = np.full((longest, longest, 3), 255.0)
    left, top = (longest - size[0]) // 2, (longest - size[1]) // 2
    square[top : top + size[1], left : left + size[0]] = np.asarray(image)
    difference = np.abs(bicubic(square, SIDE) - squared(image, SIDE))
    assert difference.max() <= 1, "Pillow rounds its weights to 22 bits"
    assert np.abs(bicubic(square, SIDE) - np.asarray(image.resize((SIDE, SIDE), Image.BOX))).max() > 20, "contrast"


def saved(folder: Path, name: str, image: Image.Image, **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def test_transparency_is_white_and_not_black(tmp_path: Path) -> None:
    image = noise(60, 40, "RGBA")
    path = saved(tmp_path, "a.png", image)
    np.testing.assert_allclose(batched([load(path, SIDE)])[0], reference(image), atol=1.01)
    clear = saved(tmp_path, "b.png", Image.new("RGBA", (30, 30), (0, 0, 0, 0)))
    assert (load(clear, SIDE) == 255).all()


def test_greyscale(tmp_path: Path) -> None:
    image = noise(50, 70, "L")
    np.testing.assert_array_equal(batched([load(saved(tmp_path, "a.png", image), SIDE)])[0], reference(image))


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = noise(40, 40, "L").quantize(8)
    image.info["transparency"] = 0
    path = saved(tmp_path, "a.png", image, transparency=0)
    np.testing.assert_allclose(batched([load(path, SIDE)])[0], reference(Image.open(path)), atol=1.01)


def test_cmyk(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.jpg", noise(80, 50, "CMYK"), quality=95)
    np.testing.assert_array_equal(batched([load(path, SIDE)])[0], reference(Image.open(path).convert("RGB")))


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    path = saved(tmp_path, "a.png", Image.fromarray(ramp))
    eight = Image.fromarray((ramp / 257.0).round().astype(np.uint8))
    np.testing.assert_allclose(batched([load(path, SIDE)])[0], reference(eight), atol=1.01)
    assert load(path, SIDE)[24, 12].mean() < 80, "a converter that clips would give white"


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp"):
        path = saved(tmp_path, name, frames[0], save_all=True, append_images=frames[1:], lossless=True)
        assert np.abs(load(path, SIDE).astype(int) - (255, 0, 0)).max() <= 2, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    """What T, P, K, L and D pass by."""
    upright = noise(60, 40)
    turn = {
        2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
        6: Image.ROTATE_90, 7: Image.TRANSVERSE, 8: Image.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(turn[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, "a.png", stored, exif=exif)
    np.testing.assert_array_equal(batched([load(path, SIDE)])[0], reference(upright))


def test_small_pictures_are_enlarged() -> None:
    """T, P and L leave a small picture small in a white frame."""
    assert (squared(Image.new("RGB", (10, 10), "black"), SIDE) == 0).all()


def test_the_padding_is_white_and_not_the_edges_colour() -> None:
    """D repeats the edge."""
    result = squared(Image.new("RGB", (40, 20), "black"), SIDE)
    assert (result[:8] == 255).all() and (result[-8:] == 255).all() and (result[20:28] == 0).all()


def test_bicubic_and_not_area() -> None:
    """T, P and L shrink with cv2's area filter, which never overshoots."""
    hard = np.zeros((96, 96, 3), np.uint8)
    hard[:, 48:] = 200
    assert squared(Image.fromarray(hard), SIDE).max() > 200


def test_any_side_of_the_model() -> None:
    """K assumes 448."""
    assert squared(noise(90, 60), 64).shape == (64, 64, 3)


def test_blue_comes_first() -> None:
    assert batched([squared(Image.new("RGB", (9, 9), (1, 2, 3)), 9)])[0, 0, 0].tolist() == [3, 2, 1]


def test_a_colour_profile_is_applied_before(tmp_path: Path) -> None:
    from PIL import ImageCms

    image = Image.new("RGB", (20, 20), (200, 30, 60))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(tmp_path, "a.png", image, icc_profile=profile)
    np.testing.assert_array_equal(load(path, SIDE), squared(load_picture(path), SIDE))


def test_a_picture_bomb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (MAX_SIDE + 1, 1)).save(path)
    with pytest.raises(PictureError, match="a side is longer than 65535"):
        load(path, SIDE)


def test_a_long_strip_passes_through_no_giant() -> None:
    """A square of its longer side would be a quarter of a gigapixel."""
    result = squared(Image.new("RGB", (1600, 16_000), "black"), SIDE)
    assert (result[:, :20] == 255).all() and (result[:, 23:25] <= 2).all()


def test_the_other_order_of_a_very_tall_picture_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(300, 900)
    exact = squared(image, SIDE).astype(int)
    monkeypatch.setattr(preprocess, "TALLEST", 100)
    assert np.abs(squared(image, SIDE) - exact).max() <= 1
