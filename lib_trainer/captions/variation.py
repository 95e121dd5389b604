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

AFTER_WARMUP = 2
"""A step at which calm captions are told whole."""

NO_TAGS = TagPatterns()

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
    `{a|b}` is one of its parts where `wildcards` is on; `prefix` and `suffix` stand around the caption.
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
            head, free, tail = self._parts(text)
            shown = self._shown(len(free), moment.step)
            text = _joined([*head, *self._varied(free, shown, random), *tail])
        return self._framed(text, random)

    def forms(self, caption: str) -> list[str]:
        """Every text that a caption may be told as, of a variation that is not endless."""
        text = self._once(caption)
        found = [self._framed(text, Random(0))]
        if self.warmup:
            head, free, tail = self._parts(text)
            counts = range(1, max(1, len(free)) + 1)
            own = ([*head, *self._varied(free, count, Random(0)), *tail] for count in counts)
            found = [self._framed(_joined(units), Random(0)) for units in own]
        if self.dropout or self.dropout_epochs:
            found.append("")
        return list(dict.fromkeys(found))

    def _parts(self, text: str) -> tuple[list[str], list[str], list[str]]:
        """Tags before, between and behind what divides them; those that `;;;` holds together count as one."""
        head, *others = text.split(KEEP, 2)
        if others:
            tail = others[1].replace(KEEP, ",") if len(others) > 1 else ""
            return _units(head), _units(others[0]), _units(tail)
        units = _units(text)
        own = {tag_key(word) for word in self.words}
        leading = next((place for place, one in enumerate(units) if tag_key(one) not in own), len(units))
        return units[: leading + self.keep], units[leading + self.keep :], []

    def _varied(self, free: list[str], shown: int, random: Random) -> list[str]:
        held = [any(_holds(unit, word) for word in self.words) for unit in free]
        places = list(range(len(free)))
        if self.shuffle:
            keys = [random.random() for _ in free]
            places.sort(key=lambda place: (not held[place], place if held[place] else keys[place]))
        chances = [random.random() if self.tag_dropout else 1.0 for _ in free]
        left = [
            held[place] or (place < shown and not (chances[place] < self.tag_dropout and self._may_go(free[place])))
            for place in range(len(free))
        ]
        return [free[place] for place in places if left[place]]

    def _may_go(self, unit: str) -> bool:
        tags = _tags(unit)
        if any(self.spared.matches(tag) for tag in tags):
            return False
        return not self.alone or any(self.alone.matches(tag) for tag in tags)

    def _shown(self, count: int, step: int) -> int:
        """How many tags are told at a step: one at first, all after the warm-up."""
        if step > self.warmup or count < 2:
            return count
        return 1 + (step - 1) * (count - 1) // self.warmup

    def _chosen(self, text: str, random: Random) -> str:
        """With one part of each `{a|b}`; doubled braces stand for single ones."""
        if not self.wildcards or ("{" not in text and "}" not in text):
            return text

        def pick(found: re.Match[str]) -> str:
            if found[1] is None:
                return found[0][0]
            parts = found[1].split("|")
            return parts[int(random.random() * len(parts))].strip()

        return re.sub(r",(?:\s*,)+", ",", _CHOICE.sub(pick, text)).strip(" ,")

    def _once(self, text: str) -> str:
        """Without a word at the front that prefix or suffix brings."""
        for word in self.words:
            if _holds(f"{self.prefix} {self.suffix}", word):
                text = re.sub(rf"^\s*{either_spelling(word)}\s*(?:,\s*|$)", "", text, flags=re.IGNORECASE)
        return text

    def _framed(self, text: str, random: Random) -> str:
        """With prefix and suffix, parted by a space where they do not begin or end with a sign of their own."""
        if not self.prefix and not self.suffix:
            return text
        before, after = (self._chosen(part, random).strip() for part in (self.prefix, self.suffix))
        whole = " ".join(part for part in (before, text) if part)
        return whole + ("" if not whole or after[:1] in (",", ".", ";") else " ") * bool(after) + after


AS_IS = Variation()


def _units(text: str) -> list[str]:
    return [unit for part in text.split(",") if (unit := part.strip()) and _tags(unit)]


def _tags(unit: str) -> list[str]:
    return [tag for part in unit.split(TOGETHER) if (tag := part.strip())]


def _joined(units: Sequence[str]) -> str:
    return ", ".join(tag for unit in units for tag in _tags(unit))


def _holds(text: str, word: str) -> bool:
    """Whether a word is part of a text, in any case of letters."""
    return bool(word) and _pattern(word).search(text) is not None


@lru_cache(maxsize=1024)
def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){either_spelling(word)}(?![\w-])", re.IGNORECASE)
