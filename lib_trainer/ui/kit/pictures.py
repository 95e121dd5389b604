"""Pictures inside of HTML."""

from __future__ import annotations

import base64
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image

LONGEST = 2000
"""Width of a grid that is shown, in pixels; the file is as it was drawn."""


def jpeg_uri(jpeg: bytes) -> str:
    """A picture as the source of an `img` element."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


@lru_cache(maxsize=4)
def shown_small(path: Path) -> str:
    """A picture that was written once, as the source of an `img` element."""
    with Image.open(path) as picture:
        return small_uri(picture, LONGEST)


def small_uri(picture: Image.Image, width: int) -> str:
    """`small_jpeg` as the source of an `img` element."""
    return jpeg_uri(small_jpeg(picture, width))


def small_jpeg(picture: Image.Image, width: int) -> bytes:
    """At most so wide, in pixels, and four times as high."""
    small = picture.convert("RGB")
    small.thumbnail((width, 4 * width))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
