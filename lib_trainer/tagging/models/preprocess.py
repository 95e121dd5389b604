"""Pictures as the WD taggers were trained on them.

The reference is SmilingWolf's own demo: transparency on white, padded to a white square, Pillow's bicubic to the
model's side (small pictures are enlarged, too), 0 to 255, blue first, channels last. Ours is the same to the last bit,
without the full-sized square in between. Two things come before it: the picture is turned upright, and one with another
colour profile is brought to sRGB, as a person sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lib_trainer.dataset.pictures import Header, PictureError, load_picture, read_header
from lib_trainer.refusals import Sentence

MAX_SIDE = 65_535
"""Pixels. A longer side is refused: such a file is a mistake or an attack."""

STRIP = 256
"""Rows of a tall picture that are padded and narrowed at a time."""

TALLEST = 8192
"""Rows. A taller picture is shortened first and then narrowed, which takes a hundredth of the time; the other order of
rounding may change a number by one."""

WHITE = (255, 255, 255)


def checked_header(path: Path, data: bytes | None = None) -> Header:
    """What the file says of its picture. Raises `PictureError` for what cannot be read or is too long."""
    header = read_header(path, data)
    width, height = header.size
    if max(width, height) > MAX_SIDE:
        raise PictureError(path, Sentence("picture.long_side", width=width, height=height, most=MAX_SIDE))
    return header


def load(path: Path, side: int, data: bytes | None = None) -> NDArray[np.uint8]:
    """A file as (side, side, 3) uint8 RGB, squared. Raises `PictureError`."""
    checked_header(path, data)
    return squared(load_picture(path, data), side)


def squared(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """An RGB picture padded to a white square and resized: (side, side, 3) uint8 RGB.

    Pillow resizes along x, rounds to 8 bits, then along y. White rows stay white along x, so a wide picture is padded
    after the first of the two, and a tall one in strips: the same numbers, without a square of the longer side.
    """
    width, height = image.size
    longest = max(width, height)
    if longest == side:
        return np.asarray(_padded(image, (side, side)))
    if height > max(width, TALLEST):
        short = image.resize((width, side), Image.Resampling.BICUBIC)
        return np.asarray(_padded(short, (height, side)).resize((side, side), Image.Resampling.BICUBIC))
    narrow = image.resize((side, height), Image.Resampling.BICUBIC) if width >= height else _narrowed(image, side)
    if height < longest:
        narrow = _padded(narrow, (side, longest))
    return np.asarray(narrow.resize((side, side), Image.Resampling.BICUBIC))


def batched(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Pictures of `squared` as the model's input: (n, side, side, 3) float32, 0 to 255, blue first."""
    batch = np.empty((len(pictures), *pictures[0].shape), dtype=np.float32)
    for place, picture in zip(batch, pictures):
        place[...] = picture[..., ::-1]
    return batch


def _padded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    canvas = Image.new("RGB", size, WHITE)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def _narrowed(image: Image.Image, side: int) -> Image.Image:
    """A tall picture padded to its height and resized along x alone: (side, height)."""
    result = Image.new("RGB", (side, image.height))
    for top in range(0, image.height, STRIP):
        rows = min(STRIP, image.height - top)
        strip = _padded(image.crop((0, top, image.width, top + rows)), (image.height, rows))
        result.paste(strip.resize((side, rows), Image.Resampling.BICUBIC), (0, top))
    return result
