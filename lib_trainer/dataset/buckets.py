"""Aspect buckets: the sizes that pictures of different shapes are trained at, each cropped as little as can be."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

Size = tuple[int, int]
"""(width, height) in pixels."""


def bucket_sizes(resolution: Size, step: int, low: int, high: int) -> tuple[Size, ...]:
    """The buckets of a resolution (width, height), sorted: sides that are multiples of `step` from `low` to `high`,
    with at most the resolution's pixels; for each side the longest other one. The resolution and the largest square
    are among them. These are sd-scripts' buckets, and those are NovelAI's (2022, "Aspect Ratio Bucketing")."""
    area = resolution[0] * resolution[1]
    square = math.isqrt(area) // step * step
    found = {resolution}
    if low <= square <= high:
        found.add((square, square))
    for side in range(-(-low // step) * step, high + 1, step):
        other = min(high, area // side) // step * step
        if other >= low:
            found |= {(side, other), (other, side)}
    return tuple(sorted(found))


def kept_share(original: Size, target: Size) -> float:
    """How much of a picture is left of it, from 0 to 1, when it has been scaled to cover a target and cropped."""
    across, down = original[0] * target[1], original[1] * target[0]
    return min(across, down) / max(across, down)


@dataclass(frozen=True)
class Buckets:
    """Gives each picture, for each resolution (width, height), the bucket that it is cropped least for.

    `enlarge`: pictures that are smaller than their bucket are enlarged to it; else their size is their own, shrunk to
    the resolution's pixels where it has more, and cut down to whole steps (at least one).
    """

    resolutions: tuple[Size, ...]
    step: int
    low: int
    high: int
    enlarge: bool = True

    def sizes_for(self, original: Size) -> tuple[Size, ...]:
        """One for each resolution."""
        return tuple(self._size(original, place) for place in range(len(self.resolutions)))

    def _size(self, original: Size, place: int) -> Size:
        best = max(self._sets[place], key=lambda size: (kept_share(original, size), size[0] * size[1], size))
        if self.enlarge or (best[0] <= original[0] and best[1] <= original[1]):
            return best
        width, height = original
        pixels = self.resolutions[place][0] * self.resolutions[place][1]
        scale = min(1.0, math.sqrt(pixels / (width * height)), self.high / width, self.high / height)
        across, down = (max(1, int(side * scale + 1e-6) // self.step) * self.step for side in original)
        return across, down

    @functools.cached_property
    def _sets(self) -> tuple[tuple[Size, ...], ...]:
        return tuple(bucket_sizes(one, self.step, self.low, self.high) for one in self.resolutions)
