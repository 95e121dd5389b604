"""Captions as token ids, in chunks of 75, with words beyond the vocabulary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib_trainer.host.text.emphasis import Part

CHUNK = 75
"""Tokens of a chunk without its begin and end marks; the model reads 77."""

KNOWN_TEXTS = 20_000
"""Tags and captions whose tokens are kept: a set has each at every epoch, and CLIP's tokenizer takes a millisecond for
a caption."""


@dataclass(frozen=True)
class Chunk:
    """Token ids without marks, at most 75; `weights` has one for each, or nothing where all are 1."""

    ids: list[int]
    weights: tuple[float, ...] = ()

    @property
    def factors(self) -> list[float]:
        """77 of them: marks and padding have 1."""
        return [1.0, *self.weights] + [1.0] * (CHUNK + 1 - len(self.weights))


class Chunks:
    """CLIP's tokenizer, which all encoders share, and the ids that stand for the rows of added words.

    `tokenizer` is called as transformers' are.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._words: list[tuple[list[int], list[int]]] = []
        """Tokens of each added word, and its ids."""
        self._known: dict[str, list[int]] = {}

    @property
    def end(self) -> int:
        """The mark behind a chunk's tokens."""
        return int(self.tokenizer.eos_token_id)

    def of(self, caption: str) -> list[Chunk]:
        """A caption's chunks; at least one. A word is never split between two."""
        ids = self.ids(caption)
        if not self._words:
            return [Chunk(ids[start : start + CHUNK]) for start in range(0, max(1, len(ids)), CHUNK)]
        return self.weighed([(caption, 1.0)])

    def weighed(self, parts: Sequence[Part]) -> list[Chunk]:
        """The chunks of a caption whose parts weigh something, each tokenised for itself, as the WebUI does; None for
        a weight begins the next one."""
        chunks: list[tuple[list[int], list[float]]] = [([], [])]
        for text, weight in parts:
            if weight is None:
                chunks.append(([], []))
                continue
            for piece in self._pieces(self.ids(text)):
                if len(chunks[-1][0]) + len(piece) > CHUNK:
                    chunks.append(([], []))
                chunks[-1][0].extend(piece)
                chunks[-1][1].extend([weight] * len(piece))
        if len(chunks) > 1 and not chunks[-1][0]:  # nothing stands behind the last one
            chunks.pop()
        return [Chunk(ids, tuple(weights) if {*weights} - {1.0} else ()) for ids, weights in chunks]

    def marked(self, ids: list[int], padding: int | None) -> list[int]:
        """77 ids: a chunk with its marks, filled up with `padding`, or with end marks where that is None."""
        filling = self.end if padding is None else padding
        return [self.tokenizer.bos_token_id, *ids, self.end] + [filling] * (CHUNK - len(ids))

    def ids(self, text: str) -> list[int]:
        """A text's tokens, without marks. Tags are tokenised one by one, and once: shuffled captions are always new.

        That is the same, as no token reaches across white space; but some tokenizers first mend letters beyond ASCII,
        HTML's escapes and marks by what stands around them, and such texts are left whole.
        """
        if not text.isascii() or "&" in text or "<" in text:
            return self._ids_of(text)
        *tags, last = text.split(", ")
        found: list[int] = []
        for tag in tags:
            found += self._ids_of(f"{tag},")
        return found + self._ids_of(last)

    def _ids_of(self, text: str) -> list[int]:
        known = self._known.get(text)
        if known is None:
            if len(self._known) >= KNOWN_TEXTS:
                self._known.clear()
            found = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
            known = self._known[text] = list(found)
        return known

    def _pieces(self, ids: list[int]) -> Iterator[list[int]]:
        """Tokens one by one, and added words whole; of words that begin alike the longest, as the WebUI finds them."""
        start = 0
        while start < len(ids):
            fits = [(own, new) for own, new in self._words if own and ids[start : start + len(own)] == own]
            own, new = max(fits, key=lambda pair: len(pair[0]), default=([0], ids[start : start + 1]))
            yield new
            start += len(own)

    @contextlib.contextmanager
    def extended(self, words: Mapping[str, int], vocabulary: int) -> Iterator[int]:
        """Words, each with how many rows it has, get ids that follow one another; gives the first of them.

        `vocabulary`: how many ids are taken.
        """
        before = self._words
        first = free = vocabulary + sum(len(new) for _, new in before)
        added = []
        for word, count in words.items():
            added.append((self.ids(word), list(range(free, free + count))))
            free += count
        self._words = [*before, *added]
        try:
            yield first
        finally:
            self._words = before
