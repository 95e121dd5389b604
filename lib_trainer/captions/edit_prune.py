"""Edits that prune by number: on how many pictures a tag stands, or how sure the tagger was."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from lib_trainer.captions.document import Caption, cached_key
from lib_trainer.captions.edit_base import Facts, Plain
from lib_trainer.captions.tags import TagPatterns
from lib_trainer.counts import counted
from lib_trainer.options.declare import option

Protected = Annotated[str, option("Protected", "Never removed: tags, wildcards, /expressions/.")]


class _Sparing(Plain):
    """An edit with tags that it never removes."""

    protected: str

    @cached_property
    def _protected(self) -> TagPatterns:
        return TagPatterns.parse(self.protected, "Protected")


@dataclass(frozen=True)
class PruneByCount(_Sparing):
    """Prune rare tags"""

    fewer_than: Annotated[int, option("Fewer than", "Tags on fewer pictures than this are removed.", low=1)] = 2
    protected: Protected = ""

    def label(self) -> str:
        return f"Remove tags on fewer than {counted(self.fewer_than, 'picture')}"

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        return caption.remove(
            lambda tag: facts.counts.get(cached_key(tag), 0) < self.fewer_than and not self._protected.matches(tag)
        )


@dataclass(frozen=True)
class PruneByShare(_Sparing):
    """Prune by share"""

    percent: Annotated[
        float, option("Percent", "Share of the chosen pictures on which a tag stands, 0 to 100.", low=0, high=100)
    ] = 5.0
    side: Annotated[
        Literal["below", "above"], option("Side", "Remove the tags below this share, or those at it and above.")
    ] = "below"
    protected: Protected = ""

    def label(self) -> str:
        return f"Remove tags {self.side} {self.percent:g}% of the pictures"

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        limit = self.percent / 100 * facts.total

        def unwanted(tag: str) -> bool:
            count = facts.counts.get(cached_key(tag), 0)
            return (count < limit if self.side == "below" else count >= limit) and not self._protected.matches(tag)

        return caption.remove(unwanted)


@dataclass(frozen=True)
class PruneByScore(Plain):
    """Prune by score"""

    needs_scores = True

    below: Annotated[
        float, option("Below", "Tags that the tagger scored below this are removed, 0 to 1.", low=0, high=1)
    ] = 0.35
    unscored: Annotated[
        bool, option("Without a score too", "Also remove tags of the tagger's vocabulary that it did not keep.")
    ] = False

    def label(self) -> str:
        return f"Remove tags scored below {self.below:g}"

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        """Tags that a person wrote stay; so does every tag of a picture that was never scored."""
        if not facts.scores:
            return caption

        def unwanted(tag: str) -> bool:
            key = cached_key(tag)
            score = facts.scores.get(key, -1.0 if self.unscored else 1.0)
            return score < self.below and key not in facts.by_hand

        return caption.remove(unwanted)
