"""The options of a job, read from the schema's annotations: what the page, the docs and the errors show."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import msgspec

from lib_trainer.config.base import KIND, KINDS
from lib_trainer.config.schema import JobConfig
from lib_trainer.options.declare import Section
from lib_trainer.options.describe import FieldSpec, describe
from lib_trainer.refusals import Field

__all__ = ["FieldSpec", "field_specs", "label_of", "option_of"]


def label_of(field: Field, begins: bool = True) -> str:
    """What the page calls an option: its label, in quotes within a sentence."""
    spec = field_specs().get(field.path)
    label = spec.label if spec is not None else field.label
    if not label:
        return field.path
    return label if begins else f"“{label}”"


def option_of(job: JobConfig, path: str) -> Any:
    """The value of an option by its path."""
    section, _, name = path.partition(".")
    return getattr(getattr(job, section), name)


@functools.cache
def field_specs() -> dict[str, FieldSpec]:
    """Every option by its path, in the order of the schema, with the kinds of training that read it."""
    specs: dict[str, FieldSpec] = {}
    for section in msgspec.structs.fields(JobConfig):
        if isinstance(section.type, type) and issubclass(section.type, Section):
            specs |= {
                path: replace(spec, kinds=spec.values_of(KIND) or KINDS)
                for path, spec in describe(section.type, f"{section.name}.").items()
            }
    return specs
