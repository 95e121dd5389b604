"""Captions on their way into the UNet: encoded at every step while the text encoder learns, once otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from lib_trainer.ports import Conditioning, LoadedModel, PictureSize

TOKENS_PER_CHUNK = 75


class CaptionSource(Protocol):
    """Conditioning for a batch of (caption, size)."""

    def __call__(self, captions: Sequence[str], sizes: Sequence[PictureSize]) -> Conditioning: ...


class LiveCaptions:
    """Encodes at every call, with gradients."""

    def __init__(self, model: LoadedModel, clip_skip: int, max_tokens: int) -> None:
        self._model, self._clip_skip, self._chunks = model, clip_skip, max_tokens // TOKENS_PER_CHUNK

    def __call__(self, captions: Sequence[str], sizes: Sequence[PictureSize]) -> Conditioning:
        return self._model.encode_text(captions, self._clip_skip, self._chunks, sizes)


class CachedCaptions:
    """Every distinct (caption, size) is encoded once and kept on the CPU; a batch is padded as live ones are."""

    def __init__(self, encode: CaptionSource) -> None:
        self._encode = encode
        self._known: dict[tuple[str, PictureSize], Conditioning] = {}
        self._empty: dict[PictureSize, torch.Tensor] = {}

    def fill(
        self,
        pairs: Sequence[tuple[str, PictureSize]],
        progress: Callable[[int, int], None],
        stopping: Callable[[], bool],
    ) -> None:
        """Encode what a run will ask for. `progress` gets (done, total)."""
        distinct = sorted(set(pairs), key=lambda pair: (pair[0], pair[1].original, pair[1].crop, pair[1].target))
        for done, (caption, size) in enumerate(distinct):
            if stopping():
                return
            progress(done, len(distinct))
            self._known[caption, size] = self._on_cpu(caption, size)
            if size not in self._empty:
                self._empty[size] = self._on_cpu("", size).context
        progress(len(distinct), len(distinct))

    def __call__(self, captions: Sequence[str], sizes: Sequence[PictureSize]) -> Conditioning:
        found = [self._known[pair] for pair in zip(captions, sizes, strict=True)]
        length = max(one.context.shape[1] for one in found)
        contexts = []
        for one, size in zip(found, sizes, strict=True):
            missing = (length - one.context.shape[1]) // self._empty[size].shape[1]
            contexts.append(torch.cat([one.context] + [self._empty[size]] * missing, dim=1))
        vectors = [one.vector for one in found if one.vector is not None]
        return Conditioning(torch.cat(contexts), torch.cat(vectors) if vectors else None)

    def _on_cpu(self, caption: str, size: PictureSize) -> Conditioning:
        with torch.no_grad():
            return self._encode([caption], [size]).to(torch.device("cpu"))
