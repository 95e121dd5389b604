"""Captions on their way into the UNet: encoded at every step while the text encoder learns, else where they are new."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch

from lib_trainer.families.family import Family
from lib_trainer.ports import Conditioning, LoadedModel, PictureSize, Wording
from lib_trainer.ports.text import is_empty

TOKENS_PER_CHUNK = 75
MOST_BYTES = 64 << 20
"""Of what is kept of captions that vary: some 500 of SD 1.x, some 200 of SDXL in half precision."""


class CaptionSource(Protocol):
    """Conditioning for a batch of (caption, size). `encodes`: the text encoders are needed at each step."""

    @property
    def encodes(self) -> bool: ...

    def __call__(self, captions: Sequence[Wording], sizes: Sequence[PictureSize]) -> Conditioning: ...


class LiveCaptions:
    """Encodes at every call, with gradients."""

    encodes = True

    def __init__(self, model: LoadedModel, clip_skip: int, max_tokens: int, *, weighted: bool = False) -> None:
        self._model, self._clip_skip, self._chunks = model, clip_skip, max_tokens // TOKENS_PER_CHUNK
        self._weighted = weighted

    @property
    def family(self) -> Family:
        return self._model.family

    def key(self, caption: Wording) -> Hashable:
        """What the text encoders are told of a caption: those that are told the same are encoded alike."""
        return self._model.token_key(caption, self._chunks, weighted=self._weighted)

    def texts(self, captions: Sequence[Wording]) -> Conditioning:
        """What the text encoders say, also of an empty caption."""
        if self._weighted:
            return self._model.encode_text(captions, self._clip_skip, self._chunks, weighted=True)
        return self._model.encode_text(captions, self._clip_skip, self._chunks)

    def __call__(self, captions: Sequence[Wording], sizes: Sequence[PictureSize]) -> Conditioning:
        return completed(self.texts(captions), captions, sizes, self.family)


class CachedCaptions:
    """Captions of the same tokens and weights are encoded once, by themselves, and kept on the CPU; a batch is padded
    as live ones are. Shuffled tags, captions that are cut and those that differ in capitals alone share what is kept.

    With `encodes` it is asked for captions that nobody has foretold: it encodes them without gradients when they come,
    and keeps the newest in `most` bytes of the device, as fetching them would have each step wait for the one before.
    What it answers never hangs on what it still knows.
    """

    def __init__(self, live: LiveCaptions, *, encodes: bool = False, most: int = MOST_BYTES) -> None:
        self._live, self.encodes, self._most = live, encodes, most
        self._known: OrderedDict[Hashable, Conditioning] = OrderedDict()
        self._bytes = 0

    def fill(
        self, captions: Sequence[Wording], progress: Callable[[int, int], None], stopping: Callable[[], bool]
    ) -> None:
        """Encode what a run will ask for. `progress` gets (done, total)."""
        ordered = sorted(set(captions), key=lambda one: (one,) if isinstance(one, str) else one)
        distinct: dict[Hashable, Wording] = {}
        for caption in ordered:
            distinct.setdefault(self._live.key(caption), caption)
        if distinct and (nothing := self._live.key("")) not in distinct:
            self._known[nothing] = self._on_cpu("")
        for done, (key, caption) in enumerate(distinct.items()):
            if stopping():
                return
            progress(done, len(distinct))
            self._known[key] = self._on_cpu(caption)
        progress(len(distinct), len(distinct))

    def __call__(self, captions: Sequence[Wording], sizes: Sequence[PictureSize]) -> Conditioning:
        found = [self._found(caption) for caption in captions]
        length = max(one.context.shape[1] for one in found)
        contexts = [one.context for one in found]
        if any(one.shape[1] < length for one in contexts):
            empty = self._found("").context
            lacking = [(length - one.shape[1]) // empty.shape[1] for one in contexts]
            contexts = [torch.cat([one] + [empty] * count, 1) for one, count in zip(contexts, lacking, strict=True)]
        pooled = [one.pooled for one in found if one.pooled is not None]
        told = Conditioning(torch.cat(contexts), torch.cat(pooled) if pooled else None)
        return completed(told, captions, sizes, self._live.family)

    def _found(self, caption: Wording) -> Conditioning:
        key = self._live.key(caption)
        if not self.encodes:
            return self._known[key]
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        told = self._known[key] = self._encoded(caption)
        self._bytes += _bytes_of(told)
        while self._bytes > self._most and len(self._known) > 1:
            self._bytes -= _bytes_of(self._known.popitem(last=False)[1])
        return told

    def _on_cpu(self, caption: Wording) -> Conditioning:
        return self._encoded(caption).to(torch.device("cpu"))

    def _encoded(self, caption: Wording) -> Conditioning:
        with torch.no_grad():
            return self._live.texts([caption])


def _bytes_of(told: Conditioning) -> int:
    return sum(one.numel() * one.element_size() for one in (told.context, told.pooled) if one is not None)


def completed(
    told: Conditioning, captions: Sequence[Wording], sizes: Sequence[PictureSize], family: Family
) -> Conditioning:
    """What a family's UNet is told beside the texts; an empty caption is zeros where the family was trained so."""
    if family.zero_empty:
        told = told.emptied([is_empty(caption) for caption in captions])
    return told.sized(sizes) if family.sizes else told
