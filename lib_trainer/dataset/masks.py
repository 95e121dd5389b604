"""Masks: which part of a picture is to be learned, cut and turned with it, as shares of a latent's cells."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lib_trainer.dataset.folder import Listing, list_folder, named
from lib_trainer.dataset.pictures import crop_box, load_alpha, load_brightness, read_size
from lib_trainer.dataset.variations import Variation
from lib_trainer.refusals import ConfigError, DatasetError, Sentence

Source = Literal["none", "file", "alpha"]
CHANNELS = 1
SHAPES_DIFFER = 0.02
"""Share by which width to height of a mask may be off: sides are rounded when a picture is made smaller."""
_RECIPE = b"mask, shares of area: 1"  # part of every key: count up when a mask comes out otherwise


@dataclass(frozen=True)
class Mask:
    """Where a mask is: in the brightness of a file (white is to be learned), or in its opacity."""

    path: Path
    alpha: bool = False

    def read(self, data: bytes | None = None) -> torch.Tensor:
        """(H, W) fp32 from 0 to 1, upright. `data`: the file's bytes. Raises `PictureError`."""
        image = (load_alpha if self.alpha else load_brightness)(self.path, data)
        return torch.from_numpy(np.array(image, dtype=np.uint8)).float() / 255


@dataclass(frozen=True)
class Masks:
    """Where the masks of a set are: in pictures' opacity, or in files: beside them (see `folder.MASKS`), or of the same
    names in a folder of their own, where there may be subfolders as in the set."""

    source: Source = "none"
    folder: Path | None = None

    def check(self) -> None:
        """Raise `ConfigError` for a folder that is none."""
        if self.source == "file" and self.folder is not None and not self.folder.is_dir():
            raise ConfigError("masks.no_folder", field="masks.folder", folder=self.folder)


@dataclass
class MaskFinder:
    """Finds the mask of each picture of a set, and remembers which masks were of none."""

    masks: Masks
    _listings: dict[Path, Listing] = field(default_factory=dict)
    _used: set[Path] = field(default_factory=set)

    def find(self, listing: Listing, picture: str, size: tuple[int, int], transparent: bool) -> Mask | None:
        """Of a picture of `size` (width, height). Raises `DatasetError` for a mask of another shape."""
        if self.masks.source == "alpha":
            return Mask(listing.folder / picture, alpha=True) if transparent else None
        found = next(self._files(listing, picture), None) if self.masks.source == "file" else None
        if found is None:
            return None
        self._used.add(found)
        own = read_size(found)
        if abs(own[0] * size[1] / (own[1] * size[0]) - 1) > SHAPES_DIFFER:
            raise DatasetError(
                "masks.other_shape",
                mask=found,
                width=own[0],
                height=own[1],
                picture=listing.folder / picture,
                across=size[0],
                down=size[1],
            )
        return Mask(found)

    def lone(self) -> list[Path]:
        """What lies in the folder of masks and is of no picture."""
        found = []
        for listing in self._listings.values():
            names = (*listing.pictures, *listing.marked.values())
            found += [path for name in names if (path := listing.folder / name) not in self._used]
        return found

    def _files(self, listing: Listing, picture: str) -> Iterator[Path]:
        folders = [] if self.masks.folder is None else [self.masks.folder / listing.folder.name, self.masks.folder]
        for folder in folders:
            if not folder.is_dir() or os.path.samefile(folder, listing.folder):  # a picture is not its own mask
                continue
            if folder not in self._listings:
                self._listings[folder] = list_folder(folder)
            there = self._listings[folder]
            name = there.mask(picture) or there.partner(picture)
            if name is not None:
                yield folder / name
        beside = listing.mask(picture)
        if beside is not None:
            yield listing.folder / beside


def fitted_mask(
    values: torch.Tensor, original: tuple[int, int], target: tuple[int, int], cells: tuple[int, int], at: Variation
) -> torch.Tensor:
    """(1, h, w) fp32 from 0 to 1: how much of the area of each of the `cells` (w, h) of a picture is masked.

    values    the whole mask (H, W), of any size
    original  of its picture, `target` what that is scaled and cropped to; (width, height) in pixels
    at        where the picture is cropped, and whether it is mirrored
    """
    left, top, right, bottom = crop_box(original, *target, at)
    across, down = values.shape[1] / original[0], values.shape[0] / original[1]
    rows = _shares(values.shape[0], top * down, bottom * down, cells[1])
    columns = _shares(values.shape[1], left * across, right * across, cells[0])
    found = (rows @ values.double() @ columns.T).clamp(0, 1).float()
    return (found.flip(1) if at.mirrored else found)[None]


def _shares(length: int, start: float, end: float, cells: int) -> torch.Tensor:
    """(cells, length) float64: how much of each cell of the stretch from `start` to `end` each pixel covers."""
    edges = torch.linspace(start, end, cells + 1, dtype=torch.float64)[:, None]
    pixels = torch.arange(length, dtype=torch.float64)[None]
    overlap = torch.minimum(edges[1:], pixels + 1) - torch.maximum(edges[:-1], pixels)
    overlap = overlap.clamp(min=0)
    return overlap / overlap.sum(1, keepdim=True)


def mask_key(digest: str, mask: Mask, target: tuple[int, int], at: Variation) -> str:
    """The name of a mask in a store of latents: by its file's content, and how its picture is cut and turned."""
    text = f"{digest} {mask.alpha} {target[0]}x{target[1]} {at.at[0]:.6f} {at.at[1]:.6f} {at.mirrored}"
    return hashlib.sha256(_RECIPE + text.encode()).hexdigest()


def told_of_masks(masks: Masks, pictures: int, without: Sequence[str], lone: Sequence[str]) -> list[Sentence]:
    """Sentences on which pictures have a mask and which masks have a picture; names are as they are to be told."""
    if masks.source == "none":
        return []
    said = [Sentence("masks.found", count=pictures - len(without), all=pictures)]
    if without:
        said.append(Sentence("masks.without", count=len(without), names=named(without)))
    if lone:
        said.append(Sentence("masks.lone", count=len(lone), names=named(lone)))
    return said
