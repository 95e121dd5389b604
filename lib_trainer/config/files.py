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
from lib_trainer.files import write_atomically
from lib_trainer.refusals import ConfigError, Problems, Sentence, printable

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10, the WebUI's own
    import tomli as tomllib

CURRENT_VERSION = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From version N to N + 1."""
THE_JOB = Sentence("job.itself")
"""What a job is called that comes from no file."""
Source = str | Sentence
"""What a job is called in sentences: its file, or `THE_JOB`."""
QUOTED_BACKSLASH = re.compile(r"""\s*([\w.-]+)\s*=\s*"[^"]*\\""")
"""A line of a key and a text in double quotes with a backslash in it, as one writes a path of Windows."""


def load_job(path: Path, called: str = "") -> JobConfig:
    """Read a job file, in UTF-8 or UTF-16, with any line ends. Raises `ConfigError` naming the file and the field.

    `called` is what sentences call the file, where that is not its path.
    """
    name = called or str(path)
    try:
        text = _decoded(path.read_bytes())
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError("job.missing", file=name) from None
    except OSError as error:
        raise ConfigError("job.unreadable", file=name, reason=error.strerror) from error
    except UnicodeDecodeError as error:
        raise ConfigError("job.encoding", file=name) from error
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(name, text, str(error)) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets in brackets
        raise ConfigError("job.beyond_toml", file=name, reason=str(error)) from error
    return from_mapping(data, source=name)


def _decoded(data: bytes) -> str:
    """Windows' editors mark UTF-16 by its first two bytes; PowerShell's `>` writes it. Old Macs end lines by CR."""
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def _not_toml(name: str, text: str, message: str) -> ConfigError:
    place = re.search(r"line (\d+)", message)
    lines = text.split("\n")
    line = lines[int(place.group(1)) - 1] if place else lines[-1]
    key = QUOTED_BACKSLASH.match(line)
    if key is None:
        return ConfigError("job.not_toml", file=name, reason=message)
    if place is None:
        return ConfigError("job.backslash_at_the_end", file=name, key=key.group(1))
    return ConfigError("job.backslash", file=name, line=place.group(1), key=key.group(1))


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


def from_mapping(data: Mapping[str, Any], source: Source = THE_JOB, problems: Problems | None = None) -> JobConfig:
    """Check a nested mapping. Raises `ConfigError` naming every field that is wrong, its value and what is allowed.

    With `problems` what is wrong is put there, and the job has the defaults in its place.
    """
    plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in data.items()}
    version = plain.setdefault("version", CURRENT_VERSION)
    if not isinstance(version, int) or not 1 <= version <= CURRENT_VERSION:
        raise ConfigError("job.version", version=version, source=source, newest=CURRENT_VERSION)
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


def _check_value(path: str, spec: FieldSpec, value: Any, source: Source) -> None:
    """What msgspec does not see."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError("option.not_allowed", field=path, value=value, source=source, allowed=spec.allowed)
    if spec.is_path and isinstance(value, str) and value != printable(value):
        raise ConfigError(
            "option.control_characters" if source == THE_JOB else "option.escaped_backslash",
            field=path,
            value=value,
            source=source,
        )


def _converted(plain: dict[str, Any], source: Source, problems: Problems) -> JobConfig:
    """The job; whatever is refused is noted and left out, until the rest is accepted."""
    while True:
        try:
            return msgspec.convert(plain, JobConfig)
        except msgspec.ValidationError as error:
            path, refused = _refused(str(error), plain, source)
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


def _refused(message: str, data: Mapping[str, Any], source: Source) -> tuple[str, ConfigError]:
    """What msgspec's 'Expected `int` >= 1 - at `$.network.rank`' is about, and the error with value and range."""
    at, unknown = re.search(r"at `\$\.?([^`]*)`", message), re.search(r"unknown field `([^`]*)`", message)
    path = ".".join(part for part in (at and at.group(1), unknown and unknown.group(1)) if part)
    spec = field_specs().get(path)
    if unknown:
        return path, ConfigError("option.unknown", field=path, source=source)
    if spec is not None:
        value = _lookup(data, path)
        return path, ConfigError("option.not_allowed", field=path, value=value, source=source, allowed=spec.allowed)
    reason = message.split(" - ")[0]
    if not path:
        return path, ConfigError("job.not_as_expected", source=source, reason=reason)
    return path, ConfigError("option.not_as_expected", field=path, source=source, reason=reason)


def _lookup(data: Mapping[str, Any], path: str) -> Any:
    section, _, name = path.partition(".")
    table = data.get(section, {})
    return table.get(name) if isinstance(table, Mapping) else None


def _whole(path: str, value: Any) -> Any:
    """Forms hand whole numbers over as floats; an empty number field comes as None and is named as such."""
    spec = field_specs().get(path)
    if spec is not None and value is None:
        raise ConfigError("option.empty", field=path, allowed=spec.allowed)
    integral = spec is not None and (spec.kind == "int" or (spec.kind == "choice" and isinstance(spec.default, int)))
    return int(value) if integral and isinstance(value, float) and value.is_integer() else value
