"""Case 6: sound pixels are used, whatever hangs around them, and a host's limits stay as they are."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from lib_trainer.dataset.facts import look_at
from lib_trainer.dataset.pictures import PictureError, load_picture, read_header, read_size
from lib_trainer.dataset.scan import scan_folder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow tells of what it passes by

SIZE = (24, 16)
BIG = b"x" * (2 << 20)


def picture() -> Image.Image:
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = BytesIO()
    (image or picture()).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) if crc is None else crc)
    )


def png_with(*extra: bytes, behind: bool = False) -> bytes:
    data = encoded("PNG")
    place = data.index(b"IEND" if behind else b"IDAT") - 4
    return data[:place] + b"".join(extra) + data[place:]


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    data = encoded("JPEG", quality=100, subsampling=0)
    extra = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return data[:2] + extra + data[2:]


def webp_with(name: bytes, body: bytes) -> bytes:
    data = encoded("WEBP", lossless=True, exif=Image.Exif().tobytes() or b"Exif\0\0", icc_profile=b"odd")
    extra = struct.pack("<4sI", name, len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(data) - 8 + len(extra)) + data[8:] + extra


XMP = b"XML:com.adobe.xmp\0"
TIFF_OF_EXIF = b"MM\0*\0\0\0\x08"
AROUND: dict[str, Callable[[], bytes]] = {
    "iTXt": lambda: png_with(chunk(b"iTXt", XMP + b"\1\0\0\0" + zlib.compress(BIG))),
    "zTXt": lambda: png_with(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(BIG))),
    "zTXt behind the pixels": lambda: png_with(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(BIG)), behind=True),
    "many texts": lambda: png_with(
        *(chunk(b"zTXt", b"k%d\0\0" % n + zlib.compress(BIG[:1000_000])) for n in range(70))
    ),
    "checksum of a text": lambda: png_with(chunk(b"tEXt", b"a\0b", crc=7)),
    "checksum of a time": lambda: png_with(chunk(b"tIME", b"1234567", crc=7)),
    "gamma too short": lambda: png_with(chunk(b"gAMA", b"\0")),
    "resolution too short": lambda: png_with(chunk(b"pHYs", b"\0")),
    "profile": lambda: png_with(chunk(b"iCCP", b"odd\0\0" + zlib.compress(BIG))),
    "profile cut short": lambda: png_with(chunk(b"iCCP", b"odd\0\0" + zlib.compress(b"x" * 400)[:20])),
    "profile not packed": lambda: png_with(chunk(b"iCCP", b"odd\0\7abc")),
    "text not packed": lambda: png_with(chunk(b"zTXt", b"k\0\7abc")),
    "EXIF of a PNG": lambda: png_with(chunk(b"eXIf", b"odd")),
    "chunk of a program": lambda: png_with(chunk(b"prVt", BIG)),
    "animation's header too short": lambda: png_with(chunk(b"acTL", b"\0\0")),
    "EXIF cut short": lambda: jpeg_with((0xE1, b"Exif\0\0" + TIFF_OF_EXIF + b"\0\7\1\x12\0\3")),
    "EXIF shorter than its header": lambda: jpeg_with((0xE1, b"Exif\0\0MM\0*\0\0")),
    "JPEG's profile without a number": lambda: jpeg_with((0xE2, b"ICC_PROFILE\0")),
    "JFIF too short": lambda: jpeg_with((0xE0, b"JFIF\0")),
    "EXIF is noise": lambda: jpeg_with((0xE1, b"Exif\0\0noise")),
    "EXIF with a far directory": lambda: jpeg_with((0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff")),
    "JPEG's profile cut short": lambda: jpeg_with((0xE2, b"ICC_PROFILE\0\1\2abc")),
    "pictures of a phone": lambda: jpeg_with((0xE2, b"MPF\0MM\0*\0\0\0\x08\0\1\xb0\0\0\7")),
    "Photoshop's block": lambda: jpeg_with((0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\xff\xff\xff\xffab")),
    "comments": lambda: jpeg_with(*((0xFE, b"x" * 65_000) for _ in range(40))),
    "WebP's EXIF": lambda: webp_with(b"EXIF", b"odd"),
    "WebP's XMP": lambda: webp_with(b"XMP ", BIG),
}


@pytest.mark.parametrize("name", AROUND)
def test_what_hangs_around_a_picture_costs_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(AROUND[name]())
    expected = picture() if "WebP" in name or path.read_bytes()[:4] == b"\x89PNG" else load_picture(jpeg(tmp_path))
    assert np.array_equal(np.asarray(load_picture(path)), np.asarray(expected))
    assert read_size(path) == read_header(path).size == SIZE
    scan = scan_folder(tmp_path, trigger_word="t", repeats=1)
    assert "a.png" in [sample.path.name for sample in scan.samples] and scan.skipped == ()
    facts = look_at(path)
    assert facts.reason == "" and facts.size == SIZE


def jpeg(folder: Path) -> Path:
    path = folder / "plain.jpg"
    path.write_bytes(jpeg_with())
    return path


def test_these_pictures_are_more_than_pillow_takes() -> None:
    """Without the second try some of them would be refused, of each format one at least."""
    refused = []
    for name, make in AROUND.items():
        try:
            with Image.open(BytesIO(make())) as image:
                image.load()
        except Exception:
            refused.append(name)
    assert {"iTXt", "zTXt", "zTXt behind the pixels", "many texts", "checksum of a text"} <= set(refused)
    assert {"EXIF shorter than its header", "JFIF too short", "JPEG's profile without a number"} <= set(refused)


def test_the_hosts_limits_on_text_stay(tmp_path: Path) -> None:
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    (tmp_path / "a.png").write_bytes(AROUND["iTXt"]())
    load_picture(tmp_path / "a.png")
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_a_turned_picture_stays_turned_beside_a_text_that_is_left_out(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    raw = exif.tobytes()
    magick = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n" % len(raw) + raw.hex().encode() + b"\n")
    big = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(BIG))
    for extra in (chunk(b"eXIf", raw[6:]), chunk(b"zTXt", magick)):
        (tmp_path / "a.png").write_bytes(png_with(big, extra))
        assert read_size(tmp_path / "a.png") == load_picture(tmp_path / "a.png").size == (SIZE[1], SIZE[0])
    half = AROUND["EXIF cut short"]()
    (tmp_path / "a.jpg").write_bytes(half)
    assert load_picture(tmp_path / "a.jpg").size == SIZE


def test_transparency_and_palettes_outlive_the_second_try(tmp_path: Path) -> None:
    big = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(BIG))
    palette = picture().quantize(8)
    for image, options in (
        (palette, {"transparency": 0}),
        (picture().convert("RGBA"), {}),
        (picture().convert("LA"), {}),
    ):
        image.putalpha(90) if image.mode in ("RGBA", "LA") else None
        data = encoded("PNG", image, **options)
        place = data.index(b"IDAT") - 4
        (tmp_path / "plain.png").write_bytes(data)
        (tmp_path / "a.png").write_bytes(data[:place] + big + data[place:])
        one, other = load_picture(tmp_path / "plain.png"), load_picture(tmp_path / "a.png")
        assert np.array_equal(np.asarray(one), np.asarray(other))
        assert read_header(tmp_path / "a.png").transparent


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pixels_that_are_cut_short_are_still_refused(tmp_path: Path, kind: str) -> None:
    data = {"PNG": AROUND["iTXt"], "JPEG": AROUND["EXIF cut short"], "WEBP": lambda: encoded("WEBP", lossless=True)}[
        kind
    ]()
    end = data.index(b"IDAT") + 40 if kind == "PNG" else len(data) - 200
    (tmp_path / "a.png").write_bytes(data[:end])
    with pytest.raises(PictureError):
        load_picture(tmp_path / "a.png")


def test_a_bomb_behind_a_text_is_still_refused(tmp_path: Path) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 10_001, 8, 2, 0, 0, 0))
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(BIG))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + text + pixels)
    for read in (read_size, load_picture):
        with pytest.raises(PictureError):
            read(tmp_path / "a.png")
