"""Pruning that knows tags: implied tags, and traits that go into the trigger word.

A plan proposes; nothing is changed until its edit is previewed and applied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lib_trainer.captions.document import Caption, cached_key
from lib_trainer.captions.edit_base import Facts, Plain, count_tags
from lib_trainer.captions.edit_order import SetTrigger
from lib_trainer.captions.knowledge import GROUPS, Knowledge
from lib_trainer.captions.tags import TagPatterns
from lib_trainer.counts import counted
from lib_trainer.refusals import ConfigError, Decimals, Sentence


@dataclass(frozen=True)
class Implied:
    """A parent that would be dropped beside its child. `learned`: from this set alone, not from the table."""

    child: str
    parent: str
    count: int
    learned: bool = False


def implied_pairs(captions: Mapping[str, Caption], knowledge: Knowledge) -> list[Implied]:
    """Every (child, parent) of the table that stand together, on how many captions; the most frequent first."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for caption in captions.values():
        keys = set(caption.keys)
        for child in keys:
            for parent in knowledge.parents(child) & keys:
                counts[child, parent] += 1
    pairs = [Implied(child, parent, count) for (child, parent), count in counts.items()]
    return sorted(pairs, key=lambda one: (-one.count, one.child, one.parent))


def learned_pairs(captions: Mapping[str, Caption], knowledge: Knowledge, least: int = 3) -> list[Implied]:
    """What this set seems to imply: A on at least `least` captions and never without B, which is more frequent.

    A tag on more than 90% of the captions is implied by everything and is not meant; nor is what the table has. To stay
    linear, only the tags of the rarest caption of each A are asked.
    """
    total = len(captions)
    counts = count_tags(captions.values())
    usual = {key for key, count in counts.items() if count > 0.9 * total}
    always: dict[str, set[str]] = {}
    for caption in captions.values():
        keys = set(caption.keys)
        for key in keys:
            if counts[key] >= least and key not in usual:
                always[key] = (always[key] & keys) if key in always else keys - usual
    found = [
        Implied(child, parent, counts[child], learned=True)
        for child, parents in always.items()
        for parent in parents - knowledge.parents(child) - {child}
        if counts[parent] > counts[child]
    ]
    return sorted(found, key=lambda one: (-one.count, one.child, one.parent))


@dataclass(frozen=True)
class DropImplied(Plain):
    """Keep the child, drop the parent: `sword` stays, `weapon` goes. `pairs`: the (child, parent)s that are meant."""

    pairs: frozenset[tuple[str, str]]

    def label(self) -> str:
        return f"Drop implied tags ({counted(len({parent for _, parent in self.pairs}), 'kind')})"

    @cached_property
    def _parents(self) -> dict[str, set[str]]:
        parents: dict[str, set[str]] = defaultdict(set)
        for child, parent in self.pairs:
            parents[child].add(parent)
        return dict(parents)

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        """A parent goes where a child of it stays. Of tags that imply each other the first one stays."""
        keys = list(dict.fromkeys(caption.keys))
        unwanted: set[str] = set()
        for child in keys:
            if child not in unwanted:
                unwanted |= self._parents.get(child, set()) - {child}
        # a chain (greatsword, sword, weapon) whose middle has gone still drops its end
        for child in keys:
            if child in unwanted:
                unwanted |= {
                    parent for parent in self._parents.get(child, set()) if child not in self._parents.get(parent, ())
                }
        return caption.remove(lambda tag: cached_key(tag) in unwanted)


FEATURES = ("hair", "eyes", "body", "face", "clothes", "accessories")
DEFINING = ("hair", "eyes", "body", "face")


@dataclass(frozen=True)
class School:
    """One of the ways to tag a training set. `groups`: what goes into the trigger word; `cost`: what it takes away."""

    name: str
    title: str
    groups: tuple[str, ...]
    cost: str


SCHOOLS = {
    school.name: school
    for school in (
        School(
            "delete-all",
            "Delete all feature tags",
            FEATURES,
            "One trigger word calls everything, with the best likeness for the fewest words. Clothes and hair become "
            "hard to change, and a LoRA that is trained too long draws them whatever the prompt says.",
        ),
        School(
            "delete-some",
            "Delete what defines the character",
            DEFINING,
            "The trigger word calls the character, clothes are still written and can be changed. Prompts grow longer, "
            "and the usual clothes come back only when they are named.",
        ),
        School(
            "keep-all",
            "Keep all tags",
            (),
            "Everything stays editable and nothing is bound to the trigger word. The likeness is weaker, and every "
            "feature must be prompted.",
        ),
        School(
            "style",
            "Style set: drop what is style",
            ("style",),
            "For a style set the opposite holds: what is depicted stays in the captions, so that it is not learned, "
            "and words of style go, so that the trigger word takes them over. Prompts cannot turn those parts of the "
            "style off again.",
        ),
    )
}


@dataclass(frozen=True)
class Trait:
    """A tag that could go into the trigger word. `share`: 0 to 1 of the pictures; `partial`: only on part of them."""

    key: str
    group: str
    count: int
    share: float
    proposed: bool
    partial: bool


def traits(
    captions: Mapping[str, Caption],
    knowledge: Knowledge,
    school: str,
    *,
    share: float = 0.5,
    protected: str = "",
    trigger: str = "",
) -> list[Trait]:
    """The tags on at least `share` of the pictures by group, and which of them the school would fold into the trigger.

    Style tags are proposed whatever their share: a style set's words for its style are all the same thing. A proposed
    tag that stands on less than 90% of the pictures is `partial`: the trigger word will mean it on all of them.
    """
    if school not in SCHOOLS:
        raise ConfigError("plan.missing", school=school, schools=SCHOOLS)
    if not 0 < share <= 1:
        raise ConfigError("plan.share", share=share)
    kept = TagPatterns.parse(protected, "Protected")
    own = {cached_key(word) for word in trigger.split(",")}
    groups = SCHOOLS[school].groups
    total = len(captions)
    found = []
    for key, count in count_tags(captions.values()).items():
        group = knowledge.group(key)
        here = count / total
        if key in own or (here < share and not (school == "style" and group == "style")):
            continue
        proposed = group in groups and not kept.matches(key)
        found.append(Trait(key, group, count, here, proposed, proposed and here < 0.9))
    return sorted(found, key=lambda trait: (GROUPS.index(trait.group), -trait.count, trait.key))


@dataclass(frozen=True)
class FoldIntoTrigger(Plain):
    """Remove these traits everywhere and put the trigger word in front."""

    tags: frozenset[str]
    trigger: str
    title: str = "Fold into the trigger word"
    separator: bool = False

    def check(self) -> None:
        SetTrigger(self.trigger).check()
        own = self.tags & {cached_key(word) for word in self.trigger.split(",")}
        if own:
            raise ConfigError("plan.trigger_removed", tag=min(own))

    def label(self) -> str:
        return f"{self.title}: {counted(len(self.tags), 'tag')} into {self.trigger.strip()}"

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        pruned = caption.remove(lambda tag: cached_key(tag) in self.tags)
        return SetTrigger(self.trigger, "", self.separator).apply(pruned, facts)


def fold(
    proposal: Sequence[Trait], trigger: str, school: str, chosen: Collection[str] | None = None
) -> FoldIntoTrigger:
    """The edit of a proposal: what it proposes, or the keys that were `chosen` instead."""
    tags = {trait.key for trait in proposal if trait.proposed} if chosen is None else set(chosen)
    return FoldIntoTrigger(frozenset(tags), trigger, SCHOOLS[school].title)


def warnings(proposal: Sequence[Trait], chosen: Collection[str] | None = None) -> list[Sentence]:
    """What the user should know before: traits that stand on part of the set only."""
    meant = [one for one in proposal if (one.proposed if chosen is None else one.key in chosen)]
    return [
        Sentence("plan.partial", tag=one.key, percent=Decimals(100 * one.share, 0)) for one in meant if one.share < 0.9
    ]


def several_concepts(concepts: Collection[str]) -> Sentence | None:
    """A warning where one trigger word would be given to the pictures of several concepts."""
    named = sorted(concept for concept in concepts if concept)
    return Sentence("plan.several_concepts", concepts=named) if len(named) > 1 else None
