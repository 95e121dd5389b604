"""Descriptions of declared options: what pages, files, commands, documents and refusals know of them."""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import msgspec

from lib_trainer.options.declare import Declared, Group, When
from lib_trainer.refusals import Sentence

Kind = Literal["int", "float", "bool", "str", "choice", "list"]
ALLOWED = {
    "int": Sentence("allowed.whole"),
    "float": Sentence("allowed.number"),
    "bool": Sentence("allowed.switch"),
    "str": Sentence("allowed.text"),
    "list": Sentence("allowed.texts"),
}
TYPES: dict[Any, Kind] = {int: "int", float: "float", bool: "bool", str: "str"}


@dataclass(frozen=True, kw_only=True)
class FieldSpec(Declared):
    """One option: what is declared of it, and what its place says. `path` is `section.field`, or the field alone where
    there are no sections; `kind` "list" is several texts. It is read, and shown, where all of `when` hold.
    """

    path: str
    section: str
    kind: Kind
    default: Any
    choices: tuple[Any, ...] = ()
    when: tuple[When, ...] = ()
    kinds: tuple[str, ...] = ()
    """Of training that read an option of a job."""

    @property
    def name(self) -> str:
        """The field's."""
        return self.path.rpartition(".")[2]

    @property
    def argument(self) -> str:
        """What the command line calls it, where it is a flag."""
        return "--" + (self.flag or self.name.replace("_", "-"))

    @property
    def is_path(self) -> bool:
        """Whether it names a file or folder."""
        return self.place != ""

    def shown_as(self, choice: Any) -> str:
        """A choice as a page shows it."""
        return {str(one): shown for one, shown in self.names.items()}.get(str(choice), str(choice))

    def shown_in(self, values: Mapping[str, Any]) -> bool:
        """Whether it is read where the others are `values`; what these do not say is met."""
        return all(when.met(values) for when in self.when)

    def values_of(self, path: str) -> tuple[Any, ...]:
        """The values of another option by which this one is read; empty where that one does not matter."""
        return next((when.values for when in self.when if when.path == path), ())

    @property
    def allowed(self) -> Sentence:
        """The allowed values in words, as the end of "it must be …"."""
        if self.kind == "choice":
            return Sentence("allowed.choice", choices=self.choices)
        if self.low is None:
            return ALLOWED[self.kind]
        whole = self.kind == "int"
        if self.high is None:
            return Sentence("allowed.whole_from" if whole else "allowed.number_from", low=self.low)
        return Sentence("allowed.whole_from_to" if whole else "allowed.number_from_to", low=self.low, high=self.high)

    def takes(self, value: Any) -> bool:
        """Whether a value is of the option's kind and keeps its bounds."""
        if self.kind == "choice":
            return value in self.choices
        if self.kind == "list":
            return isinstance(value, tuple) and all(isinstance(one, str) for one in value)
        if self.kind in ("bool", "str"):
            return isinstance(value, bool if self.kind == "bool" else str)
        right = isinstance(value, int if self.kind == "int" else (int, float)) and not isinstance(value, bool)
        return right and (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


def describe(declared: type[Any], prefix: str = "") -> dict[str, FieldSpec]:
    """The options of a section, or of any class whose fields are annotated so, by path and in order."""
    return dict(_described(declared, prefix))  # type: ignore[arg-type]  # a class is hashable


@functools.cache
def _described(declared: type[Any], prefix: str) -> Mapping[str, FieldSpec]:
    """Once: annotations do not change, and to work them out takes milliseconds."""
    hints = typing.get_type_hints(declared, include_extras=True)
    group = getattr(declared, "GROUP", Group())
    found = {}
    for name, default in _defaults(declared).items():
        base, meta = typing.get_args(hints[name])[:2]
        found[f"{prefix}{name}"] = _spec(f"{prefix}{name}", declared, base, meta, default, group)
    return found


def _defaults(declared: type[Any]) -> dict[str, Any]:
    of_struct = issubclass(declared, msgspec.Struct)
    return {one.name: one.default for one in (msgspec.structs.fields(declared) if of_struct else fields(declared))}


def _spec(path: str, section: type[Any], base: Any, meta: msgspec.Meta, default: Any, group: Group) -> FieldSpec:
    own: Declared = (meta.extra or {})["option"]
    choices = typing.get_args(base) if typing.get_origin(base) is Literal else ()
    kind: Kind = "choice" if choices else "list" if typing.get_origin(base) is tuple else TYPES[base]
    when = (*(own.group or group).when, *own.conditions)
    place = {"path": path, "section": section.__doc__ or path.rpartition(".")[0]}
    return FieldSpec(**vars(own) | place | {"kind": kind, "default": default, "choices": choices, "when": when})
