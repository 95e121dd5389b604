"""A picture file without what hangs around its pixels: text, EXIF, colour profile, and chunks of other programs.

Pillow refuses a whole PNG for text that unpacks to more than a megabyte, for a chunk whose checksum is wrong, and a
JPEG for an EXIF block that is cut short. The pixels are sound all the same. Pillow's limits are globals of the host and
stay as they are; the file is put together again from the parts that are pixels. PNG: ISO/IEC 15948:2004; JPEG: ITU-T
T.81, annex B; WebP: RFC 9649.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
LONGEST = 1 << 16
"""More bytes of a profile, or of the text that holds an EXIF block, are left out."""


def bare_versions(data: bytes) -> Iterator[bytes]:
    """The file without text and strange chunks, then with its pixels alone; nothing for other formats."""
    if data.startswith(PNG):
        for kept in (b"IHDR PLTE tRNS IDAT IEND gAMA cHRM sRGB iCCP eXIf", b"IHDR PLTE tRNS IDAT IEND"):
            yield b"".join((PNG, *_png_chunks(data, frozenset(kept.split()))))
    elif data.startswith(JPEG):
        for markers in (b"\xe0\xe1\xe2\xee", b"\xe0\xee", b"\xee", b""):
            yield b"".join(_jpeg_segments(data, markers))
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        body = b"".join(_webp_chunks(data))
        yield b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _png_chunks(data: bytes, kept: frozenset[bytes]) -> Iterator[bytes]:
    """The chunks that are kept, whole. A checksum that is wrong costs a chunk that is not needed."""
    place = len(PNG)
    while place + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[place : place + 8])
        chunk = data[place : place + 12 + length]
        place += 12 + length
        needed = name in (b"IHDR", b"PLTE", b"IDAT", b"IEND")
        sound = len(chunk) == 12 + length and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        if needed or (sound and length <= LONGEST and (name in kept or _holds_exif(name, chunk[8:-4], kept))):
            yield chunk
        if name == b"IEND":
            return


def _holds_exif(name: bytes, content: bytes, kept: frozenset[bytes]) -> bool:
    """ImageMagick keeps EXIF in text, and with it how the picture is turned."""
    return b"eXIf" in kept and name in (b"tEXt", b"zTXt") and content.startswith(b"Raw profile type exif\0")


def _jpeg_segments(data: bytes, kept: bytes) -> Iterator[bytes]:
    """JFIF and Adobe's segment (the meaning of the colours) are kept, others of applications and comments are not,
    except for `kept`; from the first scan on all is copied."""
    yield data[:2]
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        length = struct.unpack(">H", data[place + 2 : place + 4])[0]
        if marker == 0xDA or length < 2:
            break
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker in kept:
            yield data[place : place + 2 + length]
        place += 2 + length
    yield data[place:]


def _webp_chunks(data: bytes) -> Iterator[bytes]:
    """Without EXIF, XMP and the colour profile, and without their marks in the header."""
    place = 12
    while place + 8 <= len(data):
        name, length = struct.unpack("<4sI", data[place : place + 8])
        chunk = data[place : place + 8 + length + length % 2]
        place += len(chunk) or 8
        if name == b"VP8X" and length >= 10:
            chunk = chunk[:8] + bytes([chunk[8] & 0b00010010]) + chunk[9:]
        if name not in (b"EXIF", b"XMP ", b"ICCP"):
            yield chunk
