"""Holes of pictures for models that inpaint: where such a model is to fill in, at random or where a mask is."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

WHOLE = 0.25
"""Share of random holes that are the whole picture, so that the model still draws from text alone."""
MOST = 3
"""Shapes of a random hole."""
SMALLEST, LARGEST = 0.15, 0.85
"""Sides of a shape, as shares of the picture's."""
_RECIPE = b"hole, rectangles and ellipses: 1"  # part of every key: count up when holes come out otherwise


@dataclass(frozen=True)
class Holes:
    """Which holes pictures are shown with: `count` random ones, or their masks (of pictures that have one)."""

    count: int
    masks: bool = False


def random_hole(seed: str, width: int, height: int) -> torch.Tensor:
    """(1, H, W) fp32, 1 in the hole: the whole picture, or some rectangles and ellipses anywhere in it.

    As diffusers' `train_dreambooth_inpaint` and the published models were trained: rectangles, ellipses and the whole
    picture, a quarter of the time. The same on every system for the same seed, but for an ellipse's rim.
    """
    source = random.Random(seed)
    if source.random() < WHOLE:
        return torch.ones(1, height, width)
    image = Image.new("L", (width, height))
    pen = ImageDraw.Draw(image)
    for _ in range(1 + int(source.random() * MOST)):
        across, down = (SMALLEST + (LARGEST - SMALLEST) * source.random() for _ in range(2))
        left, top = (1 - across) * source.random() * width, (1 - down) * source.random() * height
        box = (left, top, left + across * width, top + down * height)
        (pen.ellipse if source.random() < 0.5 else pen.rectangle)(box, fill=1)
    return torch.from_numpy(np.array(image, dtype=np.float32))[None]


def at_latents(hole: torch.Tensor, cell: int) -> torch.Tensor:
    """(1, H, W) → (1, H/cell, W/cell): the first pixel of each cell, as hosts and diffusers bring it to that size."""
    return hole[:, ::cell, ::cell].contiguous()


def hole_key(picture: str, hole: str) -> str:
    """The name in a store of what belongs to a picture's key and a hole's own name."""
    return hashlib.sha256(_RECIPE + f"{picture} {hole}".encode()).hexdigest()
