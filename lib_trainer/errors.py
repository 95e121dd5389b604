"""Errors meant for the user's eyes: each message is one sentence that names the field or file and the remedy."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FIELD = re.compile(r"[a-z]+\.[a-z_]+\b")
"""An option's path, with which the sentence on it begins."""
UNPRINTED = frozenset({"Cc", "Cs", "Zl", "Zp"})
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of writing, and so what a line seems to say."""


def printable(text: str) -> str:
    """The text with control characters, halves of characters and turning marks as Python writes them (`\\t`, `\\x1b`).

    What comes from a file's name or content may hold anything; a terminal would carry it out.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if character in TURNING or unicodedata.category(character) in UNPRINTED
        else character
        for character in text
    )


class TrainerError(Exception):
    """Something the user can mend. `str(error)` is the sentence that is shown.

    `kept` is the file that holds the last good weights, where a run had any. `field` is the option that is to be
    mended, where the sentence does not begin with its path.
    """

    kept: Path | None = None
    trace: str = ""
    """Where it came from, as text for a log, if it stands for another error."""
    field: str = ""

    def __str__(self) -> str:
        return printable(super().__str__())

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong, field by field."""
        sentence = str(self)
        field = FIELD.match(sentence)
        return (Problem(field.group() if field else self.field, sentence),)


@dataclass(frozen=True)
class Problem:
    """One thing to mend: the option's path (empty where it is none's), and the sentence that is shown.

    Where a name is taken: the file that has it, the next name that is free, and whether the file can be replaced.
    """

    field: str
    sentence: str
    taken: Path | None = None
    free: str = ""
    replaceable: bool = False


class ConfigError(TrainerError):
    """A field of a job is missing, unknown or out of range. Raised before any model is touched."""


class NameTaken(ConfigError):
    """A result of that name exists: `taken` is its file, `free` the next name that is free (empty if none is known).

    `replaceable`: the job may say that the file goes to the trash.
    """

    def __init__(self, sentence: str, *, taken: Path, free: str = "", replaceable: bool = False) -> None:
        super().__init__(sentence)
        self.taken, self.free, self.replaceable = taken, free, replaceable

    @property
    def problems(self) -> tuple[Problem, ...]:
        facts: dict[str, Any] = {"taken": self.taken, "free": self.free, "replaceable": self.replaceable}
        return tuple(replace(problem, **facts) for problem in super().problems)


class JobErrors(ConfigError):
    """Several things are wrong with a job."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(problem.sentence for problem in problems))
        self._problems = problems

    def __str__(self) -> str:
        return "\n".join(problem.sentence for problem in self._problems)

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self._problems


class Problems:
    """Collects what is wrong over several checks, so that all of it is told at once."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self._errors: list[TrainerError] = []

    @contextlib.contextmanager
    def at(self, field: str = "", *, but: Collection[str] = ()) -> Iterator[None]:
        """What is raised inside is kept. It belongs to `field`, unless its sentence begins with another's path.

        What is said of the fields `but` is left out.
        """
        try:
            yield
        except TrainerError as error:
            self.add(error, field, but=but)

    def add(self, error: TrainerError, field: str = "", *, but: Collection[str] = ()) -> None:
        """Keep an error, as `at` does."""
        error.field = error.field or field
        more = [problem for problem in error.problems if problem.field not in but and problem not in self.found]
        self.found += more
        if more:
            self._errors.append(error)

    def of(self, field: str) -> bool:
        """Whether something is wrong with that option."""
        return any(problem.field == field for problem in self.found)

    def raise_if_any(self) -> None:
        """Raise the one error as it was, or `JobErrors`."""
        if len(self._errors) == 1 and self._errors[0].problems == tuple(self.found):
            raise self._errors[0]
        if self.found:
            raise JobErrors(tuple(self.found))


class DatasetError(TrainerError):
    """The folder of pictures cannot be used."""


class ModelError(TrainerError):
    """No model is loaded, or it cannot be trained as it is."""


class TaggerError(TrainerError):
    """A tagger's folder, a download or the cache of scores cannot be used."""


class SaveError(TrainerError):
    """A file could not be written; the last good file is untouched."""


class NumericalError(TrainerError):
    """The loss is no longer a finite number."""


class MemoryShort(TrainerError):
    """A job seems not to fit the memory that is free, and nobody has said yet that it is to be started all the same."""


class MemoryExhausted(TrainerError):
    """The device ran out of memory; the message says what to lower."""
