"""The drawn, booru-tagged world: a Scene is drawn at any resolution and knows its tags.

Every random choice comes from a numpy Generator that the caller seeds.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .shapes import ALL_SHAPES, HELD_OUT, SHAPES, mask, paint

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (220, 20, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 225, 40),
    "green": (20, 150, 50),
    "cyan": (60, 215, 225),
    "blue": (30, 60, 215),
    "purple": (130, 40, 160),
    "pink": (255, 130, 190),
}
BACKGROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "black": (10, 10, 10),
    "grey": (128, 128, 128),
    "red": COLOURS["red"],
    "yellow": COLOURS["yellow"],
    "green": COLOURS["green"],
    "blue": COLOURS["blue"],
}
SIZES: dict[str, tuple[float, float]] = {"small": (0.20, 0.25), "large": (0.32, 0.37)}
"""Radius range of a figure, as a share of the picture's shorter side."""
POSITIONS: dict[str, tuple[float, float]] = {
    "centered": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "top": (0.0, -1.0),
    "bottom": (0.0, 1.0),
}
IMPLICATIONS: dict[str, tuple[str, ...]] = {
    "square": ("polygon",),
    "triangle": ("polygon",),
    "star": ("polygon",),
    "pentagon": ("polygon",),
    "diamond": ("polygon",),
    "cross": ("polygon",),
    "arrow": ("polygon",),
    "circle": ("round",),
    "ring": ("round",),
    "semicircle": ("round",),
    "crescent": ("round",),
    "heart": ("round",),
    **{f"{name} background": ("simple background",) for name in BACKGROUNDS},
}
"""Tag implications as a booru keeps them: who has the first has the others, too."""
CHARACTERS: dict[tuple[str, str], str] = {
    ("yellow", "circle"): "sol (sky)",
    ("red", "star"): "ruby (star)",
    ("blue", "diamond"): "marina (gem)",
    ("pink", "heart"): "amora (heart)",
}
"""(colour, shape) pairs with a name of their own; the tagger's category 4, never in captions for the checkpoint."""


@dataclass(frozen=True)
class Scene:
    """One picture before it is drawn; dx, dy (-1 to 1), grow (0 to 1) and turn (degrees) are the free play in it."""

    shape: str
    colour: str
    background: str
    size: str = "large"
    position: str = "centered"
    dx: float = 0.0
    dy: float = 0.0
    grow: float = 0.5
    turn: float = 0.0

    @property
    def combo(self) -> tuple[str, str, str]:
        """(shape, colour, background): what splits the training captions from the held-out ones."""
        return (self.shape, self.colour, self.background)


def is_held_out(combo: tuple[str, str, str]) -> bool:
    """True for one combo in ten, chosen by a checksum: the checkpoint never trains on these."""
    return zlib.crc32("|".join(combo).encode()) % 10 == 0


def stands_out(colour: str, background: str) -> bool:
    """False for the same colour and for near ones (orange on red or yellow, purple on blue): RGB distance under 140."""
    return sum((a - b) ** 2 for a, b in zip(COLOURS[colour], BACKGROUNDS[background])) >= 140**2


def combos(shapes: Sequence[str] = SHAPES) -> list[tuple[str, str, str]]:
    """Every (shape, colour, background) whose figure stands out from its ground, in a fixed order."""
    return [(s, c, b) for s in shapes for c in COLOURS for b in BACKGROUNDS if stands_out(c, b)]


def random_scene(rng: np.random.Generator, choices: Sequence[tuple[str, str, str]], play: float = 1.0) -> Scene:
    """A scene with one of the given combos and any size and position.

    play, 0 to 1, scales the free play within those. The VAE and the tagger see all of it; the checkpoint trains on
    rigid scenes (0), since each small shift is another pattern of latents and it has few weights to learn them with.
    """
    shape, colour, background = choices[int(rng.integers(len(choices)))]
    size = "large" if rng.random() < 0.8 else "small"
    position = "centered" if rng.random() < 0.5 else list(POSITIONS)[int(rng.integers(len(POSITIONS)))]
    dx, dy, grow, turn = rng.random(4)
    shift = (play * float(dx * 2 - 1), play * float(dy * 2 - 1))
    return Scene(
        shape, colour, background, size, position, *shift, 0.5 + play * float(grow - 0.5), play * float(turn * 12 - 6)
    )


def draw(scene: Scene, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """The scene as an RGB picture of (width, height) pixels; the same scene looks the same at every size."""
    width, height = size
    short = min(width, height)
    low, high = SIZES[scene.size]
    radius = (low + (high - low) * scene.grow) * short
    # Off-centre figures keep 6% of the short side free to the border, whatever their size.
    side_x, side_y = POSITIONS[scene.position]
    room_x, room_y = width / 2 - radius - 0.06 * short, height / 2 - radius - 0.06 * short
    centre = (
        width / 2 + side_x * room_x + 0.03 * short * scene.dx,
        height / 2 + side_y * room_y + 0.03 * short * scene.dy,
    )
    ground = Image.new("RGB", size, BACKGROUNDS[scene.background])
    return paint(ground, mask(scene.shape, size, centre, radius, scene.turn), COLOURS[scene.colour])


def with_implied(tags: Sequence[str]) -> list[str]:
    """tags and what they imply, in order, each once."""
    out: dict[str, None] = {}
    for tag in tags:
        out[tag] = None
        for implied in IMPLICATIONS.get(tag, ()):
            out[implied] = None
    return list(out)


def tags_of(scene: Scene) -> list[str]:
    """The scene's tags with the implied ones, spaces not underscores, the shape first."""
    return with_implied([scene.shape, scene.colour, f"{scene.background} background", scene.size, scene.position])


def caption(scene: Scene, rng: np.random.Generator, dropout: float = 0.2) -> str:
    """A comma-separated caption: shuffled tags, each dropped with the given chance (0 to 1).

    Half of the captions say "red circle" at the front instead of the two tags, as a person would prompt.
    """
    tags = tags_of(scene)
    head: list[str] = []
    if rng.random() < 0.6:
        head = [f"{scene.colour} {scene.shape}"]
        tags = [tag for tag in tags if tag not in (scene.colour, scene.shape)]
    kept = [tag for tag in tags if rng.random() >= dropout]
    rng.shuffle(kept)
    return ", ".join(head + kept)


def write_concept(
    folder: Path,
    shape: str = "heart",
    trigger: str = "zorb",
    colours: Sequence[str] = ("red", "blue"),
    count: int = 18,
    repeats: int = 10,
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
    play: float = 0.0,
) -> Path:
    """Write a training set for a concept into folder/"<repeats>_<trigger>" and return that folder.

    Pictures are PNG, captions .txt beside them: the trigger word first, then the tags without the shape's own name
    and what that implies, so the trigger alone has to carry the shape.
    """
    rng = np.random.default_rng(seed)
    target = folder / f"{repeats}_{trigger}"
    target.mkdir(parents=True, exist_ok=True)
    hidden = {shape, *IMPLICATIONS.get(shape, ())}
    choices = {colour: [c for c in combos((shape,)) if c[1] == colour] for colour in colours}
    for index in range(count):
        scene = random_scene(rng, choices[colours[index % len(colours)]], play)
        draw(scene, size).save(target / f"{index:03d}.png")
        tags = [trigger] + [tag for tag in tags_of(scene) if tag not in hidden]
        (target / f"{index:03d}.txt").write_text(", ".join(tags), encoding="utf-8")
    return target


def write_known(
    folder: Path, count: int = 60, repeats: int = 3, size: tuple[int, int] = (64, 64), seed: int = 5
) -> Path:
    """Write regularisation pictures into folder/"<repeats>_known": scenes of what the checkpoint draws already.

    Beside a concept's pictures they keep a LoRA from putting the concept everywhere.
    """
    rng = np.random.default_rng(seed)
    target = folder / f"{repeats}_known"
    target.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene = random_scene(rng, combos())
        draw(scene, size).save(target / f"{index:03d}.png")
        (target / f"{index:03d}.txt").write_text(caption(scene, rng), encoding="utf-8")
    return target


__all__ = [
    "ALL_SHAPES", "BACKGROUNDS", "CHARACTERS", "COLOURS", "HELD_OUT", "IMPLICATIONS", "POSITIONS", "SHAPES", "SIZES",
    "Scene", "caption", "combos", "draw", "is_held_out", "random_scene", "tags_of", "with_implied", "write_concept",
    "write_known",
]  # fmt: skip
