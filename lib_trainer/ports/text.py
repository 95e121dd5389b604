"""Captions on their way to the UNet, and the text encoders' vocabularies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from lib_trainer.families.family import Part
from lib_trainer.transfer import sent

Rows = Mapping[Part, torch.Tensor]
"""A word's vectors for each text encoder, (n, width); n is the same for all."""

Wording = str | tuple[str, ...]
"""A caption: one text that all text encoders are told, or one for each, in the family's order."""


def wording_for(encoder: int, caption: Wording) -> str:
    """What the encoder of that number is told, from 0 on; of too few texts the last one."""
    return caption if isinstance(caption, str) else caption[min(encoder, len(caption) - 1)]


def each_text(caption: Wording, changed: Callable[[str], str]) -> Wording:
    """The same with every text changed."""
    return changed(caption) if isinstance(caption, str) else tuple(map(changed, caption))


def is_empty(caption: Wording) -> bool:
    """Whether no encoder is told anything."""
    return not "".join(caption).strip()


class TokenTable(Protocol):
    """The vocabulary of the text encoders, and words that are added to it for a while."""

    @property
    def widths(self) -> Mapping[Part, int]:
        """Numbers in a token's vector, for each encoder."""

    def rows(self, text: str) -> Rows:
        """The vectors of a text's tokens, fp32 on the CPU; no marks at its ends."""

    def usual_norm(self) -> Mapping[Part, float]:
        """Mean length of the vocabulary's vectors, for each encoder."""

    def extended(self, words: Mapping[str, Rows]) -> AbstractContextManager[None]:
        """Let each word, wherever its tokens stand in a text, mean the rows given; gradients flow to them.

        The rows are read anew in every forward pass. A word is never split between two chunks. May be nested.
        """


@dataclass(frozen=True)
class PictureSize:
    """Sizes in pixels that SDXL is conditioned on; other families ignore them."""

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told.

    `context`: (B, 77·chunks, D), of several encoders side by side. `pooled`: (B, P) for families whose UNet reads the
    whole caption as one vector, else None. `sizes`: (B, 6) fp32 for families whose UNet is told of sizes, else None:
    original height and width, the crop's top and left, target height and width, in pixels.
    """

    context: torch.Tensor
    pooled: torch.Tensor | None = None
    sizes: torch.Tensor | None = None

    def to(self, device: torch.device) -> Conditioning:
        return self.each(lambda tensor: tensor.to(device))

    def each(self, changed: Callable[[torch.Tensor], torch.Tensor]) -> Conditioning:
        """The same with every tensor changed."""
        pooled, sizes = (None if one is None else changed(one) for one in (self.pooled, self.sizes))
        return Conditioning(changed(self.context), pooled, sizes)

    def emptied(self, empty: Sequence[bool]) -> Conditioning:
        """With zeros for the texts, context and pooled vector, where `empty`."""
        if not any(empty):
            return self
        context, pooled = _zeroed(self.context, empty), self.pooled
        return Conditioning(context, None if pooled is None else _zeroed(pooled, empty), self.sizes)

    def sized(self, sizes: Sequence[PictureSize]) -> Conditioning:
        """With the sizes of pictures, on the CPU."""
        numbers = [[*one.original, *one.crop, *one.target] for one in sizes]
        return Conditioning(self.context, self.pooled, torch.tensor(numbers, dtype=torch.float32))


def _zeroed(tensor: torch.Tensor, empty: Sequence[bool]) -> torch.Tensor:
    own = sent(torch.tensor(empty), tensor.device).reshape(-1, *[1] * (tensor.ndim - 1))
    return tensor.masked_fill(own, 0)
