"""Captions on their way into the UNet: encoded at every step while the text encoder learns, once otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from lib_trainer.families.family import Family
from lib_trainer.ports import Conditioning, LoadedModel, PictureSize

TOKENS_PER_CHUNK = 75


class CaptionSource(Protocol):
    """Conditioning for a batch of (caption, size)."""

    def __call__(self, captions: Sequence[str], sizes: Sequence[PictureSize]) -> Conditioning: ...


class LiveCaptions:
    """Encodes at every call, with gradients."""

    def __init__(self, model: LoadedModel, clip_skip: int, max_tokens: int) -> None:
        self._model, self._clip_skip, self._chunks = model, clip_skip, max_tokens // TOKENS_PER_CHUNK

    @property
    def family(self) -> Family:
        return self._model.family

    def texts(self, captions: Sequence[str]) -> Conditioning:
        """What the text encoders say, also of an empty caption."""
        return self._model.encode_text(captions, self._clip_skip, self._chunks)

    def __call__(self, captions: Sequence[str], sizes: Sequence[PictureSize]) -> Conditioning:
        return completed(self.texts(captions), captions, sizes, self.family)


class CachedCaptions:
    """Every distinct caption is encoded once and kept on the CPU; a batch is padded as live ones are."""

    def __init__(self, live: LiveCaptions) -> None:
        self._live = live
        self._known: dict[str, Conditioning] = {}

    def fill(self, captions: Sequence[str], progress: Callable[[int, int], None], stopping: Callable[[], bool]) -> None:
        """Encode what a run will ask for. `progress` gets (done, total)."""
        distinct = sorted(set(captions))
        if distinct and "" not in distinct:
            self._known[""] = self._on_cpu("")
        for done, caption in enumerate(distinct):
            if stopping():
                return
            progress(done, len(distinct))
            self._known[caption] = self._on_cpu(caption)
        progress(len(distinct), len(distinct))

    def __call__(self, captions: Sequence[str], sizes: Sequence[PictureSize]) -> Conditioning:
        found, empty = [self._known[caption] for caption in captions], self._known[""].context
        length = max(one.context.shape[1] for one in found)
        contexts = []
        for one in found:
            missing = (length - one.context.shape[1]) // empty.shape[1]
            contexts.append(torch.cat([one.context] + [empty] * missing, dim=1))
        pooled = [one.pooled for one in found if one.pooled is not None]
        told = Conditioning(torch.cat(contexts), torch.cat(pooled) if pooled else None)
        return completed(told, captions, sizes, self._live.family)

    def _on_cpu(self, caption: str) -> Conditioning:
        with torch.no_grad():
            return self._live.texts([caption]).to(torch.device("cpu"))


def completed(
    told: Conditioning, captions: Sequence[str], sizes: Sequence[PictureSize], family: Family
) -> Conditioning:
    """What a family's UNet is told beside the texts; an empty caption is zeros where the family was trained so."""
    if family.zero_empty:
        told = told.emptied([not caption.strip() for caption in captions])
    return told.sized(sizes) if family.sizes else told
