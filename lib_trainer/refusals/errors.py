"""What is refused, and why: exceptions with a sentence, the option it is about, and what a page can offer."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib_trainer.refusals.sentences import Field, Joined, Sentence


class TrainerError(Exception):
    """Something the user can mend: a `Sentence`, whose English form is `str(error)`, and the option it belongs to.

    `field` is the path of that option, or a `Field`; the template may name it as `{field}`. The other keywords are the
    sentence's facts.
    """

    kept: Path | None = None
    """The file that holds the last good weights, where a run had any."""
    trace: str = ""
    """Where it came from, as text for a log, if it stands for another error."""

    def __init__(self, code: str | Sentence, /, *, field: str | Field = "", **facts: Any) -> None:
        super().__init__(code)
        one = field if isinstance(field, Field) else Field(field)
        if isinstance(code, Sentence):
            self.sentence = code
        else:
            self.sentence = Sentence(code, **({"field": one} if one.path or one.label else {}), **facts)
        self.field = one.path

    def __str__(self) -> str:
        return self.sentence.text()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong, field by field."""
        return (Problem(self.field, self.sentence),)


class UnexpectedError(TrainerError):
    """A defect of ours or of the host's, carried to the user with what was kept."""


@dataclass(frozen=True)
class Problem:
    """One thing to mend: the option's path (empty where it is none's), and the sentence that is shown.

    Where a name is taken: the file that has it, the next name that is free, and whether the file can be replaced.
    """

    field: str
    sentence: Sentence
    taken: Path | None = None
    free: str = ""
    replaceable: bool = False


class ConfigError(TrainerError):
    """A field of a job is missing, unknown or out of range. Raised before any model is touched."""


class NameTaken(ConfigError):
    """A result of that name exists: `taken` is its file, `free` the next name that is free (empty if none is known).

    `replaceable`: the job may say that the file goes to the trash.
    """

    def __init__(
        self, code: str, /, *, taken: Path, free: str = "", replaceable: bool = False, field: str = "", **facts: Any
    ) -> None:
        super().__init__(code, field=field, taken=taken, free=free, **facts)
        self.taken, self.free, self.replaceable = taken, free, replaceable

    @property
    def problems(self) -> tuple[Problem, ...]:
        facts: dict[str, Any] = {"taken": self.taken, "free": self.free, "replaceable": self.replaceable}
        return tuple(replace(problem, **facts) for problem in super().problems)


class JobErrors(ConfigError):
    """Several things are wrong with a job. `str(error)` has a line for each."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("job.errors", problems=Joined([problem.sentence for problem in problems]))
        self._problems = problems

    def __str__(self) -> str:
        return "\n".join(problem.sentence.text() for problem in self._problems)

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
        """What is raised inside is kept. It belongs to `field`, unless the error names one itself.

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
            raise self._errors.pop()  # its traceback holds this object, which must not hold it
        if self.found:
            raise JobErrors(tuple(self.found))


class Reason(ValueError):
    """What is wrong with a piece of something, for whoever reads the whole and refuses it with `reason=error`."""

    def __init__(self, code: str, /, **facts: Any) -> None:
        super().__init__(code)
        self.sentence = Sentence(code, **facts)

    def __str__(self) -> str:
        return self.sentence.text()


class DatasetError(TrainerError):
    """The folder of pictures cannot be used."""


class ModelError(TrainerError):
    """No model is loaded, or it cannot be trained as it is."""


class TaggerError(TrainerError):
    """A tagger's folder, a download or the cache of scores cannot be used."""


class SaveError(TrainerError):
    """A file could not be written; the last good file is untouched."""


class NumericalError(TrainerError):
    """The loss, a gradient or a weight is no longer a finite number."""


class MemoryShort(TrainerError):
    """A job seems not to fit the memory that is free, and nobody has said yet that it is to be started all the same."""


class MemoryExhausted(TrainerError):
    """The device ran out of memory; the sentence says what to lower."""
