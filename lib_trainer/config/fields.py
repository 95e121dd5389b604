"""Descriptions of the options, read from the schema's annotations: what the page, the docs and the errors show."""

from __future__ import annotations

import functools
import typing
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from lib_trainer.config.base import KINDS, Section
from lib_trainer.config.schema import JobConfig
from lib_trainer.refusals import Field, Sentence


@dataclass(frozen=True)
class FieldSpec:
    """One option. `path` is `section.field`; `low`/`high` are inclusive and None where there is no bound.

    `kinds` of training read it; `names` are how the page shows some choices; `is_path`: it names a file or folder.
    """

    path: str
    section: str
    label: str
    help: str
    kind: Literal["int", "float", "bool", "str", "choice"]
    default: Any
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    unit: str = ""
    step: float | None = None
    advanced: bool = False
    kinds: tuple[str, ...] = KINDS
    names: tuple[tuple[str, str], ...] = ()
    is_path: bool = False

    def shown_as(self, choice: Any) -> str:
        """A choice as the page shows it."""
        return dict(self.names).get(str(choice), str(choice))

    @property
    def allowed(self) -> Sentence:
        """The allowed values in words, as the end of "it must be …"."""
        if self.kind == "choice":
            return Sentence("allowed.choice", choices=self.choices)
        if self.low is None or self.high is None:
            return ALLOWED[self.kind]
        if self.kind == "int":
            return Sentence("allowed.whole_from_to", low=self.low, high=self.high)
        return Sentence("allowed.number_from_to", low=self.low, high=self.high)


ALLOWED = {
    "int": Sentence("allowed.whole"),
    "float": Sentence("allowed.number"),
    "bool": Sentence("allowed.switch"),
    "str": Sentence("allowed.text"),
}


def label_of(field: Field, begins: bool = True) -> str:
    """What the page calls an option: its label, in quotes within a sentence."""
    spec = field_specs().get(field.path)
    label = spec.label if spec is not None else field.label
    if not label:
        return field.path
    return label if begins else f"“{label}”"


@functools.cache
def field_specs() -> dict[str, FieldSpec]:
    """Every option by its path, in the order of the schema."""
    specs: dict[str, FieldSpec] = {}
    for section in msgspec.structs.fields(JobConfig):
        if isinstance(section.type, type) and issubclass(section.type, Section):
            hints = typing.get_type_hints(section.type, include_extras=True)
            for field in msgspec.structs.fields(section.type):
                spec = _spec(section.name, section.type, field, hints[field.name])
                specs[spec.path] = spec
    return specs


def _spec(name: str, section: type[Section], field: msgspec.structs.FieldInfo, hint: Any) -> FieldSpec:
    base, meta = typing.get_args(hint)[0], typing.get_args(hint)[1]
    choices = typing.get_args(base) if typing.get_origin(base) is Literal else ()
    kinds: dict[Any, Literal["int", "float", "bool", "str"]] = {int: "int", float: "float", bool: "bool", str: "str"}
    extra = meta.extra or {}
    return FieldSpec(
        path=f"{name}.{field.name}",
        section=section.__doc__ or name,
        label=meta.title,
        help=meta.description,
        kind="choice" if choices else kinds[base],
        default=field.default,
        low=meta.ge,
        high=meta.le,
        choices=choices,
        unit=extra.get("unit", ""),
        step=extra.get("step"),
        advanced=extra.get("advanced", False),
        kinds=extra.get("kinds", KINDS),
        names=tuple(extra.get("names", {}).items()),
        is_path=extra.get("path", False),
    )
