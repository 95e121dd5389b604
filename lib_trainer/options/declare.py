"""How an option is declared: all that is known of it stands beside its field and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, Literal, ParamSpec

import msgspec
from msgspec import Meta

Given = ParamSpec("Given")

Place = Literal["", "path", "path or name"]
"""What a text names: nothing on the disk, a file or folder, or one of these or a name that the host knows."""

Width = Literal["", "wide", "grows", "tall"]
"""Of a field on a page: half of the width, or all of it: one line, as many as are written, or two and more."""


Existing = Literal["refuse", "number", "replace"]
"""What becomes of a file whose name a new one is to have."""

EXISTING = {"refuse": "refuse", "number": "take the next free name", "replace": "replace, keep in the trash"}
"""As a page shows it."""


@dataclass(frozen=True)
class When:
    """A condition on another option: its value is one of `values`, or none of them where `negated`.

    It is also met where one of `others` is.
    """

    path: str
    values: tuple[Any, ...]
    negated: bool = False
    others: tuple[When, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The options that it looks at."""
        return (self.path, *(path for other in self.others for path in other.paths))

    def holds(self, value: Any) -> bool:
        """Whether its own part is met."""
        known = value.strip() if isinstance(value, str) else value
        return (known in self.values) != self.negated

    def met(self, values: Mapping[str, Any]) -> bool:
        """Whether it is met where options are `values`; what these do not say is."""
        return (
            self.path not in values or self.holds(values[self.path]) or any(other.met(values) for other in self.others)
        )

    @property
    def words(self) -> str:
        """As a document says it."""
        own = replace(self, others=())._own_words
        return " or ".join([own, *(other.words for other in self.others)])

    @property
    def _own_words(self) -> str:
        if self == given(self.path):
            return f"where `{self.path}` is given"
        if self.negated:
            return f"unless `{self.path}` is {' or '.join(str(value) for value in self.values)}"
        if self.values == (True,):
            return f"with `{self.path}`"
        return f"where `{self.path}` is {' or '.join(str(value) for value in self.values)}"


def one_of(path: str, *values: Any) -> When:
    return When(path, values)


def none_of(path: str, *values: Any) -> When:
    return When(path, values, negated=True)


def given(path: str) -> When:
    """Neither empty nor 0 nor off."""
    return When(path, ("", 0), negated=True)


def any_of(first: When, *others: When) -> When:
    """One of them is enough."""
    return replace(first, others=others)


@dataclass(frozen=True)
class Group:
    """What options have in common: when they are read, and with that when they are shown."""

    when: tuple[When, ...] = ()


ANYBODY = Group()
"""For an option that is read always, in a section whose others are not."""


@dataclass(frozen=True)
class Declared:
    """All that is said of an option beside its type and default.

    Args:
        low, high: Bounds of a number; both are allowed. None where there is no bound.
        step: What one press of an arrow adds, or a slider's step.
        advanced: Folded away once more inside of its section's fold on a page.
        first: Its place, from 1 on, among the few that everybody sets, which stand before all folds of a page; 0: in
            its section.
        names: Of choices, as a page shows them.
        bare: A page shows the label without the help.
        headless: Read by the command line alone; pages do not show it.
        offers: Under what name the place that shows the form offers values; an empty one is its default.
        files: Under what name a page lists files for it, to choose from or to write another. One a line, if several.
        file_name: Letters with marks are brought into one form of Unicode, as macOS hands them out in another.
        flag: What the command line calls it, where that is not the field's name. One that begins with `no-` turns a
            switch off.
        repeats: The command line may give it several times, line by line.
        when: Conditions beside the group's.
        family: A property of families of models (`lib_trainer/families`): where the loaded model's has it not, it is
            not read, and a page does not show it.
        inpainting: The same of models that do not inpaint.
        group: What it shares with others; the section's own where it is missing.
    """

    label: str
    help: str
    _: KW_ONLY
    low: float | None = None
    high: float | None = None
    unit: str = ""
    step: float | None = None
    advanced: bool = False
    first: int = 0
    names: Mapping[Any, str] = field(default_factory=dict, hash=False)
    place: Place = ""
    width: Width = ""
    slider: bool = False
    bare: bool = False
    headless: bool = False
    offers: str = ""
    files: str = ""
    file_name: bool = False
    flag: str = ""
    repeats: bool = False
    when: When | tuple[When, ...] = ()
    group: Group | None = None
    family: str = ""
    inpainting: bool = False

    @property
    def conditions(self) -> tuple[When, ...]:
        return (self.when,) if isinstance(self.when, When) else self.when


def _annotated_by(declared: Callable[Given, Declared]) -> Callable[Given, Meta]:
    def option(*args: Given.args, **options: Given.kwargs) -> Meta:
        """The annotation of a field: what `Declared` takes."""
        own = declared(*args, **options)
        return Meta(title=own.label, description=own.help, extra={"option": own}, ge=own.low, le=own.high)

    return option


option = _annotated_by(Declared)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of options: a fold on a page and a table in a file. `GROUP` holds for its options that name none."""

    GROUP: ClassVar[Group] = ANYBODY
