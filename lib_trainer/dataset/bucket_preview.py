"""What training will make of a set's pictures: the size of each, and what is cut away, without decoding any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lib_trainer.dataset.batches import Sizer
from lib_trainer.dataset.buckets import Size, kept_share
from lib_trainer.dataset.pictures import placement


@dataclass(frozen=True)
class Kept:
    """The part of a picture that is trained, as shares of its width and height, and how much of its pixels that is.

    `scale`: what its sides are multiplied by; above 1 it is enlarged.
    """

    key: str
    left: float
    top: float
    width: float
    height: float
    share: float
    scale: float


@dataclass(frozen=True)
class PreviewedBucket:
    """A size in pixels and its pictures, those that lose most first."""

    size: Size
    pictures: tuple[Kept, ...]

    @property
    def cut(self) -> float:
        """The mean share of the pixels that is cut away."""
        return 1 - sum(one.share for one in self.pictures) / len(self.pictures)

    @property
    def enlarged(self) -> int:
        """How many pictures have fewer pixels across or down than they are trained at."""
        return sum(one.scale > 1 + 1e-6 for one in self.pictures)


def preview_buckets(sizes: Mapping[str, Size], sizer: Sizer) -> tuple[PreviewedBucket, ...]:
    """`sizes`: (width, height) of the pictures, upright, by key. The narrowest bucket comes first; of a set that is
    trained at several resolutions each picture is in several."""
    found: dict[Size, list[Kept]] = {}
    for key, size in sizes.items():
        for target in sizer.sizes_for(size):
            found.setdefault(target, []).append(_kept(key, size, target))
    order = sorted(found, key=lambda one: (one[0] / one[1], one))
    return tuple(PreviewedBucket(one, tuple(sorted(found[one], key=lambda kept: kept.share))) for one in order)


def _kept(key: str, size: Size, target: Size) -> Kept:
    scale, placed = placement(size, *target)
    across, down = size[0] * scale, size[1] * scale
    top, left = placed.crop
    return Kept(
        key,
        left / across,
        top / down,
        min(1.0, target[0] / across),
        min(1.0, target[1] / down),
        kept_share(size, target),
        scale,
    )
