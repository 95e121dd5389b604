"""Captions as token ids, in chunks of 75, with words beyond the vocabulary."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib_trainer.host.text.emphasis import Part

CHUNK = 75
"""Tokens of a chunk without its begin and end marks; the model reads 77."""

BACKTRACK = 20
"""How many tokens behind the last comma a full chunk leaves to the next one: the WebUI's `comma_padding_backtrack`, as
it comes."""

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

    `tokenizer` is called as transformers' are. `backtrack` (0 to 74): where a chunk is full, what stands behind its
    last comma begins the next one if that is no more than so many tokens, so that no tag is parted; 0: it may be.
    """

    def __init__(self, tokenizer: Any, backtrack: int = BACKTRACK) -> None:
        self.tokenizer, self.backtrack = tokenizer, backtrack
        self._words: list[tuple[list[int], list[int]]] = []
        """Tokens of each added word, and its ids."""
        self._known: dict[str, list[int]] = {}

    @property
    def end(self) -> int:
        """The mark behind a chunk's tokens."""
        return int(self.tokenizer.eos_token_id)

    def of(self, caption: str, most: int | None = None) -> list[Chunk]:
        """A caption's chunks, as `weighed` makes them of a text that weighs 1."""
        if not self._words and len(ids := self.ids(caption)) <= CHUNK:
            return [Chunk(ids)]
        return self.weighed([(caption, 1.0)], most)

    def weighed(self, parts: Sequence[Part], most: int | None = None) -> list[Chunk]:
        """The chunks of a caption whose parts weigh something, each tokenised for itself, as the WebUI does; at least
        one. None for a weight begins the next one. A word is never split between two, nor a tag at a chunk's end,
        unless it is long. What goes beyond the tokens of `most` chunks is cut; a chunk that leaves its last tag to the
        next one counts as what it holds, so that no caption is cut for that.
        """
        filled = _Filled(self.comma, self.backtrack)
        for text, weight in parts:
            if weight is None:
                filled.next()
                continue
            for piece in self._pieces(self.ids(text)):
                filled.add(piece, weight)
        return filled.chunks(most)

    @functools.cached_property
    def comma(self) -> int | None:
        """The id of a comma that stands for itself."""
        ids = self._ids_of(",")
        return ids[0] if len(ids) == 1 else None

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


class _Filled:
    """Chunks that are filled with tokens one after another. What the WebUI does (`tokenize_line`), but that an added
    word goes with its vectors where a tag is left to the next chunk; there they stay behind, and the word is lost."""

    def __init__(self, comma: int | None, backtrack: int) -> None:
        self._comma, self._backtrack = comma, backtrack
        self._done: list[tuple[Chunk, int]] = []
        """Chunks, and how many tokens each counts as."""
        self._ids: list[int] = []
        self._weights: list[float] = []
        self._tag = 0
        """Where the last tag of the chunk begins that is being filled: behind its last comma."""

    def add(self, piece: list[int], weight: float) -> None:
        """Put tokens that belong together into the chunk, or begin the next one."""
        full = len(self._ids) == CHUNK
        if piece == [self._comma]:
            self._tag = len(self._ids) + 1
        elif full and self._tag > 0 and len(self._ids) - self._tag < self._backtrack:
            tag, weights = self._ids[self._tag :], self._weights[self._tag :]
            del self._ids[self._tag :], self._weights[self._tag :]
            self.next(len(self._ids))
            self._ids, self._weights = tag, weights
        if len(self._ids) + len(piece) > CHUNK:
            self.next()
        self._ids += piece
        self._weights += [weight] * len(piece)

    def next(self, counted: int = CHUNK) -> None:
        """Begin the next chunk."""
        weights = tuple(self._weights) if {*self._weights} - {1.0} else ()
        self._done.append((Chunk(self._ids, weights), counted))
        self._ids, self._weights, self._tag = [], [], 0

    def chunks(self, most: int | None) -> list[Chunk]:
        """All of them, or the tokens of `most` full ones."""
        if self._ids or not self._done:  # nothing may stand behind the last one
            self.next()
        if most is None:
            return [chunk for chunk, _ in self._done]
        found, left = list[Chunk](), most * CHUNK
        for chunk, counted in self._done:
            if left <= 0:
                break
            found.append(Chunk(chunk.ids[:left], chunk.weights[:left]))
            left -= counted
        return found
