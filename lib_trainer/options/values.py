"""Values of options by their paths, and values from what people type."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from lib_trainer.options.declare import Section
from lib_trainer.options.describe import FieldSpec, describe
from lib_trainer.refusals import ConfigError, Field

SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def lookup(data: Mapping[str, Any], path: str) -> Any:
    """The value of `section.field` in nested tables; None where it is not there."""
    section, _, name = path.partition(".")
    table = data.get(section, {})
    return table.get(name) if isinstance(table, Mapping) else None


def has(data: Mapping[str, Any], path: str) -> bool:
    """Whether nested tables say something of `section.field`."""
    section, _, name = path.partition(".")
    table = data.get(section)
    return isinstance(table, Mapping) and name in table


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """{path: value} as tables."""
    tables: dict[str, Any] = {}
    for path, value in values.items():
        section, _, name = path.partition(".")
        tables.setdefault(section, {})[name] = value
    return tables


def from_text(spec: FieldSpec, text: str) -> Any:
    """What a typed text means for an option; the text itself where it means nothing, for its check to refuse."""
    with contextlib.suppress(ValueError):
        if spec.kind == "int":
            return int(text) if "." not in text or not float(text).is_integer() else int(float(text))
        if spec.kind == "float":
            return float(text)
    if spec.kind == "bool":
        return SWITCHES.get(text.strip().lower(), text)
    if spec.kind == "choice":
        return {str(choice): choice for choice in spec.choices}.get(text, text)
    return text


def made(settings: type[Section], values: Mapping[str, Any]) -> Any:
    """A section from {option: value}. Raises `ConfigError` naming an option whose value is not allowed."""
    specs = describe(settings)
    for path, value in values.items():
        if not specs[path].takes(value):
            field = Field(path, specs[path].argument)
            raise ConfigError("toolbox.value", field=field, value=value, allowed=specs[path].allowed)
    return settings(**values)
