"""How tags become a caption: spelling, order, lists, and what happens to a caption that is there.

A tag of a caption counts as written by hand unless the store says that a tagger wrote it; such tags always survive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lib_trainer.captions.tags import TagPatterns, escape, join_tags, split_tags, tag_key, with_spaces
from lib_trainer.errors import ConfigError
from lib_trainer.tagging.choices import DEFAULT_TEMPLATE, POLICIES, SORTS, Policy, Sort
from lib_trainer.tagging.pictures import check_template
from lib_trainer.tagging.store import HAND

SEPARATOR = "|||"
"""sd-scripts' mark behind the tags that keep their place; what stands before it is never touched."""


@dataclass(frozen=True)
class Style:
    """How captions are written; `policy` and `sort` as in `choices`.

    `always`: tags put behind the trigger word. `excluded`: never written by the tagger. `foreign`: a caption's tags
    that no record knows come from another tagger and may be replaced. `restore`: tags that a person has removed may
    come back.
    """

    policy: Policy = "merge"
    sort: Sort = "score"
    underscores: bool = False
    escaped: bool = False
    trigger: str = ""
    always: tuple[str, ...] = ()
    excluded: TagPatterns = field(default_factory=TagPatterns)
    foreign: bool = False
    restore: bool = False
    template: str = DEFAULT_TEMPLATE

    def __post_init__(self) -> None:
        for name, value, allowed in (("policy", self.policy, POLICIES), ("sort", self.sort, SORTS)):
            if value not in allowed:
                raise ConfigError(f"The {name} '{value}' is not one: choose {', '.join(allowed)}.")
        check_template(self.template)

    @property
    def front(self) -> tuple[str, ...]:
        """The trigger word's tags, then `always`, each once."""
        return tuple(_distinct([*split_tags(self.trigger), *self.always]))

    def spelt(self, name: str) -> str:
        """A label's name as it is written."""
        text = name if self.underscores else with_spaces(name)
        return escape(text) if self.escaped else text


@dataclass(frozen=True)
class Guess:
    """A tag of the tagger's for one picture. `origin`: 'model-name score'; 'hand' where it was accepted by hand."""

    name: str
    score: float
    origin: str


@dataclass(frozen=True)
class Existing:
    """A caption that is there. `head`: what stands before `|||`, with it; `origins`: {tag_key: origin} on record."""

    text: str
    tags: tuple[str, ...]
    head: str = ""
    origins: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, origins: Mapping[str, str]) -> Existing:
        before, mark, after = text.rpartition(SEPARATOR)
        head = f"{before.strip()} {SEPARATOR}".strip() if mark else ""
        return cls(text, tuple(split_tags(after)), head, origins)

    def machine(self, tag: str, foreign: bool) -> bool:
        """Whether a tag was written by a tagger and may go."""
        origin = self.origins.get(tag_key(tag))
        return foreign if origin is None else origin != HAND

    def head_tags(self) -> list[str]:
        """The tags before the separator."""
        return split_tags(self.head.replace(SEPARATOR, ","))


@dataclass(frozen=True)
class Composed:
    """A caption as it will be. `origins`: {tag with spaces: origin} of those that a tagger wrote."""

    text: str
    origins: Mapping[str, str]


def ordered(guesses: Sequence[Guess], sort: Sort, frequency: Mapping[str, int]) -> list[Guess]:
    """`frequency`: {tag_key: pictures}; the commonest first. Ties go by score, then by name."""
    if sort == "alphabet":
        return sorted(guesses, key=lambda guess: tag_key(guess.name))
    common = frequency if sort == "frequency" else {}
    return sorted(guesses, key=lambda guess: (-common.get(tag_key(guess.name), 0), -guess.score, guess.name))


def compose(
    existing: Existing | None,
    guesses: Sequence[Guess],
    style: Style,
    frequency: Mapping[str, int] | None = None,
    rejected: frozenset[str] = frozenset(),
) -> Composed | None:
    """The caption that a picture gets, or None where it stays as it is (no difference, or the policy says so).

    `guesses`: without what is excluded. `rejected`: keys of tags that were rejected by hand; they go, whoever wrote
    them.
    """
    old = existing or Existing("", ())
    if style.policy == "skip" and (old.tags or old.head):
        return None
    found = [(style.spelt(g.name), g.origin) for g in ordered(guesses, style.sort, frequency or {})]
    new_origins = {tag_key(tag): origin for tag, origin in found}
    kept = [tag for tag in old.tags if tag_key(tag) not in rejected]
    hand = [tag for tag in kept if not old.machine(tag, style.foreign)]
    machine = [name for name, _ in found]
    parts = {
        "skip": machine,
        "replace": [*hand, *machine],
        "prepend": [*machine, *kept],
        "append": [*kept, *machine],
        "merge": [*(tag for tag in kept if tag in set(hand) or tag_key(tag) in new_origins), *machine],
    }[style.policy]
    front = [escape(tag) if style.escaped else tag for tag in style.front]
    held = {tag_key(tag) for tag in old.head_tags()}
    tags = [tag for tag in _distinct([*front, *parts]) if tag_key(tag) not in held]
    text = join_tags(tags) if not old.head else f"{old.head} {join_tags(tags)}".strip()
    by_hand = {tag_key(tag) for tag in [*hand, *front]}
    origins = {}
    for tag in tags:
        key = tag_key(tag)
        known = (new_origins.get(key), old.origins.get(key))
        origin = HAND if HAND in known else None if key in by_hand else known[0] or known[1]
        if origin is not None:
            origins[with_spaces(tag)] = origin
    same = existing is not None and join_tags(split_tags(old.text)) == text
    return None if same or (existing is None and not text) else Composed(text, origins)


def _distinct(tags: Sequence[str]) -> list[str]:
    """Each tag once, by its key, the first spelling."""
    seen: dict[str, str] = {}
    for tag in tags:
        seen.setdefault(tag_key(tag), tag)
    return list(seen.values())
