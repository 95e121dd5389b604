"""Captions as CLIP token ids, quickly: a tag's ids are looked up once and joined with the comma's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from lib_trainer.host.standalone.tokenizer import load_tokenizer

from .shapes import SHAPES
from .world import BACKGROUNDS, COLOURS, IMPLICATIONS, POSITIONS, SIZES

START_ID, END_ID, LENGTH = 49406, 49407, 77


@cache
def _piece(text: str) -> tuple[int, ...]:
    """Ids of a text without the two marks; "," included, so pieces may simply be joined."""
    return tuple(load_tokenizer()(text, add_special_tokens=False).input_ids)


def tokens_of(caption: str) -> list[int]:
    """77 ids of a comma-separated caption: start, tags, end, padded with the end mark as SD1 does."""
    ids: list[int] = []
    for tag in caption.split(", "):
        ids += ([*_piece(",")] if ids else []) + [*_piece(tag)]
    ids = [START_ID, *ids[: LENGTH - 2], END_ID]
    return ids + [END_ID] * (LENGTH - len(ids))


def batch_of(captions: Sequence[str]) -> torch.Tensor:
    """Ids of n captions as int64 (n, 77)."""
    return torch.tensor([tokens_of(text) if text else [START_ID] + [END_ID] * (LENGTH - 1) for text in captions])


def known_ids() -> list[int]:
    """Ids that occur in the checkpoint's captions: only these rows of the embedding are trained."""
    words = [*SHAPES, *COLOURS, *SIZES, *POSITIONS, *(f"{name} background" for name in BACKGROUNDS)]
    words += [tag for shape in SHAPES for tag in IMPLICATIONS[shape]] + ["simple background", ","]
    return sorted({START_ID, END_ID, *(i for word in words for i in _piece(word))})


def with_junk(ids: torch.Tensor, rng: np.random.Generator, chance: float = 0.1) -> torch.Tensor:
    """ids (n, 77) with, now and then, one or two of a caption's ids overwritten by ids of random words.

    Words that it does not know then do little harm, and dropped words are one more way of caption dropout.
    """
    ids = ids.clone()
    for row in np.flatnonzero(rng.random(len(ids)) < chance).tolist():
        end = int((ids[row] == END_ID).nonzero()[0, 0])
        if end > 4:
            places = torch.from_numpy(rng.integers(1, end, int(rng.integers(1, 3))))
            ids[row, places] = torch.from_numpy(rng.integers(300, START_ID, len(places)))
    return ids
