"""How tags become a caption: spelling, order, lists, and what happens to a caption that is there.

A tag of a caption counts as written by hand unless the store says that a tagger wrote it; such tags always survive.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from lib_trainer.captions.document import Caption
from lib_trainer.captions.tags import TagPatterns, escape, split_tags, tag_key, unescape, with_spaces
from lib_trainer.refusals import ConfigError
from lib_trainer.tagging.choices import DEFAULT_TEMPLATE, POLICIES, SORTS, Policy, Sort
from lib_trainer.tagging.pictures import check_template
from lib_trainer.tagging.scores.store import HAND


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
        if self.policy not in POLICIES:
            raise ConfigError("style.policy", policy=self.policy, known=POLICIES)
        if self.sort not in SORTS:
            raise ConfigError("style.sort", sort=self.sort, known=SORTS)
        check_template(self.template)

    @property
    def front(self) -> tuple[str, ...]:
        """The trigger word's tags, then `always`, each once, as they are written."""
        return tuple(map(self._escaped, _distinct([*split_tags(self.trigger), *self.always])))

    def spelt(self, name: str) -> str:
        """A label's name as it is written."""
        return self._escaped(name if self.underscores else with_spaces(name))

    def _escaped(self, tag: str) -> str:
        """With backslashes before brackets where they are wanted, and never two for one."""
        return escape(unescape(tag)) if self.escaped else tag


@dataclass(frozen=True)
class Guess:
    """A tag of the tagger's for one picture. `origin`: 'model-name score'; 'hand' where it was accepted by hand."""

    name: str
    score: float
    origin: str


@dataclass(frozen=True)
class Existing:
    """A caption that is there. `head`: its part up to the last `|||` (sd-scripts' mark behind the tags that keep their
    place), which is never touched; `body`: the rest; `origins`: {tag_key: origin} on record."""

    caption: Caption = field(default_factory=Caption)
    origins: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def _parts(self) -> tuple[str, Caption]:
        return self.caption.parts()

    @property
    def text(self) -> str:
        """All of it, as in the file."""
        return self.caption.text

    @property
    def head(self) -> str:
        return self._parts[0]

    @property
    def body(self) -> Caption:
        return self._parts[1]

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags behind the head."""
        return self.body.tags

    def machine(self, tag: str, foreign: bool) -> bool:
        """Whether a tag was written by a tagger and may go."""
        origin = self.origins.get(tag_key(tag))
        return foreign if origin is None else origin != HAND

    def head_tags(self) -> tuple[str, ...]:
        """The tags before the separator."""
        return Caption.parse(self.head).tags


@dataclass(frozen=True)
class Composed:
    """A caption as it will be. `origins`: {tag with spaces: origin} of those that a tagger wrote."""

    caption: Caption
    origins: Mapping[str, str]

    @property
    def text(self) -> str:
        return self.caption.text


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

    What is there is edited and not made anew: line breaks, doubles and spellings of what was typed by hand stay as they
    are. In a caption of several lines the tagger's tags are a line of their own.

    `guesses`: without what is excluded. `rejected`: keys of tags that were rejected by hand; they go, whoever wrote
    them.
    """
    old = existing or Existing()
    if style.policy == "skip" and (old.tags or old.head):
        return None
    found = [(style.spelt(g.name), g.origin) for g in ordered(guesses, style.sort, frequency or {})]
    new_origins = {tag_key(tag): origin for tag, origin in found}
    held = {tag_key(tag) for tag in old.head_tags()}
    front = [tag for tag in style.front if tag_key(tag) not in held]
    kept = _kept(old, new_origins.keys(), {tag_key(tag) for tag in front}, style, rejected)
    by_hand = {
        tag_key(tag) for tag in [*style.front, *(tag for tag in kept.tags if not old.machine(tag, style.foreign))]
    }
    body = _with_front(kept, front)
    there = held.union(map(tag_key, body.tags))
    fresh = _distinct([tag for tag, _ in found if tag_key(tag) not in there])
    if style.policy in ("replace", "prepend"):  # what counts as written by hand stands where the next time leaves it
        hand = [HAND in (new_origins.get(tag_key(tag)), old.origins.get(tag_key(tag))) for tag in fresh]
        first = [tag for tag, known in zip(fresh, hand, strict=True) if known == (style.policy == "replace")]
        fresh = [*first, *(tag for tag in fresh if tag not in first)]
    body = body.insert(len(front), fresh, _separator(body)) if style.policy == "prepend" else _behind(body, fresh, old)
    if body.tags == old.body.tags:  # what parts them is the user's
        return None
    text = old.head + (" " if old.head and body.tags and not body.gaps[0] else "") + body.text
    origins = {}
    for tag in body.tags:
        key = tag_key(tag)
        known = (new_origins.get(key), old.origins.get(key))
        origin = HAND if HAND in known else None if key in by_hand else known[0] or known[1]
        if origin is not None:
            origins[with_spaces(tag)] = origin
    return Composed(Caption.parse(text, old.caption.bom), origins)


def _kept(
    old: Existing, found: Collection[str], front: Collection[str], style: Style, rejected: Collection[str]
) -> Caption:
    """What stays of a caption: all that was typed by hand, and of a tagger's tags what the policy leaves."""

    def unwanted(tag: str) -> bool:
        key = tag_key(tag)
        if key in front or key in rejected:
            return key not in front
        if not old.machine(tag, style.foreign) or style.policy in ("append", "skip"):
            return False
        return style.policy == "replace" or (key in found) == (style.policy == "prepend")

    return old.body.remove(unwanted)


def _with_front(body: Caption, front: Sequence[str]) -> Caption:
    """With these tags in front; those that stand elsewhere are moved, their doubles stay."""
    wanted, keys = [tag_key(tag) for tag in front], [tag_key(tag) for tag in body.tags]
    if keys[: len(front)] == wanted:
        return body
    moved = {keys.index(key) for key in wanted if key in keys}
    return body.without(moved).insert(0, front, _separator(body))


def _behind(body: Caption, fresh: Sequence[str], old: Existing) -> Caption:
    """With new tags at the end: of the line, or in a line of their own where there are several that somebody wrote."""
    if not fresh:
        return body
    breaks = [index for index, gap in enumerate(body.gaps[1:-1], start=1) if "\n" in gap or "\r" in gap]
    if not breaks or all(old.machine(tag, foreign=False) for tag in body.tags[breaks[-1] :]):
        return body.insert(len(body.tags), fresh, _separator(body))
    last, newline = body.gaps[-1], "\r\n" if "\r\n" in old.text else "\n"
    ends = "\n" in last or "\r" in last
    between = last if ends else last + newline
    gaps = (*body.gaps[:-1], between, *(", ",) * (len(fresh) - 1), newline if ends else "")
    return Caption(body.tags + tuple(fresh), gaps, body.bom)


def _separator(body: Caption) -> str:
    """What new tags are parted by: what parts those that are there, unless it ends a line."""
    usual = body.separator
    return ", " if "\n" in usual or "\r" in usual else usual


def _distinct(tags: Sequence[str]) -> list[str]:
    """Each tag once, by its key, the first spelling."""
    seen: dict[str, str] = {}
    for tag in tags:
        seen.setdefault(tag_key(tag), tag)
    return list(seen.values())
