"""Edits of a caption's order, trigger word and spelling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lib_trainer.captions.document import KEEP, Caption, cached_key
from lib_trainer.captions.edit_base import Facts, Plain, single_tags
from lib_trainer.captions.tags import KAOMOJI, escape, split_tags, unescape, with_spaces
from lib_trainer.options.declare import option


@dataclass(frozen=True)
class Deduplicate(Plain):
    """Remove duplicates"""

    def label(self) -> str:
        return "Remove duplicate tags"

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        """The first of each stays; `long_hair` and `Long hair` are the same."""
        seen: set[str] = set()
        later = set()
        for index, key in enumerate(caption.keys):
            if key in seen:
                later.add(index)
            seen.add(key)
        return caption.without(later)


@dataclass(frozen=True)
class SortTags(Plain):
    """Sort tags"""

    needs_scores = True

    by: Annotated[
        Literal["alphabet", "frequency", "score"],
        option("By", "Frequency in the chosen pictures and the tagger's score: highest first."),
    ] = "frequency"
    fixed: Annotated[int, option("Fixed", "So many tags at the front stay where they are.", low=0)] = 0

    def label(self) -> str:
        return f"Sort tags by {self.by}"

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        """Tags before the keep-token separator stay before it and are not sorted."""
        first = max(self.fixed, caption.kept)
        rest = sorted(caption.tags[first:], key=lambda tag: self._rank(cached_key(tag), facts))
        return caption.retag([*caption.tags[:first], *rest])

    def _rank(self, key: str, facts: Facts) -> Any:
        if self.by == "alphabet":
            return key
        return -facts.counts.get(key, 0) if self.by == "frequency" else -facts.scores.get(key, -1.0)


@dataclass(frozen=True)
class SetTrigger(Plain):
    """Trigger word"""

    word: Annotated[str, option("Trigger word", "Stands in front of every caption afterwards.")] = ""
    replaces: Annotated[str, option("Instead of", "The trigger words so far, which are taken out. May be empty.")] = ""
    separator: Annotated[
        bool, option("Keep-token separator", f"Put {KEEP} behind it, so that training never shuffles it.")
    ] = False

    def check(self) -> None:
        single_tags(self.word, "Trigger word")

    def label(self) -> str:
        return f"Trigger word {self.word.strip()}" + (f" instead of {self.replaces.strip()}" if self.replaces else "")

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        words = single_tags(self.word, "Trigger word")
        keys = [cached_key(word) for word in words]
        old = {cached_key(tag) for tag in split_tags(self.replaces)}
        if caption.keys[: len(words)] == keys and not old & set(caption.keys[len(words) :]):
            result = caption
        else:
            gone = {index for index, key in enumerate(caption.keys) if key in keys or key in old}
            kept = caption.kept and caption.kept - sum(index < caption.kept for index in gone)
            result = caption.without(gone).insert(0, words)
            if caption.kept:
                result = result.keep(kept + len(words))
        return result.keep(len(words)) if self.separator else result


@dataclass(frozen=True)
class KeepTokens(Plain):
    """Keep-token separator"""

    count: Annotated[int, option("Tags before it", f"{KEEP} is put after so many tags; 0 takes it out.", low=0)] = 1

    def label(self) -> str:
        return f"Keep-token separator after {self.count}" if self.count else "Without the keep-token separator"

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        return caption.keep(self.count)


@dataclass(frozen=True)
class Spelling(Plain):
    """Spelling"""

    to: Annotated[
        Literal["escaped", "unescaped", "spaces", "underscores", "lower case"],
        option("Write tags", "Brackets \\( \\) belong in prompts; captions for training are not escaped."),
    ] = "unescaped"

    def label(self) -> str:
        return f"Write tags {'with ' if self.to in ('spaces', 'underscores') else ''}{self.to}"

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        return caption.retag([self._spelt(tag) for tag in caption.tags])

    def _spelt(self, tag: str) -> str:
        if self.to == "escaped":
            return escape(unescape(tag))
        if self.to == "unescaped":
            return unescape(tag)
        if self.to == "lower case":
            return tag if tag in KAOMOJI else tag.lower()
        return with_spaces(tag) if self.to == "spaces" else tag.replace(" ", "_")
