"""Variations of a picture: mirrored, cropped elsewhere, in other colours. A set of them is kept encoded."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from PIL import Image, ImageEnhance, ImageOps

CENTRE = (0.5, 0.5)
HUE = 0.1
"""Share of the circle of hues by which a colour is turned at most, at full strength."""


@dataclass(frozen=True)
class Variation:
    """How a picture is changed on its way to its size.

    `at`: where the crop lies, as shares of the room that it has to the right and down. `brightness`, `contrast` and
    `saturation` are factors; `hue` is a share of the circle that colours are turned by. `mirrored` is the picture as it
    is cropped, left and right exchanged.
    """

    at: tuple[float, float] = CENTRE
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grey: bool = False
    mirrored: bool = False

    @property
    def told(self) -> str:
        """What tells it from others in a cache's key; empty for the picture as it is."""
        if self == PLAIN:
            return ""
        colours = (self.brightness, self.contrast, self.saturation, self.hue)
        numbers = " ".join(f"{one:.6f}" for one in (*self.at, *colours))
        return f" {numbers}{' grey' * self.grey}{' mirrored' * self.mirrored}"

    def coloured(self, image: Image.Image) -> Image.Image:
        """The RGB picture in the variation's colours."""
        for enhance, factor in (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        ):
            if factor != 1.0:
                image = enhance(image).enhance(factor)
        if turn := round(self.hue * 256) % 256:
            hue, saturation, value = image.convert("HSV").split()
            turned = hue.point([(level + turn) % 256 for level in range(256)])
            image = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
        return ImageOps.grayscale(image).convert("RGB") if self.grey else image


PLAIN = Variation()


@dataclass(frozen=True)
class Variations:
    """Which variations of each picture there are.

    `count` of them have a crop of their own (`crop`), colours of their own (`colour`: how far factors leave 1, from 0
    to 1), and are grey by chance (`grey`, from 0 to 1); with `mirror` each of them is there mirrored too. They hang on
    the picture's content and their number alone, so that other runs find them again.
    """

    mirror: bool = False
    crop: bool = False
    colour: float = 0.0
    grey: float = 0.0
    count: int = 1

    def __len__(self) -> int:
        return (self.count if self.vary else 1) * (2 if self.mirror else 1)

    @property
    def vary(self) -> bool:
        return self.crop or self.colour > 0 or self.grey > 0

    def of(self, digest: str) -> tuple[Variation, ...]:
        """Those of the picture whose file has this digest."""
        upright = [self._drawn(f"{digest} {number}") for number in range(self.count)] if self.vary else [PLAIN]
        return tuple(upright + ([replace(one, mirrored=True) for one in upright] if self.mirror else []))

    def _drawn(self, seed: str) -> Variation:
        source = random.Random(seed)  # every number is drawn, so that one option does not move what another draws
        at = (source.random(), source.random())
        brightness, contrast, saturation = (1.0 + self.colour * (2 * source.random() - 1) for _ in range(3))
        hue, chance = self.colour * HUE * (2 * source.random() - 1), source.random()
        return Variation(at if self.crop else CENTRE, brightness, contrast, saturation, hue, chance < self.grey)


ALONE = Variations()
"""The picture as it is."""
