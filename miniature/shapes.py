"""Outlines of the world's figures in a unit frame: each fits the disc of radius 1, x to the right, y downwards."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
Ring = list[Point]

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "pentagon", "diamond", "cross", "ring", "semicircle")
"""What the diffusion checkpoint knows."""
HELD_OUT: tuple[str, ...] = ("heart", "crescent", "arrow")
"""What it has never seen, neither the pictures nor the words; the VAE and the tagger have."""
ALL_SHAPES: tuple[str, ...] = SHAPES + HELD_OUT


def _regular(corners: int, radius: float = 1.0, turn: float = -90.0) -> Ring:
    angles = [math.radians(turn + 360.0 * k / corners) for k in range(corners)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _arc(radius: float, start: float, stop: float, centre: Point = (0.0, 0.0), steps: int = 48) -> Ring:
    """Points of an arc, angles in degrees, clockwise on the screen because y points down."""
    angles = [math.radians(start + (stop - start) * k / steps) for k in range(steps + 1)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def _star() -> Ring:
    outer, inner = _regular(5), _regular(5, radius=0.42, turn=-54.0)
    return [point for pair in zip(outer, inner) for point in pair]


def _cross(arm: float = 0.32, reach: float = 0.92) -> Ring:
    quarter = [(arm, -reach), (arm, -arm), (reach, -arm)]
    turned = list(quarter)
    for _ in range(3):
        quarter = [(-y, x) for x, y in quarter]
        turned += quarter
    return turned


def _heart() -> Ring:
    ring = []
    for k in range(64):
        t = 2 * math.pi * k / 64
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        ring.append((x / 17.0, -(y + 2.5) / 17.0))
    return ring


def _crescent() -> Ring:
    # The bite is a disc of radius .8 about (.55, 0); the two circles meet where x = .60.
    half = math.degrees(math.acos(0.60))
    bite = math.degrees(math.atan2(0.8, 0.05))
    return _arc(1.0, half, 360.0 - half) + _arc(0.8, 360.0 - bite, bite, centre=(0.55, 0.0))


def outline(shape: str) -> list[Ring]:
    """Rings of a figure, filled by the even-odd rule (the second ring is a hole); KeyError for an unknown name."""
    table: dict[str, list[Ring]] = {
        "circle": [_arc(0.92, 0, 360)],
        "square": [_regular(4, 1.08, -45.0)],
        "triangle": [_regular(3, 1.05)],
        "star": [_star()],
        "pentagon": [_regular(5)],
        "diamond": [[(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)]],
        "cross": [_cross()],
        "ring": [_arc(0.95, 0, 360), _arc(0.5, 0, 360)],
        "semicircle": [_arc(1.0, 180, 360, centre=(0.0, 0.45))],
        "heart": [_heart()],
        "crescent": [_crescent()],
        "arrow": [[(1.0, 0.0), (0.1, -0.8), (0.1, -0.3), (-0.95, -0.3), (-0.95, 0.3), (0.1, 0.3), (0.1, 0.8)]],
    }
    return table[shape]


def mask(shape: str, size: tuple[int, int], centre: Point, radius: float, turn: float = 0.0) -> Image.Image:
    """Coverage of a figure as an "L" picture of (width, height) pixels, anti-aliased by 4x supersampling.

    centre and radius are in pixels; turn in degrees, clockwise. Values 0 (outside) to 255 (inside).
    """
    scale = 4
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    big = Image.new("L", (size[0] * scale, size[1] * scale), 0)
    pen = ImageDraw.Draw(big)
    for index, ring in enumerate(outline(shape)):
        points = [
            ((centre[0] + radius * (x * cos - y * sin)) * scale, (centre[1] + radius * (x * sin + y * cos)) * scale)
            for x, y in ring
        ]
        pen.polygon(points, fill=0 if index else 255)
    return big.resize(size, Image.BOX)


def paint(base: Image.Image, coverage: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """base (RGB) with colour laid over it where coverage ("L", same size) says; rounds once, so it is exact."""
    under = np.asarray(base, dtype=np.float32)
    share = np.asarray(coverage, dtype=np.float32)[..., None] / 255.0
    mixed = under * (1.0 - share) + np.asarray(colour, dtype=np.float32) * share
    return Image.fromarray(np.rint(mixed).astype(np.uint8), "RGB")
