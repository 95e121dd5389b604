"""Pictures that carry an embedding, as the WebUI makes and reads them (modules/textual_inversion/image_embedding.py).

The data is JSON in which a tensor is `{"TORCHTENSOR": nested lists}`, in one of two places: as base64 in a PNG's text
`sd-ti-embedding`; or, compressed, in the pixels: a block of low halves of its bytes at the picture's left and one of
high halves at its right, each parted from the picture by a black column, in the low four bits of every value and mixed
with a fixed sequence of numbers.
"""

from __future__ import annotations

import base64
import json
import warnings
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lib_trainer.memory import is_out_of_memory
from lib_trainer.refusals import ModelError

PICTURES = (".png", ".webp", ".jxl", ".avif")
"""Endings in which the WebUI looks for embeddings."""

FORMATS = ("PNG", "WEBP", "JXL", "AVIF", "JPEG", "GIF")
"""What is read under these endings: whatever else Pillow knows, EPS starts a program for a stranger's file."""

TEXT = "sd-ti-embedding"
LARGEST = 64 << 20
"""Bytes of JSON: 75 vectors of 2048 numbers take 4 MB."""


def read_picture(path: Path, *, pixels: bool = True) -> dict[str, Any] | None:
    """What a picture carries; None for one that carries nothing. Raises `ModelError` where it cannot be opened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on unusual pictures
            Image.init()
            with Image.open(path, formats=[one for one in FORMATS if one in Image.OPEN]) as picture:
                text = getattr(picture, "text", {}).get(TEXT)
                data = _decoded(base64.b64decode(text)) if text else _from_pixels(picture) if pixels else None
    except FileNotFoundError:
        raise ModelError("file.missing", path=path) from None
    except Exception as error:  # Pillow raises whatever its decoders do
        if is_out_of_memory(error):
            raise
        raise ModelError("file.no_picture", path=path, reason=error) from error
    return data if isinstance(data, dict) else None


def carried_name(path: Path, *, pixels: bool) -> str | None:
    """The name by which a prompt finds the embedding in a picture; None where there is none.

    A picture's text is read at once; its `pixels` are many, and there may be hundreds of previews in a folder.
    """
    try:
        data = read_picture(path, pixels=pixels)
    except ModelError:
        return None
    return None if data is None else str(data.get("name", path.stem))


def _decoded(text: bytes) -> Any:
    return json.loads(text, object_hook=_tensor)


def _tensor(found: dict[str, Any]) -> Any:
    if "TORCHTENSOR" not in found:
        return found
    return torch.from_numpy(np.array(found["TORCHTENSOR"], dtype=np.float32))


def _from_pixels(picture: Image.Image) -> Any:
    """None where the pixels hold no two blocks beside black columns."""
    values = np.asarray(picture.convert("RGB"))
    bright = values.any(axis=2)
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    if not len(rows):
        return None
    low = values[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 0x0F
    black = np.flatnonzero(~low.any(axis=(0, 2)))
    if len(black) < 2:
        return None
    left, right = low[:, : black[0]], low[:, black[-1] + 1 :]
    if left.shape != right.shape or not left.size:
        return None
    mixed = _sequence(left.size).reshape(left.shape) & 0x0F
    data = ((right ^ mixed) << 4 | (left ^ mixed)).tobytes()
    unpacked = zlib.decompressobj()
    try:
        text = unpacked.decompress(data, LARGEST)
        return _decoded(text)
    except (zlib.error, ValueError, RecursionError):
        return None


@lru_cache(maxsize=4)
def _sequence(count: int) -> np.ndarray[Any, Any]:
    """Of a linear congruential generator (Numerical Recipes' constants) the remainders by 255."""
    state, found = 0, bytearray()
    for _ in range(count):
        state = (1664525 * state + 1013904223) % 2**32
        found.append(state % 255)
    return np.frombuffer(bytes(found), np.uint8)
