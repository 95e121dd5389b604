"""Job files: TOML in and out, checked against the schema.

A file of an older version passes through `MIGRATIONS` (pure dict → dict) before it is checked.
"""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from lib_trainer.config.fields import field_specs
from lib_trainer.config.schema import JobConfig
from lib_trainer.errors import ConfigError
from lib_trainer.files import write_atomically

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10, the WebUI's own
    import tomli as tomllib

CURRENT_VERSION = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From version N to N + 1."""


def load_job(path: Path) -> JobConfig:
    """Read a job file. Raises `ConfigError` naming the file and the field."""
    try:
        data = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"There is no job file {path}: check the path.") from None
    except OSError as error:
        raise ConfigError(f"The job file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}.") from error
    return from_mapping(data, source=str(path))


def dump_job(job: JobConfig, path: Path) -> None:
    """Write a job file that `load_job` reads back equal."""
    write_atomically(path, tomli_w.dumps(msgspec.to_builtins(job)).encode())


def from_values(values: Mapping[str, Any]) -> JobConfig:
    """A job from a flat {path: value}, as a form gives it; absent fields take their defaults."""
    data: dict[str, Any] = {"version": CURRENT_VERSION}
    for path, value in values.items():
        section, _, name = path.partition(".")
        data.setdefault(section, {})[name] = _whole(path, value)
    return from_mapping(data)


def to_values(job: JobConfig) -> dict[str, Any]:
    """The flat {path: value} of a job: the inverse of `from_values`."""
    return {path: _lookup(msgspec.to_builtins(job), path) for path in field_specs()}


def from_mapping(data: Mapping[str, Any], source: str = "the job") -> JobConfig:
    """Check a nested mapping. Raises `ConfigError` naming the field, the value and what is allowed."""
    plain = dict(data)
    version = plain.setdefault("version", CURRENT_VERSION)
    if not isinstance(version, int) or not 1 <= version <= CURRENT_VERSION:
        raise ConfigError(
            f"version = {version!r} in {source} is not known: this trainer reads up to {CURRENT_VERSION}, update it."
        )
    for step in range(version, CURRENT_VERSION):
        plain = MIGRATIONS[step](plain)
    plain["version"] = CURRENT_VERSION
    _compose_names(plain)
    for path, value in ((path, _lookup(plain, path)) for path in field_specs()):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path} = {value} in {source} is not allowed: it must be {field_specs()[path].allowed}.")
    try:
        return msgspec.convert(plain, JobConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(_sentence(str(error), plain, source)) from error


def _compose_names(data: dict[str, Any]) -> None:
    """One form of Unicode for names of files: macOS hands out letters and their marks apart, which look the same."""
    for section, name in (("output", "name"), ("embedding", "names")):
        table = data.get(section)
        if isinstance(table, Mapping) and isinstance(table.get(name), str):
            data[section] = {**table, name: unicodedata.normalize("NFC", table[name])}


def _sentence(message: str, data: Mapping[str, Any], source: str) -> str:
    """Turn msgspec's 'Expected `int` >= 1 - at `$.network.rank`' into a sentence with the value and the range."""
    at = re.search(r"at `\$\.?([^`]*)`", message)
    path = at.group(1) if at else ""
    unknown = re.search(r"unknown field `([^`]*)`", message)
    if unknown:
        where = f"{path}.{unknown.group(1)}" if path else unknown.group(1)
        return f"{where} in {source} is not an option: remove it or correct its name."
    spec = field_specs().get(path)
    if spec is None:
        return f"{path or 'A value'} in {source} is not as expected: {message.split(' - ')[0]}."
    return f"{path} = {_lookup(data, path)!r} in {source} is not allowed: it must be {spec.allowed}."


def _lookup(data: Mapping[str, Any], path: str) -> Any:
    section, _, name = path.partition(".")
    table = data.get(section, {})
    return table.get(name) if isinstance(table, Mapping) else None


def _whole(path: str, value: Any) -> Any:
    """Forms hand whole numbers over as floats; an empty number field comes as None and is named as such."""
    spec = field_specs().get(path)
    if spec is not None and value is None:
        raise ConfigError(f"{path} is empty: it must be {spec.allowed}.")
    integral = spec is not None and (spec.kind == "int" or (spec.kind == "choice" and isinstance(spec.default, int)))
    return int(value) if integral and isinstance(value, float) and value.is_integer() else value
