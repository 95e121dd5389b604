"""What is known of tags: which implies which, what kind of thing each names, which exclude each other.

The tables in `data/` were written for this project from general knowledge of how booru tags are used; they are not
taken from a site's database, and are under the project's licence (AGPL-3.0). A set may add to them with files of the
same names and columns in its `.trainer/` folder, or a user with a folder of their own.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

from lib_trainer.captions.document import cached_key
from lib_trainer.captions.tags import TagPatterns
from lib_trainer.refusals import DatasetError

DATA = Path(__file__).with_name("data")
GROUPS = (
    "count", "hair", "eyes", "body", "face", "expression", "clothes", "accessories", "pose", "view", "background",
    "style", "other",
)  # fmt: skip
"""Kinds of tags, in the order in which they are shown."""


class TagScores(Protocol):
    """What a tagger knows of pictures. Tags may be in any spelling."""

    def scores(self, picture: Path) -> Mapping[str, float]:
        """{tag: 0 to 1} of a picture; empty where it was never scored."""

    def origins(self, picture: Path) -> Mapping[str, str]:
        """{tag: 'hand', or the model that gave it} as far as known."""


class NoScores:
    """Nothing was tagged here."""

    def scores(self, picture: Path) -> Mapping[str, float]:
        return {}

    def origins(self, picture: Path) -> Mapping[str, str]:
        return {}


@dataclass(frozen=True)
class Knowledge:
    """The tables. Keys are `tag_key`s.

    `implications`: {child: direct parents}. `exclusive`: (name, tags of which a picture has one, condition, excuse):
    two of them on one picture contradict each other where the condition holds and no excusing tag is there.
    """

    implications: Mapping[str, frozenset[str]] = field(default_factory=dict)
    groups: tuple[tuple[str, TagPatterns], ...] = ()
    exclusive: tuple[Exclusive, ...] = ()
    asymmetric: TagPatterns = field(default_factory=TagPatterns)

    def group(self, key: str) -> str:
        """One of `GROUPS`; 'other' for what the tables do not know."""
        known = self._memory.get(key)
        if known is None:
            known = next((name for name, patterns in self.groups if patterns.matches(key)), "other")
            self._memory[key] = known
        return known

    @cached_property
    def _memory(self) -> dict[str, str]:
        return {}

    def parents(self, key: str) -> frozenset[str]:
        """Everything that a tag implies, directly or through others; never the tag itself."""
        found: set[str] = set()
        waiting = list(self.implications.get(key, ()))
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting.extend(self.implications.get(one, ()))
        return frozenset(found - {key})

    def knows(self, key: str) -> bool:
        """Whether a tag stands in a table by its name or a pattern."""
        return key in self.implications or self.group(key) != "other"


@dataclass(frozen=True)
class Exclusive:
    """Tags of which one picture has at most one. `needs`: 'solo' or empty; `unless`: tags that excuse it."""

    name: str
    tags: TagPatterns
    needs: TagPatterns
    unless: TagPatterns


@lru_cache(maxsize=1)
def built_in() -> Knowledge:
    """The project's own tables."""
    return read_knowledge(())


def read_knowledge(folders: Iterable[Path]) -> Knowledge:
    """The project's tables and those of the same name in `folders`. Raises `DatasetError` naming a bad line."""
    places = [DATA, *folders]
    implications: dict[str, set[str]] = {}
    for child, parent in _rows(places, "implications.csv", ("child", "parent")):
        implications.setdefault(cached_key(child), set()).add(cached_key(parent))
    entries: dict[str, list[str]] = {}
    # what a user adds decides before our own patterns do
    for group, tags in _rows([*reversed(places)], "groups.csv", ("group", "tags")):
        entries.setdefault(group, []).extend(tag.strip() for tag in tags.split(";"))
    if wrong := set(entries) - set(GROUPS):
        raise DatasetError("groups.unknown", group=min(wrong), known=GROUPS)
    exclusive = [
        Exclusive(name, *(TagPatterns.of([tag for tag in map(str.strip, cell.split(";")) if tag]) for cell in cells))
        for name, *cells in _rows(places, "exclusive.csv", ("name", "tags", "needs", "unless"))
    ]
    asymmetric = [row[0] for row in _rows(places, "asymmetric.csv", ("tag",))]
    # exact names decide before wildcards do, whatever their group
    exact = [(name, TagPatterns(keys=TagPatterns.of(tags).keys)) for name, tags in entries.items()]
    wild = [(name, TagPatterns.of([tag for tag in tags if "*" in tag or "?" in tag])) for name, tags in entries.items()]
    return Knowledge(
        {child: frozenset(parents - {child}) for child, parents in implications.items()},
        (*exact, *wild),
        tuple(exclusive),
        TagPatterns.of(asymmetric),
    )


def _rows(folders: Iterable[Path], name: str, columns: tuple[str, ...]) -> list[list[str]]:
    """The rows of a table in every folder that has it. Lines that begin with # are remarks."""
    rows = []
    for path in (folder / name for folder in folders):
        if not path.exists():
            continue
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError("groups.unreadable", path=path) from error
        lines = [line if line.strip() and not line.startswith("#") else "" for line in text.splitlines()]
        try:
            table = list(csv.reader(io.StringIO("\n".join(lines))))
        except csv.Error as error:  # a cell of more than 128 KiB; under Python 3.10 a zero byte too
            raise DatasetError("groups.unreadable", path=path) from error
        for number, row in enumerate(table, 1):
            cells = [cell.strip() for cell in row]
            if not any(cells) or cells == list(columns):
                continue
            if len(cells) != len(columns) or not cells[0]:
                raise DatasetError("groups.columns", line=number, path=path, columns=columns)
            rows.append(cells)
    return rows
