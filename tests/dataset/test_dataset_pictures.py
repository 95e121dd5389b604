"""Pictures come out as their owner sees them, whatever file they are in."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from lib_trainer.dataset import pictures
from lib_trainer.dataset.pictures import load_picture, read_size


def rgb(path: Path) -> Any:
    image = load_picture(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_photographs_are_read_exactly(photographs: Path) -> None:
    for name in ("astronaut.png", "chelsea.png", "hubble_deep_field.jpg", "retina.jpg"):
        with Image.open(photographs / name) as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        assert np.array_equal(rgb(photographs / name), expected), name
        assert read_size(photographs / name) == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize("name", ["camera.png", "horse.png", "logo.png", "no_time_for_that_tiny.gif", "multipage.tif"])
def test_other_kinds_of_files_open(photographs: Path, name: str) -> None:
    assert load_picture(photographs / name).size == read_size(photographs / name)


# The reference is drawn by hand: where the picture's first row and first column lie in the file (EXIF 2.32, 4.6.4 A).
CORNERS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [0, 255, 255], [255, 0, 255]]], np.uint8)
STORED = {
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.transpose(1, 0, 2),
    6: np.rot90(CORNERS, 1),
    7: CORNERS.transpose(1, 0, 2)[::-1, ::-1],
    8: np.rot90(CORNERS, -1),
}


@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, extension: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation])).resize(
        STORED[orientation].shape[1::-1] * np.array(16), Image.Resampling.NEAREST
    )
    path, exif = tmp_path / f"a.{extension}", Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, dict[str, Any]] = {
        "jpg": {"quality": 95, "subsampling": 0},
        "tif": {"tiffinfo": {0x0112: orientation}},
        "webp": {"lossless": True},
    }
    stored.save(path, exif=exif, **options.get(extension, {}))
    assert read_size(path) == (48, 32)
    assert load_picture(path).size == (48, 32)
    assert np.abs(rgb(path)[8::16, 8::16] - CORNERS).max() < 10
    if extension == "tif":
        return  # Pillow 9 turns these twice in exif_transpose
    with Image.open(path) as image:
        assert np.array_equal(rgb(path), np.asarray(ImageOps.exif_transpose(image).convert("RGB")))


@pytest.mark.parametrize("orientation", [0, 9, 400])
def test_senseless_orientations_turn_nothing(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_size(tmp_path / "a.jpg") == load_picture(tmp_path / "a.jpg").size == (30, 20)


def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x09\x01\x12")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Corrupt EXIF")  # Pillow's own, and worth a line in the console
        assert read_size(tmp_path / "a.jpg") == load_picture(tmp_path / "a.jpg").size == (30, 20)


def transparent(mode: str) -> Image.Image:
    """Left half opaque red (grey 76 without colours), right half clear over black."""
    rgba = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    rgba.paste((255, 0, 0, 255), (0, 0, 4, 4))
    if mode in ("LA", "RGBA"):
        return rgba.convert(mode)
    if mode == "PA":
        image = Image.new("P", (8, 4), 1)
        image.putpalette([255, 0, 0, 0, 0, 0])
        image.paste(0, (0, 0, 4, 4))
        image = image.convert("PA")
        image.putalpha(rgba.getchannel("A"))
        return image
    raise AssertionError(mode)


@pytest.mark.parametrize(
    ("mode", "extension", "left"),
    [
        ("RGBA", "png", (255, 0, 0)),
        ("RGBA", "webp", (255, 0, 0)),
        ("RGBA", "tif", (255, 0, 0)),
        ("LA", "png", (76, 76, 76)),
    ],
)
def test_transparency_shows_white(tmp_path: Path, mode: str, extension: str, left: tuple[int, int, int]) -> None:
    path = tmp_path / f"a.{extension}"
    transparent(mode).save(path, **({"lossless": True} if extension == "webp" else {}))
    assert rgb(path)[0, 0].tolist() == list(left)
    assert rgb(path)[3, 7].tolist() == [255, 255, 255]


def test_half_transparency_is_half_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 200, 128)).save(tmp_path / "a.png")
    assert np.abs(rgb(tmp_path / "a.png")[0, 0] - [127, 127, 227]).max() <= 1


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
@pytest.mark.parametrize("extension", ["png", "gif"])
def test_palettes_with_transparency(tmp_path: Path, extension: str, transparency: int | bytes) -> None:
    image = Image.new("P", (8, 4), 1)
    image.putpalette([255, 0, 0, 10, 20, 30])
    image.paste(0, (0, 0, 4, 4))
    if extension == "gif" and isinstance(transparency, bytes):
        pytest.skip("GIF has one transparent colour")
    image.save(tmp_path / f"a.{extension}", transparency=transparency)
    assert rgb(tmp_path / f"a.{extension}")[0, 0].tolist() == [255, 0, 0]
    assert rgb(tmp_path / f"a.{extension}")[0, 7].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["PA", "La", "RGBa", "LA"])
def test_rarer_modes_with_alpha(mode: str) -> None:
    image = transparent("PA") if mode == "PA" else transparent("LA" if mode in ("La", "LA") else "RGBA").convert(mode)
    result = np.asarray(pictures._to_srgb(image))
    assert result[0, 0].tolist() == ([76] * 3 if mode in ("La", "LA") else [255, 0, 0])
    assert result[0, 7].tolist() == [255] * 3


@pytest.mark.parametrize(("mode", "clear"), [("RGB", (0, 0, 255)), ("L", 9)])
def test_one_transparent_colour(tmp_path: Path, mode: str, clear: Any) -> None:
    image = Image.new(mode, (8, 4), clear)
    image.paste({"RGB": (255, 0, 0), "L": 90}[mode], (0, 0, 4, 4))
    image.save(tmp_path / "a.png", transparency=clear)
    assert rgb(tmp_path / "a.png")[0, 0].tolist() == {"RGB": [255, 0, 0], "L": [90] * 3}[mode]
    assert rgb(tmp_path / "a.png")[0, 7].tolist() == [255] * 3


def test_black_and_white(photographs: Path, tmp_path: Path) -> None:
    Image.open(photographs / "horse.png").convert("1").save(tmp_path / "a.png")
    assert set(np.unique(rgb(tmp_path / "a.png"))) == {0, 255}


def test_16_bit_greyscale_looks_like_its_8_bits(photographs: Path, tmp_path: Path) -> None:
    with Image.open(photographs / "camera.png") as image:
        grey = np.asarray(image.convert("L"))
    for name, array in {"a.png": grey.astype(np.uint16) * 257, "dark.png": grey.astype(np.uint16)}.items():
        Image.fromarray(array).save(tmp_path / name)
        expected = np.rint(array / 257)
        assert np.array_equal(rgb(tmp_path / name)[..., 0], expected)
        Image.fromarray(array).save(tmp_path / "a.tif")
        assert np.array_equal(rgb(tmp_path / "a.tif")[..., 2], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 127.6, 255.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 257.0, 65535.0]], np.float32), [0, 1, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[7e9, 7e9, 7e9]], np.float32), [0, 0, 0]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
        (np.array([[0, 1_000_000, 2_000_000]], np.int32), [0, 128, 255]),
    ],
)
def test_greyscale_without_a_stated_white(tmp_path: Path, values: Any, expected: list[int]) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert rgb(tmp_path / "a.tif")[0, :, 0].tolist() == expected


def test_cmyk(photographs: Path, tmp_path: Path) -> None:
    with Image.open(photographs / "chelsea.png") as image:
        chelsea = image.convert("RGB")
    chelsea.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    chelsea.convert("CMYK").save(tmp_path / "a.tif")
    assert np.array_equal(rgb(tmp_path / "a.tif"), np.asarray(chelsea))
    assert np.abs(rgb(tmp_path / "a.jpg") - np.asarray(chelsea)).mean() < 3


def wide_profile() -> bytes:
    """sRGB's profile with red and blue exchanged: any use of it shows."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for offset in range(132, 132 + 12 * struct.unpack(">I", data[128:132])[0], 12):
        name = bytes(data[offset : offset + 4])
        if name in (b"rXYZ", b"bXYZ"):
            data[offset : offset + 4] = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}[name]
    return bytes(data).replace(b"s\0R\0G\0B", b"w\0i\0d\0e").replace(b"\0s\0R\0G\0B", b"\0w\0i\0d\0e")


def test_an_embedded_profile_is_followed(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "a.png", icc_profile=wide_profile())
    assert np.abs(rgb(tmp_path / "a.png")[0, 0] - [0, 0, 255]).max() < 6


def test_a_photograph_in_wide_colours_comes_out_in_srgb(photographs: Path) -> None:
    """rocket.jpg is in another colour space than sRGB; the reference is the transform built step by step."""
    with Image.open(photographs / "rocket.jpg") as image:
        source = ImageCms.getOpenProfile(io.BytesIO(image.info["icc_profile"]))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
        expected = np.asarray(ImageCms.applyTransform(image, transform)).astype(int)
        untouched = np.asarray(image).astype(int)
    assert np.array_equal(rgb(photographs / "rocket.jpg"), expected)
    assert np.abs(expected - untouched).mean() > 3


@pytest.mark.parametrize("profile", [b"not a profile", b"\0" * 200])
@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_a_broken_profile_is_ignored(tmp_path: Path, mode: str, profile: bytes) -> None:
    image = Image.new("RGB", (16, 16), (250, 128, 10))
    image.convert(mode).save(tmp_path / "a.tif", icc_profile=profile)
    assert rgb(tmp_path / "a.tif")[0, 0].tolist() == [250, 128, 10]


def test_a_profile_for_other_channels_is_ignored(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (16, 16), (250, 128, 10)).convert("CMYK").save(tmp_path / "a.tif", icc_profile=srgb)
    assert rgb(tmp_path / "a.tif")[0, 0].tolist() == [250, 128, 10]


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_an_animation(tmp_path: Path, extension: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("#ff0000", "#00ff00")]
    options = {"lossless": True} if extension == "webp" else {}
    frames[0].save(tmp_path / f"a.{extension}", save_all=True, append_images=frames[1:], **options)
    assert rgb(tmp_path / f"a.{extension}")[5, 5].tolist() == [255, 0, 0]


def test_avif_where_pillow_reads_it(photographs: Path, tmp_path: Path) -> None:
    if ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no AVIF")
    with Image.open(photographs / "chelsea.png") as image:
        image.save(tmp_path / "a.avif", quality=95)
    assert read_size(tmp_path / "a.avif") == (451, 300)
    assert np.abs(rgb(tmp_path / "a.avif") - rgb(photographs / "chelsea.png")).mean() < 3


def test_the_content_decides_and_not_the_name(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes((photographs / "rocket.jpg").read_bytes())
    assert np.array_equal(rgb(tmp_path / "a.png"), rgb(photographs / "rocket.jpg"))


def test_bytes_and_files_are_read_alike(photographs: Path) -> None:
    path = photographs / "rocket.jpg"
    data = path.read_bytes()
    assert read_size(path, data) == read_size(path)
    assert np.array_equal(np.asarray(load_picture(path, data)), np.asarray(load_picture(path)))
