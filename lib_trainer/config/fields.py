"""Descriptions of the options, read from the schema's annotations: what the page, the docs and the errors show."""

from __future__ import annotations

import functools
import typing
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from lib_trainer.config.base import KINDS, Section
from lib_trainer.config.schema import JobConfig


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
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.kind == "choice":
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        noun = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}[self.kind]
        if self.low is not None and self.high is not None:
            return f"{noun} from {_number(self.low)} to {_number(self.high)}"
        return noun


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


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
