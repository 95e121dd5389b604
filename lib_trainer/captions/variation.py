"""A caption as it is told at one step: tags shuffled or left out, the whole left out, choices drawn, text around it.

What is drawn hangs on the seed, the step and the picture's place in it alone, and is the same on every system: Python
promises that `Random(text).random()` is. Names and meanings follow sd-scripts (`shuffle_caption`, `keep_tokens`,
`keep_tokens_separator`, `secondary_separator`, `enable_wildcard`, `token_warmup_step`, caption dropouts), except that
the words that are learned always stay, prefix and suffix are never shuffled, and they need not be counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from lib_trainer.captions.document import KEEP
from lib_trainer.captions.tags import TagPatterns, either_spelling, tag_key

TOGETHER = ";;;"
"""Between tags that stay together: sd-scripts' usual secondary separator."""

BETWEEN = ", "

AFTER_WARMUP = 2
"""A step at which calm captions are told whole."""

KNOWN = 1 << 13
"""Captions that are kept taken apart: a set has each at every epoch."""

NO_TAGS = TagPatterns()

_SIGNS = re.compile(r"\\.|[()\[\],]|[^\\()\[\],]+|\\", re.DOTALL)
_WEIGHT = re.compile(r":\s*[+-]?[.\d]+\s*\)|(?<!\\)[()\[\]]")
"""What is no part of a tag in a text with weights."""

LITERAL = {"{{": "\0", "}}": "\1"}
"""What doubled braces are until all is drawn."""

_CHOICE = re.compile(r"\{\{|\}\}|\{([^{}|]*(?:\|[^{}|]*)+)\}")


@dataclass(frozen=True)
class Moment:
    """Where a caption is told: the job's seed, step and epoch from 1 on, and the picture's place in the step."""

    seed: int
    step: int
    epoch: int
    place: int


@dataclass(frozen=True)
class Variation:
    """What is done to captions. The default leaves every one as it is.

    Of a caption's tags the first `keep` stay where they are, or those before a `|||` and behind a second one; tags that
    hold one of `words` stay, too: at the front they need not be counted, and shuffled captions have them behind what
    is kept. Of the others each is left out with a chance of `tag_dropout`, those of `spared` never, and where `alone`
    names some, these alone; during the first `warmup` steps only the first few of them are told, more and more of them.
    The whole caption is left out with a chance of `dropout` and in every epoch that `dropout_epochs` divides.
    `{a|b}` is one of its parts where `wildcards` is on; `prefix` and `suffix` stand around the caption. Where brackets
    are `weights`, the tags that a pair holds, as `(a hat, a coat:1.2)`, stay together.
    """

    shuffle: bool = False
    keep: int = 0
    tag_dropout: float = 0.0
    spared: TagPatterns = NO_TAGS
    alone: TagPatterns = NO_TAGS
    warmup: int = 0
    dropout: float = 0.0
    dropout_epochs: int = 0
    wildcards: bool = False
    prefix: str = ""
    suffix: str = ""
    words: tuple[str, ...] = ()
    weights: bool = False

    @property
    def reads_tags(self) -> bool:
        """Whether captions are taken apart, so that `|||` and `;;;` mean something in them."""
        return self.shuffle or self.tag_dropout > 0 or self.warmup > 0

    def calm(self) -> Variation:
        """The same with every tag in its place: `|||` and `;;;` are read as before, and choices are still drawn."""
        warmup = AFTER_WARMUP - 1 if self.reads_tags else 0
        return replace(self, shuffle=False, tag_dropout=0.0, warmup=warmup, dropout=0.0, dropout_epochs=0)

    @property
    def endless(self) -> bool:
        """Whether a caption has too many forms to make all of them beforehand."""
        return self.shuffle or self.tag_dropout > 0 or self.wildcards

    def __call__(self, caption: str, moment: Moment) -> str:
        random = Random(f"{moment.seed} {moment.step} {moment.place}")
        left_out = random.random() < self.dropout
        if left_out or (self.dropout_epochs and moment.epoch % self.dropout_epochs == 0):
            return ""
        text = self._once(self._chosen(caption, random))
        if self.reads_tags:
            parts = self._parts(text)
            text = BETWEEN.join(self._varied(parts, self._shown(len(parts.free), moment.step), random))
        return self._framed(text, random)

    def forms(self, caption: str) -> list[str]:
        """Every text that a caption may be told as, of a variation that is not endless."""
        text = self._once(caption)
        found = [self._framed(text, Random(0))]
        if self.warmup:
            parts = self._parts(text)
            own = (self._varied(parts, count, Random(0)) for count in range(1, max(1, len(parts.free)) + 1))
            found = [self._framed(BETWEEN.join(units), Random(0)) for units in own]
        if self.dropout or self.dropout_epochs:
            found.append("")
        return list(dict.fromkeys(found))

    def _parts(self, text: str) -> _Parts:
        return _parts(text, self.keep, self.words, self.weights)

    def _varied(self, parts: _Parts, shown: int, random: Random) -> list[str]:
        """All that is told, in its order; of the free units the first `shown`."""
        free, held = parts.free, parts.held
        places = list(range(len(free)))
        if self.shuffle:
            keys = [random.random() for _ in free]
            first = [place for place in places if held[place]]
            places = first + sorted((place for place in places if not held[place]), key=keys.__getitem__)
        chances = [random.random() if self.tag_dropout else 1.0 for _ in free]
        told = [
            free[place]
            for place in places
            if held[place] or (place < shown and not (chances[place] < self.tag_dropout and self._may_go(free[place])))
        ]
        return [*parts.head, *told, *parts.tail]

    def _may_go(self, unit: str) -> bool:
        tags = (_WEIGHT.sub("", unit) if self.weights else unit).split(BETWEEN)
        if any(self.spared.matches(tag) for tag in tags):
            return False
        return not self.alone or any(self.alone.matches(tag) for tag in tags)

    def _shown(self, count: int, step: int) -> int:
        """How many tags are told at a step: one at first, all after the warm-up."""
        if step > self.warmup or count < 2:
            return count
        return 1 + (step - 1) * (count - 1) // self.warmup

    def _chosen(self, text: str, random: Random, first: str = " ,", last: str = " ,") -> str:
        """With one part of each `{a|b}`, the inner ones first; doubled braces stand for single ones. An empty part
        leaves no comma behind: `first` and `last` are what may not stand at either end."""
        if not self.wildcards or ("{" not in text and "}" not in text):
            return text

        def pick(found: re.Match[str]) -> str:
            if found[1] is None:
                return LITERAL[found[0]]
            parts = found[1].split("|")
            return parts[int(random.random() * len(parts))].strip()

        while (drawn := _CHOICE.sub(pick, text)) != text:
            text = drawn
        for doubled, sign in LITERAL.items():
            text = text.replace(sign, doubled[0])
        return re.sub(r",(?:\s*,)+", ",", text).lstrip(first).rstrip(last)

    def _once(self, text: str) -> str:
        """Without a word at the front that prefix or suffix brings."""
        for word in self.words:
            if _holds(f"{self.prefix} {self.suffix}", word):
                text = re.sub(rf"^\s*{either_spelling(word)}\s*(?:,\s*|(?=\|\|\|)|$)", "", text, flags=re.IGNORECASE)
        return text

    def _framed(self, text: str, random: Random) -> str:
        """With prefix and suffix, parted by a space where they do not begin or end with a sign of their own."""
        if not self.prefix and not self.suffix:
            return text
        before = self._chosen(self.prefix, random, last=" ").strip()
        after = self._chosen(self.suffix, random, first=" ").strip()
        whole = " ".join(part for part in (before, text) if part)
        return whole + ("" if not whole or after[:1] in (",", ".", ";") else " ") * bool(after) + after


AS_IS = Variation()


@dataclass(frozen=True)
class _Parts:
    """Tags before, between and behind what divides them; those that `;;;` holds together count as one. `held`: which
    of the free ones are always told."""

    head: list[str]
    free: list[str]
    tail: list[str]
    held: list[bool]


@lru_cache(maxsize=KNOWN)
def _parts(text: str, keep: int, words: tuple[str, ...], weights: bool) -> _Parts:
    head, *others = text.split(KEEP, 2)
    if others:
        tail = others[1].replace(KEEP, ",") if len(others) > 1 else ""
        before, free, behind = (_units(part, weights) for part in (head, others[0], tail))
        return _Parts(before, free, behind, _held(free, words))
    units = _units(text, weights)
    own = {tag_key(word) for word in words}
    leading = next((place for place, one in enumerate(units) if tag_key(one) not in own), len(units))
    return _Parts(units[: leading + keep], free := units[leading + keep :], [], _held(free, words))


def _held(units: Sequence[str], words: Sequence[str]) -> list[bool]:
    return [any(_holds(unit, word) for word in words) for unit in units]


def _units(text: str, weights: bool) -> list[str]:
    """Tags, and those that stay together as they are told."""
    parts = _outside_of_brackets(text) if weights else text.split(",")
    parted = ([tag for one in part.split(TOGETHER) if (tag := one.strip())] for part in parts)
    return [BETWEEN.join(tags) for tags in parted if tags]


def _outside_of_brackets(text: str) -> list[str]:
    """The text parted at its commas, but for those that stand in brackets; a bracket behind a backslash is none."""
    parts, depth = [""], 0
    for sign in _SIGNS.findall(text):
        depth = max(0, depth + {"(": 1, "[": 1, ")": -1, "]": -1}.get(sign, 0))
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def _holds(text: str, word: str) -> bool:
    """Whether a word is part of a text, in any case of letters."""
    return bool(word) and _pattern(word).search(text) is not None


@lru_cache(maxsize=1024)
def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){either_spelling(word)}(?![\w-])", re.IGNORECASE)
