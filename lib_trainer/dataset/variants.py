"""Variants of a picture for the VAE: read, fitted to its sizes and varied, with its mask and its holes, where a store
lacks them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from lib_trainer.dataset import masks
from lib_trainer.dataset.batches import Sizer
from lib_trainer.dataset.folder import Skipped
from lib_trainer.dataset.holes import Holes, at_latents, hole_key, random_hole
from lib_trainer.dataset.latent_store import CELL, MOMENT_CHANNELS, LatentStore
from lib_trainer.dataset.pictures import PictureError, fit, load_picture, placement, read_size, to_pixels
from lib_trainer.dataset.scan import Sample
from lib_trainer.dataset.variations import PLAIN, Variation, Variations
from lib_trainer.ports import PictureSize
from lib_trainer.refusals import Sentence

_RECIPE = b"lanczos, centre, white, srgb: 1"  # part of every key: count up when a picture's pixels come out otherwise


@dataclass
class VariantHole:
    """A hole's key and that of the rest's moments; `fitted` and `hidden` (1, H, W) are there where these lack."""

    key: str
    rest: str
    fitted: Image.Image | None = None
    hidden: torch.Tensor | None = None

    @property
    def result(self) -> str:
        return self.rest

    def pixels(self) -> torch.Tensor:
        """(3, H, W): 0, a middle grey, in the hole."""
        assert self.fitted is not None and self.hidden is not None
        return to_pixels(self.fitted) * (self.hidden < 0.5)


@dataclass
class Variant:
    """One of a picture's variations at one of its sizes.

    `fitted` is None where the store has the moments already. What waits is a picture, whose numbers are bytes: of
    one with many variations they are all there at once. `mask` is the key of its mask; `blank`: nothing of it is to be
    learned.
    """

    key: str
    size: PictureSize
    target: tuple[int, int]
    fitted: Image.Image | None
    mask: str | None = None
    blank: bool = False
    hole: VariantHole | None = None

    @property
    def result(self) -> str:
        """The key that its moments are kept under."""
        return self.key

    def pixels(self) -> torch.Tensor:
        """(3, H, W)."""
        assert self.fitted is not None
        return to_pixels(self.fitted)


Variants = list[list[Variant]]
"""For each size that a picture is trained at, its variations."""


@dataclass(frozen=True)
class Wanted:
    """What is made of every file; `ended`: nobody waits for it any more."""

    sizer: Sizer
    variations: Variations
    fingerprint: str
    store: LatentStore
    ended: Callable[[], bool]
    holes: Holes | None = None


def read_variants(sample: Sample, wanted: Wanted) -> Variants | Skipped:
    """What is wanted of a picture, or why it is left out.

    The file is read once, so that the key and the pixels are of the same content.
    """
    try:
        try:
            data = sample.path.read_bytes()
        except OSError as error:
            raise PictureError(sample.path, Sentence("system.says", reason=error)) from error
        original = read_size(sample.path, data)  # not the sample's: the file may have changed since the scan
        reader, found = _Reader(sample, data, original, wanted.fingerprint, wanted.store), []
        for target in wanted.sizer.sizes_for(original):
            own: list[Variant] = []
            found.append(own)
            for variation in wanted.variations.of(reader.digest):
                if wanted.ended():
                    return []
                plain = reader.variant(target, variation)
                own += [plain] if wanted.holes is None else reader.with_holes(plain, variation, wanted.holes)
        return found
    except PictureError as error:
        return Skipped(sample.path, error.reason)


class _Reader:
    """A picture's file on its way into the store: decoded where something of it lacks there, and once."""

    def __init__(
        self, sample: Sample, data: bytes, original: tuple[int, int], fingerprint: str, store: LatentStore
    ) -> None:
        self._path, self._data, self._original = sample.path, data, original
        self._fingerprint, self._store = fingerprint, store
        self.digest = hashlib.sha256(data).hexdigest()
        self._mask = None if sample.mask is None else _PictureMask(sample.mask, sample.path, data, original, store)
        self._picture: Image.Image | None = None

    def variant(self, target: tuple[int, int], variation: Variation) -> Variant:
        """At a target (width, height) in pixels."""
        key = latent_key(self.digest, target, self._fingerprint, variation)
        mask, blank = (None, False) if self._mask is None else self._mask.kept(target, variation)
        if self._knows(key, target):
            size = placement(self._original, *target, variation)[1]
            return Variant(key, size, target, None, mask, blank)
        fitted, size = self._fitted(target, variation)
        return Variant(key, size, target, fitted, mask, blank)

    def with_holes(self, plain: Variant, variation: Variation, holes: Holes) -> list[Variant]:
        """The same with each of its holes; the picture itself is encoded once for all of them."""
        if holes.masks and self._mask is not None:
            named = [(f"mask {plain.mask}", lambda: self._mask_hole(plain.target, variation))]
        else:
            names = [f"{self.digest}{variation.told} {number}" for number in range(holes.count)]
            named = [(name, functools.partial(random_hole, name, *plain.target)) for name in names]
        made = [self._hole(name, make, plain, variation) for name, make in named]
        first = [replace(plain, hole=made[0])]
        return first + [replace(plain, fitted=None, hole=one) for one in made[1:]]

    def _hole(self, name: str, make: Callable[[], torch.Tensor], plain: Variant, variation: Variation) -> VariantHole:
        width, height = plain.target
        key, rest = hole_key(f"{width}x{height}", name), hole_key(plain.key, name)
        cells = (masks.CHANNELS, height // CELL, width // CELL)
        kept = self._store.get(key, masks.CHANNELS)
        if kept is not None and kept.shape == cells and self._knows(rest, plain.target):
            return VariantHole(key, rest)
        hidden = make()
        self._store.put(key, at_latents(hidden, CELL))
        fitted = plain.fitted or self._fitted(plain.target, variation)[0]
        return VariantHole(key, rest, fitted, hidden)

    def _mask_hole(self, target: tuple[int, int], variation: Variation) -> torch.Tensor:
        assert self._mask is not None
        return (self._mask.fitted(target, target, variation) > 0.5).float()

    def _fitted(self, target: tuple[int, int], variation: Variation) -> tuple[Image.Image, PictureSize]:
        self._picture = self._picture or load_picture(self._path, self._data)
        return fit(self._picture, *target, variation)

    def _knows(self, key: str, target: tuple[int, int]) -> bool:
        known = self._store.get(key)
        return known is not None and known.shape == (MOMENT_CHANNELS, target[1] // CELL, target[0] // CELL)


class _PictureMask:
    """A picture's mask on its way into the store, read when it is not there yet."""

    def __init__(
        self, mask: masks.Mask, picture: Path, data: bytes, original: tuple[int, int], store: LatentStore
    ) -> None:
        self._mask, self._original, self._store = mask, original, store
        try:
            self._data = data if mask.path == picture else mask.path.read_bytes()
        except OSError as error:
            raise PictureError(mask.path, Sentence("system.says", reason=error)) from error
        self._digest = hashlib.sha256(self._data).hexdigest()
        self._values: torch.Tensor | None = None

    def kept(self, target: tuple[int, int], variation: Variation) -> tuple[str, bool]:
        """The key that it is kept under for a target (width, height) in pixels, and whether nothing of it is left."""
        key = masks.mask_key(self._digest, self._mask, target, variation)
        cells = target[0] // CELL, target[1] // CELL
        found = self._store.get(key, masks.CHANNELS)
        if found is None or found.shape != (masks.CHANNELS, cells[1], cells[0]):
            found = self.fitted(target, cells, variation)
            self._store.put(key, found)
        return key, not bool(found.any())

    def fitted(self, target: tuple[int, int], cells: tuple[int, int], variation: Variation) -> torch.Tensor:
        """(1, h, w) for `cells` (w, h)."""
        if self._values is None:
            self._values = self._mask.read(self._data)
        return masks.fitted_mask(self._values, self._original, target, cells, variation)


def latent_key(digest: str, target: tuple[int, int], fingerprint: str, variation: Variation = PLAIN) -> str:
    """Hexadecimal name for what the VAE of `fingerprint` makes of a picture at `target` (width, height).

    `digest` is the SHA-256 of its file's content, hexadecimal. The file's name and date play no part: a moved picture
    is found again, an edited one is not.
    """
    text = f"{digest} {target[0]}x{target[1]} {fingerprint}{variation.told}"
    return hashlib.sha256(_RECIPE + text.encode()).hexdigest()
