"""Pictures encoded once: each is read ahead in threads, and what a store lacks of it goes through the VAE."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from lib_trainer.dataset.batches import Sizer
from lib_trainer.dataset.encoded import Encoded
from lib_trainer.dataset.folder import Skipped
from lib_trainer.dataset.holes import Holes
from lib_trainer.dataset.latent_store import CELL, MOMENT_CHANNELS, LatentStore
from lib_trainer.dataset.scan import Sample, listed
from lib_trainer.dataset.variants import Variant, Variants, Wanted, read_variants
from lib_trainer.dataset.variations import ALONE, Variations
from lib_trainer.refusals import DatasetError, ModelError

_WORKERS = min(4, os.cpu_count() or 1)
_AHEAD = _WORKERS + 2  # pictures that are decoded or waiting at a time: this, and not the set, bounds the memory


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
    kept: list[tuple[Sample, list[Variant]]] = []
    blank: dict[Path, None] = {}
    skipped: list[Skipped] = []
    stopped = False
    progress(0, len(samples))
    ended = threading.Event()
    wanted = Wanted(sizer, variations, fingerprint, store, ended.is_set, holes)
    ahead = _read_ahead(samples, lambda sample: read_variants(sample, wanted))
    try:
        for done, sample in enumerate(samples, start=1):
            if stopping():
                stopped = True
                break
            found = next(ahead)
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
        ahead.close()
    if not kept and not stopped:
        raise DatasetError("pictures.none_readable", count=len(samples), pictures=listed(skipped))
    encoded = _encoded(kept, store)
    return replace(encoded, skipped=tuple(skipped), stopped=stopped, blank=tuple(blank))


def _encoded(kept: Sequence[tuple[Sample, list[Variant]]], store: LatentStore) -> Encoded:
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


def _read_ahead(
    samples: Sequence[Sample], read: Callable[[Sample], Variants | Skipped]
) -> Generator[Variants | Skipped, None, None]:
    """Samples as they are read, in order, with at most `_AHEAD` of them in the works."""
    waiting: deque[Future[Variants | Skipped]] = deque()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="trainer-pictures") as pool:
        try:
            for sample in samples:
                waiting.append(pool.submit(read, sample))
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
    expected = (1, MOMENT_CHANNELS, pixels.shape[2] // CELL, pixels.shape[3] // CELL)
    if tuple(moments.shape) != expected:
        raise ModelError("vae.gives", found=str(tuple(moments.shape)), expected=str(expected))
    if not bool(moments.isfinite().all()):
        raise ModelError("vae.not_numbers", path=path)
    return moments[0].clone(memory_format=torch.contiguous_format)
