"""Richer pictures than the world's, for the VAE alone: gradients, random polygons, lines and crops of photographs.

Without them the VAE would only know flat figures, and held-out or LoRA-made pictures would decode badly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .shapes import ALL_SHAPES, mask, paint
from .world import combos, draw, random_scene

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "color.png")
"""Package data of scikit-image, public domain or CC0; absent ones are skipped."""


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in rng.integers(0, 256, 3))
    return red, green, blue


def gradient(rng: np.random.Generator, side: int) -> Image.Image:
    """A linear blend between two colours along a random direction."""
    angle = rng.random() * 2 * np.pi
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    share = np.clip((x * np.cos(angle) + y * np.sin(angle)) + 0.5, 0, 1)[..., None]
    ends = rng.integers(0, 256, (2, 3))
    return Image.fromarray(np.rint(ends[0] * (1 - share) + ends[1] * share).astype(np.uint8), "RGB")


def scribble(rng: np.random.Generator, side: int = 64) -> Image.Image:
    """A ground with a few random figures, polygons, ellipses and lines, as (side, side) RGB."""
    base = gradient(rng, side) if rng.random() < 0.5 else Image.new("RGB", (side, side), _colour(rng))
    for _ in range(int(rng.integers(1, 5))):
        kind = rng.random()
        if kind < 0.45:
            shape = ALL_SHAPES[int(rng.integers(len(ALL_SHAPES)))]
            centre = (float(rng.random() * side), float(rng.random() * side))
            cover = mask(shape, (side, side), centre, float(rng.uniform(0.08, 0.5) * side), float(rng.uniform(0, 360)))
        else:
            big = Image.new("L", (side * 4, side * 4), 0)
            pen = ImageDraw.Draw(big)
            points = [tuple(p) for p in (rng.random((int(rng.integers(3, 6)), 2)) * side * 4).tolist()]
            if kind < 0.7:
                pen.polygon(points, fill=255)
            else:
                pen.line(points, fill=255, width=int(rng.integers(4, 28)))
            cover = big.resize((side, side), Image.BOX)
        base = paint(base, cover, _colour(rng))
    return base


def photographs() -> list[Image.Image]:
    """The photographs that this installation of scikit-image carries, RGB, in a fixed order."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    return [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS if (folder / name).is_file()]


def crop(rng: np.random.Generator, photo: Image.Image, side: int) -> Image.Image:
    """A random square of the photograph, 1 to 5 times the wanted side, scaled down to it."""
    width = min(int(side * rng.uniform(1.0, 5.0)), *photo.size)
    x, y = (int(rng.integers(0, free - width + 1)) for free in photo.size)
    return photo.crop((x, y, x + width, y + width)).resize((side, side), Image.LANCZOS)


def vae_pool(count: int, seed: int, side: int = 64) -> NDArray[Any]:
    """count pictures for the VAE as uint8 (count, 3, side, side): 50% scenes, 35% scribbles, 15% photograph crops."""
    rng = np.random.default_rng(seed)
    photos = photographs()
    choices = combos(ALL_SHAPES)
    out = np.empty((count, 3, side, side), dtype=np.uint8)
    for index in range(count):
        kind = rng.random()
        if kind < 0.5:
            picture = draw(random_scene(rng, choices), (side, side))
        elif kind < 0.85 or not photos:
            picture = scribble(rng, side)
        else:
            picture = crop(rng, photos[int(rng.integers(len(photos)))], side)
        out[index] = np.asarray(picture).transpose(2, 0, 1)
    return out
