"""Job files: TOML in and out, checked against the schema.

A file of an older version passes through `MIGRATIONS` (pure dict → dict) before it is checked.
"""

from __future__ import annotations

import codecs
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from lib_trainer.config.fields import FieldSpec, field_specs
from lib_trainer.config.schema import JobConfig
from lib_trainer.errors import ConfigError, Problems, printable
from lib_trainer.files import write_atomically

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10, the WebUI's own
    import tomli as tomllib

CURRENT_VERSION = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From version N to N + 1."""
THE_JOB = "the job"
"""What a job is called that comes from no file."""
QUOTED_BACKSLASH = re.compile(r"""\s*([\w.-]+)\s*=\s*"[^"]*\\""")
"""A line of a key and a text in double quotes with a backslash in it, as one writes a path of Windows."""


def load_job(path: Path) -> JobConfig:
    """Read a job file, in UTF-8 or UTF-16, with any line ends. Raises `ConfigError` naming the file and the field."""
    try:
        text = _decoded(path.read_bytes())
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"There is no job file {path}: check the path.") from None
    except OSError as error:
        raise ConfigError(f"The job file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 or UTF-16: save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_toml_sentence(path, text, str(error))) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets in brackets
        raise ConfigError(f"{path} is not a TOML file that can be read: {error}.") from error
    return from_mapping(data, source=str(path))


def _decoded(data: bytes) -> str:
    """Windows' editors mark UTF-16 by its first two bytes; PowerShell's `>` writes it. Old Macs end lines by CR."""
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def _toml_sentence(path: Path, text: str, message: str) -> str:
    place = re.search(r"line (\d+)", message)
    lines = text.split("\n")
    line = lines[int(place.group(1)) - 1] if place else lines[-1]
    key = QUOTED_BACKSLASH.match(line)
    if key is None:
        return f"{path} is not a TOML file: {message}."
    where = f", line {place.group(1)}," if place else ""
    return (
        f"{path}{where} is not TOML, where a backslash in double quotes begins an escape: write the path in single "
        f"quotes ({key.group(1)} = 'C:\\Users\\me\\pics'), or with '/' in place of '\\'."
    )


def dump_job(job: JobConfig, path: Path) -> None:
    """Write a job file that `load_job` reads back equal."""
    write_atomically(path, tomli_w.dumps(msgspec.to_builtins(job)).encode())


def from_values(values: Mapping[str, Any], problems: Problems | None = None) -> JobConfig:
    """A job from a flat {path: value}, as a form gives it; absent fields take their defaults.

    With `problems` what is wrong is put there, and the job has the defaults in its place.
    """
    own = problems or Problems()
    data: dict[str, Any] = {"version": CURRENT_VERSION}
    for path, value in values.items():
        section, _, name = path.partition(".")
        with own.at(path):
            data.setdefault(section, {})[name] = _whole(path, value)
    job = from_mapping(data, problems=own)
    if problems is None:
        own.raise_if_any()
    return job


def to_values(job: JobConfig) -> dict[str, Any]:
    """The flat {path: value} of a job: the inverse of `from_values`."""
    return {path: _lookup(msgspec.to_builtins(job), path) for path in field_specs()}


def from_mapping(data: Mapping[str, Any], source: str = THE_JOB, problems: Problems | None = None) -> JobConfig:
    """Check a nested mapping. Raises `ConfigError` naming every field that is wrong, its value and what is allowed.

    With `problems` what is wrong is put there, and the job has the defaults in its place.
    """
    plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in data.items()}
    version = plain.setdefault("version", CURRENT_VERSION)
    if not isinstance(version, int) or not 1 <= version <= CURRENT_VERSION:
        raise ConfigError(
            f"version = {version!r} in {source} is not known: this trainer reads up to {CURRENT_VERSION}, update it."
        )
    for step in range(version, CURRENT_VERSION):
        plain = MIGRATIONS[step](plain)
    plain["version"] = CURRENT_VERSION
    _compose_names(plain)
    own = problems or Problems()
    for path, spec in field_specs().items():
        value = _lookup(plain, path)
        with own.at(path):
            try:
                _check_value(path, spec, value, source)
            except ConfigError:
                _drop(plain, path)
                raise
    job = _converted(plain, source, own)
    if problems is None:
        own.raise_if_any()
    return job


def _check_value(path: str, spec: FieldSpec, value: Any, source: str) -> None:
    """What msgspec does not see."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} = {value} in {source} is not allowed: it must be {spec.allowed}.")
    if spec.is_path and isinstance(value, str) and value != printable(value):
        toml = ", which backslashes in double quotes make in TOML: write it in single quotes, or with '/' for '\\'"
        told = toml if source != THE_JOB else ": write the path anew"
        raise ConfigError(f"{path} = {value!r} in {source} has control characters{told}.")


def _converted(plain: dict[str, Any], source: str, problems: Problems) -> JobConfig:
    """The job; whatever is refused is noted and left out, until the rest is accepted."""
    while True:
        try:
            return msgspec.convert(plain, JobConfig)
        except msgspec.ValidationError as error:
            at, unknown = re.search(r"at `\$\.?([^`]*)`", str(error)), re.search(r"field `([^`]*)`", str(error))
            path = ".".join(part for part in (at and at.group(1), unknown and unknown.group(1)) if part)
            refused = ConfigError(_sentence(str(error), plain, source))
            refused.__cause__ = error
            problems.add(refused, path)
            if not _drop(plain, path):
                raise refused from error


def _drop(data: dict[str, Any], path: str) -> bool:
    """Leave out an option, or a whole table where that is what is wrong."""
    section, _, name = path.partition(".")
    table = data.get(section)
    if isinstance(table, dict) and name:
        return table.pop(name, data) is not data
    return data.pop(section, data) is not data


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
