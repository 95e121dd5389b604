"""What the option's declarations are made of."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec
from msgspec import Meta

Kind = Literal["lora", "locon", "loha", "lokr", "pivotal", "difference", "embedding", "hypernetwork", "checkpoint"]
"""What can be trained."""

KINDS: tuple[str, ...] = get_args(Kind)
ADAPTERS: tuple[str, ...] = ("lora", "locon", "loha", "lokr", "pivotal", "difference")
"""Kinds that end as a file for `<lora:name:1>`."""


def option(label: str, help: str, *, low: float | None = None, high: float | None = None, **extra: Any) -> Meta:
    """Metadata of one field.

    `extra`: unit, step (of a slider), advanced (folded away on the page), kinds (of training that read it; all of them
    where it is missing), names (of the choices, as the page shows them), path (of a file or folder).
    """
    bounds: dict[str, Any] = {}
    if low is not None:
        bounds["ge"] = low
    if high is not None:
        bounds["le"] = high
    return Meta(title=label, description=help, extra=extra, **bounds)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of options: a box on the page and a table in the job file."""
