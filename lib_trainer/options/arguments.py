"""Options as arguments of a command: flags, and the values of those that were given."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lib_trainer.options.describe import FieldSpec


def add_arguments(parser: Any, specs: Iterable[FieldSpec], untold: Collection[str] = ()) -> None:
    """A flag for each option. The help says no default of those `untold`, which the command finds by itself."""
    for spec in specs:
        flag = spec.argument
        common: dict[str, Any] = {"dest": _place(spec), "default": None, "help": _help(spec, untold)}
        metavar = spec.label.split()[0].strip(",").upper()
        if spec.kind == "bool":
            parser.add_argument(flag, action="store_const", const=not spec.default, **common)
        elif spec.kind == "choice":
            parser.add_argument(flag, choices=list(spec.choices), **common)
        elif spec.kind == "list" or spec.repeats:
            parser.add_argument(flag, action="append", metavar=metavar, **common)
        elif spec.kind == "str":
            parser.add_argument(flag, metavar=metavar, **common)
        else:
            parser.add_argument(flag, type=int if spec.kind == "int" else float, metavar=metavar, **common)


def given_values(options: argparse.Namespace, specs: Mapping[str, FieldSpec]) -> dict[str, Any]:
    """{path: value} of the options that were given."""
    given = {}
    for path, spec in specs.items():
        value = getattr(options, _place(spec), None)
        if value is not None:
            given[path] = tuple(value) if spec.kind == "list" else "\n".join(value) if spec.repeats else value
    return given


def _place(spec: FieldSpec) -> str:
    """In argparse's namespace, where a command keeps things of its own."""
    return f"option {spec.path}"


def _help(spec: FieldSpec, untold: Collection[str]) -> str:
    text = f"{spec.label}: {spec.help[0].lower()}{spec.help[1:]}".rstrip(".")
    if spec.kind == "bool" and spec.default:
        return f"turn off: {text}".replace("%", "%%")
    told = "; may be repeated" if spec.kind == "list" or spec.repeats else ""
    silent = spec.kind in ("bool", "list") or spec.default in ("", None) or spec.path in untold
    return (text + told + ("" if silent else f" (default: {spec.default})")).replace("%", "%%")
