"""Damaged files and picture bombs are refused by name; what only looks odd is read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_trainer.dataset.pictures import PictureError, load_picture, read_size


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "tif", "bmp", "webp"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.001])
def test_truncated_files_are_named(photographs: Path, tmp_path: Path, extension: str, share: float) -> None:
    name, path = f"a.{extension}", tmp_path / f"a.{extension}"
    with Image.open(photographs / "chelsea.png") as image:
        image.save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(
        PictureError, match=f"^The picture '.*{name}' cannot be used .*: replace or remove it.$"
    ) as info:
        load_picture(path)
    assert str(info.value.reason) and name not in str(info.value.reason)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"hello, this is text", "not in a format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not in a format"),
        (b"\x89PNG\r\n\x1a\n", "damaged|cut short"),
        (b"\0\0\0\x20ftypavif" + b"\0" * 50, "AVIF|damaged"),
    ],
)
def test_what_is_no_picture(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_size, load_picture):
        with pytest.raises(PictureError, match=said):
            read(tmp_path / "a.png")


def test_a_picture_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="gone"):
        load_picture(tmp_path / "a.png")


def bomb(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(20_000, 10_001))
    for read in (read_size, load_picture):
        with pytest.raises(PictureError, match="more than 200 megapixels"):
            read(tmp_path / "bomb.png")


def test_sizes_at_which_pillow_warns_or_raises_are_read(tmp_path: Path) -> None:
    for name, size in {"warns.png": (10_000, 10_000), "raises.png": (19_000, 10_000)}.items():
        (tmp_path / name).write_bytes(bomb(*size))
        assert read_size(tmp_path / name) == size


def test_big_tiffs_are_refused_without_a_warning(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    start = struct.unpack("<I", data[4:8])[0]
    for place in range(start + 2, start + 2 + 24, 12):
        assert struct.unpack("<H", data[place : place + 2])[0] in (256, 257)
        data[place : place + 12] = data[place : place + 2] + struct.pack("<HII", 4, 1, 10_000)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(PictureError, match="more than Pillow reads of a TIFF"):
        read_size(tmp_path / "a.tif")


def test_the_host_keeps_its_own_limit(make_picture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = make_picture("a.png")
    assert load_picture(path).size == (24, 16)
    assert Image.MAX_IMAGE_PIXELS == 10
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("RGB", (4, 4)).save(path.with_suffix(".tif"))
    assert load_picture(path.with_suffix(".tif")).size == (4, 4)


def test_big_tiff_format(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="Pillow 9 does not write BigTIFF")
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    tifffile.imwrite(tmp_path / "a.tif", array, bigtiff=True, photometric="rgb")
    assert np.array_equal(np.asarray(load_picture(tmp_path / "a.tif")), array)


def test_the_header_is_enough_for_the_size(photographs: Path, tmp_path: Path) -> None:
    for name, end in {"chelsea.png": b"IDAT", "rocket.jpg": b"\xff\xda"}.items():
        data = (photographs / name).read_bytes()
        (tmp_path / name).write_bytes(data[: data.index(end) + 16])
        assert read_size(tmp_path / name) == read_size(photographs / name)
