"""Jobs as files and as values: whole ones, and partial ones (presets), which say something of some options alone.

A file of an older version passes through `MIGRATIONS` (pure dict → dict) before it is checked.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lib_trainer.config.fields import FieldSpec, field_specs
from lib_trainer.config.migrations import first_step, prompt_of_one_line
from lib_trainer.config.schema import JobConfig
from lib_trainer.options.toml import read_toml, write_toml
from lib_trainer.options.values import from_text, has, lookup, nested
from lib_trainer.refusals import ConfigError, Problems, Sentence, printable

CURRENT_VERSION = 3
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: first_step, 2: prompt_of_one_line}
"""From version N to N + 1."""
THE_JOB = Sentence("job.itself")
"""What a job is called that comes from no file."""
Source = str | Sentence
"""What a job is called in sentences: its file, or `THE_JOB`."""


def load_job(path: Path, called: str = "") -> JobConfig:
    """Read a job file, in UTF-8 or UTF-16, with any line ends. Raises `ConfigError` naming the file and the field.

    `called` is what sentences call the file, where that is not its path.
    """
    return from_values(load_values(path, called))


def load_values(path: Path, called: str = "") -> dict[str, Any]:
    """What a job file says, {path: value}: of a preset not more than stands in it. Raises as `load_job` does."""
    name = called or str(path)
    data = read_toml(path, name)
    values = to_values(from_mapping(data, source=name))
    said = _migrated(data, name)
    return {path: value for path, value in values.items() if has(said, path)}


def dump_job(job: JobConfig, path: Path, beside: JobConfig | None = None) -> None:
    """Write a job file that `load_job` reads back equal; or a preset of what differs from the job `beside`."""
    dump_values(to_values(job) if beside is None else differing(job, beside), path)


def dump_values(values: Mapping[str, Any], path: Path) -> None:
    """Write {path: value} as a preset, which `load_values` reads back."""
    write_toml({"version": CURRENT_VERSION, **nested(values)}, path)


def differing(job: JobConfig, beside: JobConfig) -> dict[str, Any]:
    """{path: value} of the options in which a job is not what another is: `from_values(…, over=beside)` makes it."""
    others = to_values(beside)
    return {path: value for path, value in to_values(job).items() if value != others[path]}


def from_values(
    values: Mapping[str, Any], problems: Problems | None = None, over: JobConfig | None = None
) -> JobConfig:
    """A job from a flat {path: value}, as a form or a preset gives it; absent fields are those of the job `over`, or
    their defaults.

    With `problems` what is wrong is put there, and the job has the defaults in its place.
    """
    own = problems or Problems()
    given = {} if over is None else to_values(over)
    for path, value in values.items():
        with own.at(path):
            given[path] = _whole(path, value)
    job = from_mapping({"version": CURRENT_VERSION, **nested(given)}, problems=own)
    if problems is None:
        own.raise_if_any()
    return job


def typed_values(assignments: Sequence[str]) -> dict[str, Any]:
    """{path: value} of texts `section.field=value`, as a command line gives them. Raises `ConfigError`."""
    values = {}
    for text in assignments:
        path, sign, value = text.partition("=")
        spec = field_specs().get(path.strip())
        if spec is None or not sign:
            raise ConfigError("option.no_assignment", given=text)
        values[spec.path] = from_text(spec, value.strip())
    return values


def to_values(job: JobConfig) -> dict[str, Any]:
    """The flat {path: value} of a job: the inverse of `from_values`."""
    tables = msgspec.to_builtins(job)
    return {path: lookup(tables, path) for path in field_specs()}


def from_mapping(data: Mapping[str, Any], source: Source = THE_JOB, problems: Problems | None = None) -> JobConfig:
    """Check a nested mapping. Raises `ConfigError` naming every field that is wrong, its value and what is allowed.

    With `problems` what is wrong is put there, and the job has the defaults in its place.
    """
    plain = _migrated(data, source)
    own = problems or Problems()
    for path, spec in field_specs().items():
        value = lookup(plain, path)
        if spec.file_name and isinstance(value, str):  # macOS hands out letters and their marks apart
            plain[path.partition(".")[0]][spec.name] = unicodedata.normalize("NFC", value)
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


def _migrated(data: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """A copy of the tables, in the layout of today."""
    plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in data.items()}
    version = plain.setdefault("version", CURRENT_VERSION)
    if not isinstance(version, int) or not 1 <= version <= CURRENT_VERSION:
        raise ConfigError("job.version", version=version, source=source, newest=CURRENT_VERSION)
    for step in range(version, CURRENT_VERSION):
        plain = MIGRATIONS[step](plain)
    return {**plain, "version": CURRENT_VERSION}


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


def _refused(message: str, data: Mapping[str, Any], source: Source) -> tuple[str, ConfigError]:
    """What msgspec's 'Expected `int` >= 1 - at `$.network.rank`' is about, and the error with value and range."""
    at, unknown = re.search(r"at `\$\.?([^`]*)`", message), re.search(r"unknown field `([^`]*)`", message)
    path = ".".join(part for part in (at and at.group(1), unknown and unknown.group(1)) if part)
    spec = field_specs().get(path)
    if unknown:
        return path, ConfigError("option.unknown", field=path, source=source)
    if spec is not None:
        value = lookup(data, path)
        return path, ConfigError("option.not_allowed", field=path, value=value, source=source, allowed=spec.allowed)
    reason = message.split(" - ")[0]
    if not path:
        return path, ConfigError("job.not_as_expected", source=source, reason=reason)
    return path, ConfigError("option.not_as_expected", field=path, source=source, reason=reason)


def _whole(path: str, value: Any) -> Any:
    """Forms hand whole numbers over as floats; an empty number field comes as None and is named as such."""
    spec = field_specs().get(path)
    if spec is not None and value is None:
        raise ConfigError("option.empty", field=path, allowed=spec.allowed)
    integral = spec is not None and (spec.kind == "int" or (spec.kind == "choice" and isinstance(spec.default, int)))
    return int(value) if integral and isinstance(value, float) and value.is_integer() else value
