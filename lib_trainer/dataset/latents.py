"""Pictures encoded once: what the VAE makes of each, kept in memory or on disk, and latents drawn from it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from lib_trainer.dataset import masks
from lib_trainer.dataset.batches import Sizer
from lib_trainer.dataset.folder import Skipped
from lib_trainer.dataset.holes import Holes, at_latents, hole_key, random_hole
from lib_trainer.dataset.pictures import PictureError, fit, load_picture, placement, read_size, to_pixels
from lib_trainer.dataset.scan import Sample, listed
from lib_trainer.dataset.variations import ALONE, PLAIN, Variation, Variations
from lib_trainer.files import write_atomically
from lib_trainer.ports import PictureSize
from lib_trainer.refusals import DatasetError, ModelError, Sentence

MOMENT_CHANNELS = 8
_FACTOR = 8  # pixels to a latent, along each side
_RECIPE = b"lanczos, centre, white, srgb: 1"  # part of every key: count up when a picture's pixels come out otherwise
_WORKERS = min(4, os.cpu_count() or 1)
_AHEAD = _WORKERS + 2  # pictures that are decoded or waiting at a time: this, and not the set, bounds the memory


class LatentStore(Protocol):
    """Keeps moments (8, h, w) and masks (1, h, w), fp32, by key. Both methods may be called from several threads."""

    def get(self, key: str, channels: int = MOMENT_CHANNELS) -> torch.Tensor | None:
        """What was put there, or None if it is missing or damaged."""

    def put(self, key: str, moments: torch.Tensor) -> None:
        """Keep it. Raises `DatasetError` where it cannot be kept."""


class MemoryStore:
    """Gone with the run."""

    def __init__(self) -> None:
        self._moments: dict[str, torch.Tensor] = {}

    def get(self, key: str, channels: int = MOMENT_CHANNELS) -> torch.Tensor | None:
        return self._moments.get(key)

    def put(self, key: str, moments: torch.Tensor) -> None:
        self._moments[key] = moments


class DiskStore:
    """One safetensors file for each picture and size in `folder`; nothing is ever removed from it here.

    With `since`, a time of the folder's, a file that is read gets a new date where its own is older (`latent_cache`).
    Each step reads its pictures anew (0.3 ms for one of 512²), and nothing of them stays in this process: after the
    first reading the system has the files in its cache, which it gives up when memory is wanted for something else.
    """

    def __init__(self, folder: Path, since: float = 0.0) -> None:
        self.folder, self._since = folder, since

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def get(self, key: str, channels: int = MOMENT_CHANNELS) -> torch.Tensor | None:
        """None also for a file that is broken or holds something else: it is then made anew."""
        import safetensors.torch

        try:
            path = self.path(key)
            if self._since and path.stat().st_mtime < self._since:
                with contextlib.suppress(PermissionError):  # somebody else's, who lets others read
                    os.utime(path)
            moments = safetensors.torch.load(path.read_bytes()).get("moments")
        except Exception:  # not there, cut short, not safetensors: whatever it is, the picture can be encoded again
            return None
        if moments is None or moments.dtype != torch.float32 or moments.ndim != 3:
            return None
        # a sum is a number only where all of them are, and takes half as long as to ask each
        return moments if moments.shape[0] == channels and math.isfinite(float(moments.sum())) else None

    def put(self, key: str, moments: torch.Tensor) -> None:
        import safetensors.torch

        try:
            write_atomically(self.path(key), safetensors.torch.save({"moments": moments.contiguous()}))
        except OSError as error:
            raise DatasetError("latents.no_folder", folder=self.folder, reason=error) from error


@dataclass(frozen=True)
class Encoded:
    """The pictures that could be encoded, in the order of the samples given; all tuples have one entry for each, or
    several in a row for a picture that is trained at several sizes.

    `sizes` and `keys` have one for each variation of the picture and, of a model that inpaints, each of its holes.
    `targets`: (width, height) in pixels. `skipped`: pictures that turned out broken while they were decoded. `stopped`:
    the caller asked to stop, and the rest is missing. `masks` are keys of masks, None for pictures that have none;
    `blank` are masks without anything to learn. `holes`, of a model that inpaints, are keys of a hole and of what is
    left of the picture beside it.
    """

    samples: tuple[Sample, ...]
    sizes: tuple[tuple[PictureSize, ...], ...]
    targets: tuple[tuple[int, int], ...]
    keys: tuple[tuple[str, ...], ...]
    store: LatentStore
    skipped: tuple[Skipped, ...] = ()
    stopped: bool = False
    masks: tuple[tuple[str | None, ...], ...] = ()
    blank: tuple[Path, ...] = ()
    holes: tuple[tuple[tuple[str, str], ...], ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def only(self, indices: Sequence[int]) -> Encoded:
        """Some of them, in this order."""
        return replace(
            self,
            samples=tuple(self.samples[index] for index in indices),
            sizes=tuple(self.sizes[index] for index in indices),
            targets=tuple(self.targets[index] for index in indices),
            keys=tuple(self.keys[index] for index in indices),
            masks=tuple(self.masks[index] for index in indices) if self.masks else (),
            holes=tuple(self.holes[index] for index in indices) if self.holes else (),
        )

    def moments(self, index: int, variation: int = 0) -> torch.Tensor:
        """(8, H/8, W/8) fp32 on the CPU: mean and logarithmic variance. Raises `DatasetError` if the store lost it."""
        return self._there(index, self.keys[index][variation], MOMENT_CHANNELS)

    def mask(self, index: int, variation: int = 0) -> torch.Tensor | None:
        """(1, H/8, W/8) fp32 on the CPU, from 0 to 1; None where all of the picture is to be learned."""
        key = self.masks[index][variation] if self.masks else None
        return None if key is None else self._there(index, key, masks.CHANNELS)

    def hole(self, index: int, variation: int = 0) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(1, H/8, W/8), 1 where the picture is hidden, and the moments (8, H/8, W/8) of the rest of it, as `moments`;
        None where the model does not inpaint."""
        if not self.holes:
            return None
        hole, rest = self.holes[index][variation]
        return self._there(index, hole, masks.CHANNELS), self._there(index, rest, MOMENT_CHANNELS)

    def _there(self, index: int, key: str, channels: int) -> torch.Tensor:
        found = self.store.get(key, channels)
        if found is None:
            raise DatasetError("latents.lost", path=self.samples[index].path)
        return found


def latent_key(path: Path, target: tuple[int, int], vae_fingerprint: str) -> str:
    """Hexadecimal name for what `vae_fingerprint` makes of the file's present content at `target` (width, height).

    The file's name and date play no part: a moved picture is found again, an edited one is not. Raises `OSError`.
    """
    return _key(hashlib.sha256(path.read_bytes()).hexdigest(), target, vae_fingerprint)


def encode_pictures(
    samples: Sequence[Sample],
    sizer: Sizer,
    encode: Callable[[torch.Tensor], torch.Tensor],
    fingerprint: str,
    store: LatentStore,
    progress: Callable[[int, int], None],
    stopping: Callable[[], bool],
    variations: Variations = ALONE,
    holes: Holes | None = None,
) -> Encoded:
    """Bring the moments of every sample's variations into `store`, encoding those that it lacks; with `holes` those of
    pictures with a hole too.

    `encode`: pixels (1, 3, H, W) fp32 in [-1, 1] → moments (1, 8, H/8, W/8); called in this thread, while a few others
    read ahead. `fingerprint` names the VAE. `progress(done, total)` is called at 0 and after each sample, `stopping`
    before each and between the encodings of one, which is then left out. Raises `DatasetError` when no picture is left
    or the store is full, `ModelError` when the VAE yields something that is not a number.
    """
    kept: list[tuple[Sample, list[_Prepared]]] = []
    blank: dict[Path, None] = {}
    skipped: list[Skipped] = []
    stopped = False
    progress(0, len(samples))
    ended = threading.Event()
    recipe = _Recipe(sizer, variations, fingerprint, store, ended.is_set, holes)
    prepared = _read_ahead(samples, lambda sample: _prepare(sample, recipe))
    try:
        for done, sample in enumerate(samples, start=1):
            if stopping():
                stopped = True
                break
            found = next(prepared)
            if isinstance(found, Skipped):
                skipped.append(found)
                found = []
            if not _encode(found, sample, encode, store, stopping):
                stopped = True
                break
            kept += [(sample, one) for one in found]
            if sample.mask is not None and any(item.blank for one in found for item in one):
                blank[sample.mask.path] = None
            progress(done, len(samples))
    finally:
        ended.set()
        prepared.close()
    if not kept and not stopped:
        raise DatasetError("pictures.none_readable", count=len(samples), pictures=listed(skipped))
    encoded = _encoded(kept, store)
    return replace(encoded, skipped=tuple(skipped), stopped=stopped, blank=tuple(blank))


def _encoded(kept: Sequence[tuple[Sample, list[_Prepared]]], store: LatentStore) -> Encoded:
    holes = [tuple((item.hole.key, item.hole.rest) for item in one if item.hole is not None) for _, one in kept]
    return Encoded(
        tuple(sample for sample, _ in kept),
        tuple(tuple(item.size for item in one) for _, one in kept),
        tuple(one[0].target for _, one in kept),
        tuple(tuple(item.key for item in one) for _, one in kept),
        store,
        masks=tuple(tuple(item.mask for item in one) for _, one in kept),
        holes=tuple(holes) if any(holes) else (),
    )


def sample_latents(moments: torch.Tensor, scale: float, generator: torch.Generator) -> torch.Tensor:
    """Draw latents (B, 4, h, w) from moments (B, 8, h, w): (mean + exp(½·logvar)·ε)·scale, ε ~ N(0, 1).

    Kingma & Welling 2014, eq. 10; the logarithmic variance is clamped to [-30, 20] as in latent diffusion. ε is drawn
    on the generator's device, so that a CPU generator gives the same latents on every device.
    """
    mean, logvar = moments.chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=moments.dtype)
    return (mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * noise.to(moments.device)) * scale


@dataclass
class _Hole:
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
class _Prepared:
    """`fitted` is None where the store has the moments already. What waits is a picture, whose numbers are bytes: of
    one with many variations they are all there at once. `mask` is the key of its mask; `blank`: nothing of it is to be
    learned."""

    key: str
    size: PictureSize
    target: tuple[int, int]
    fitted: Image.Image | None
    mask: str | None = None
    blank: bool = False
    hole: _Hole | None = None

    @property
    def result(self) -> str:
        """The key that its moments are kept under."""
        return self.key

    def pixels(self) -> torch.Tensor:
        """(3, H, W)."""
        assert self.fitted is not None
        return to_pixels(self.fitted)


Variants = list[list["_Prepared"]]
"""For each size that a picture is trained at, its variations."""


@dataclass(frozen=True)
class _Recipe:
    """What is made of every file; `ended`: nobody waits for it any more."""

    sizer: Sizer
    variations: Variations
    fingerprint: str
    store: LatentStore
    ended: Callable[[], bool]
    holes: Holes | None = None


def _encode(
    found: Variants,
    sample: Sample,
    encode: Callable[[torch.Tensor], torch.Tensor],
    store: LatentStore,
    stopping: Callable[[], bool],
) -> bool:
    """Encode what the store lacks of a picture and of its holes; whether that was not stopped. What was decoded for it
    is let go."""
    begun = False
    for item in (item for one in found for item in one):
        for lacking in (item, item.hole):
            if lacking is None or lacking.fitted is None:
                continue
            if begun and stopping():
                return False
            begun = True
            store.put(lacking.result, _encode_one(lacking.pixels().unsqueeze(0), encode, sample.path))
            lacking.fitted = None
        if item.hole is not None:
            item.hole.hidden = None
    return True


def _prepare(sample: Sample, recipe: _Recipe) -> Variants | Skipped:
    """Read the file once, so that the key and the pixels are of the same content."""
    try:
        try:
            data = sample.path.read_bytes()
        except OSError as error:
            raise PictureError(sample.path, Sentence("system.says", reason=error)) from error
        original = read_size(sample.path, data)  # not the sample's: the file may have changed since the scan
        reader, found = _Reader(sample, data, original, recipe.fingerprint, recipe.store), []
        for target in recipe.sizer.sizes_for(original):
            own: list[_Prepared] = []
            found.append(own)
            for variation in recipe.variations.of(reader.digest):
                if recipe.ended():
                    return []
                plain = reader.prepared(target, variation)
                own += [plain] if recipe.holes is None else reader.with_holes(plain, variation, recipe.holes)
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

    def prepared(self, target: tuple[int, int], variation: Variation) -> _Prepared:
        """At a target (width, height) in pixels."""
        key = _key(self.digest, target, self._fingerprint, variation)
        mask, blank = (None, False) if self._mask is None else self._mask.kept(target, variation)
        if self._knows(key, target):
            size = placement(self._original, *target, variation)[1]
            return _Prepared(key, size, target, None, mask, blank)
        fitted, size = self._fitted(target, variation)
        return _Prepared(key, size, target, fitted, mask, blank)

    def with_holes(self, plain: _Prepared, variation: Variation, holes: Holes) -> list[_Prepared]:
        """The same with each of its holes; the picture itself is encoded once for all of them."""
        if holes.masks and self._mask is not None:
            wanted = [(f"mask {plain.mask}", lambda: self._mask_hole(plain.target, variation))]
        else:
            names = [f"{self.digest}{variation.told} {number}" for number in range(holes.count)]
            wanted = [(name, functools.partial(random_hole, name, *plain.target)) for name in names]
        made = [self._hole(name, make, plain, variation) for name, make in wanted]
        first = [replace(plain, hole=made[0])]
        return first + [replace(plain, fitted=None, hole=one) for one in made[1:]]

    def _hole(self, name: str, make: Callable[[], torch.Tensor], plain: _Prepared, variation: Variation) -> _Hole:
        width, height = plain.target
        key, rest = hole_key(f"{width}x{height}", name), hole_key(plain.key, name)
        cells = (masks.CHANNELS, height // _FACTOR, width // _FACTOR)
        kept = self._store.get(key, masks.CHANNELS)
        if kept is not None and kept.shape == cells and self._knows(rest, plain.target):
            return _Hole(key, rest)
        hidden = make()
        self._store.put(key, at_latents(hidden, _FACTOR))
        fitted = plain.fitted or self._fitted(plain.target, variation)[0]
        return _Hole(key, rest, fitted, hidden)

    def _mask_hole(self, target: tuple[int, int], variation: Variation) -> torch.Tensor:
        assert self._mask is not None
        return (self._mask.fitted(target, target, variation) > 0.5).float()

    def _fitted(self, target: tuple[int, int], variation: Variation) -> tuple[Image.Image, PictureSize]:
        self._picture = self._picture or load_picture(self._path, self._data)
        return fit(self._picture, *target, variation)

    def _knows(self, key: str, target: tuple[int, int]) -> bool:
        known = self._store.get(key)
        return known is not None and known.shape == (MOMENT_CHANNELS, target[1] // _FACTOR, target[0] // _FACTOR)


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
        cells = target[0] // _FACTOR, target[1] // _FACTOR
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


def _read_ahead(
    samples: Sequence[Sample], prepare: Callable[[Sample], Variants | Skipped]
) -> Generator[Variants | Skipped, None, None]:
    """Prepared samples in order, with at most `_AHEAD` of them in the works."""
    waiting: deque[Future[Variants | Skipped]] = deque()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="trainer-pictures") as pool:
        try:
            for sample in samples:
                waiting.append(pool.submit(prepare, sample))
                if len(waiting) >= _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _encode_one(pixels: torch.Tensor, encode: Callable[[torch.Tensor], torch.Tensor], path: Path) -> torch.Tensor:
    with torch.no_grad():
        moments = encode(pixels).detach().to("cpu", torch.float32)
    expected = (1, MOMENT_CHANNELS, pixels.shape[2] // _FACTOR, pixels.shape[3] // _FACTOR)
    if tuple(moments.shape) != expected:
        raise ModelError("vae.gives", found=str(tuple(moments.shape)), expected=str(expected))
    if not bool(moments.isfinite().all()):
        raise ModelError("vae.not_numbers", path=path)
    return moments[0].clone(memory_format=torch.contiguous_format)


def _key(digest: str, target: tuple[int, int], fingerprint: str, variation: Variation = PLAIN) -> str:
    text = f"{digest} {target[0]}x{target[1]} {fingerprint}{variation.told}"
    return hashlib.sha256(_RECIPE + text.encode()).hexdigest()
