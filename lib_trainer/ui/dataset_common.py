"""What the Dataset tab's commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from lib_trainer.dataset.previews import Preview
from lib_trainer.errors import ConfigError
from lib_trainer.ui.dataset_view import OpenSet, View

Values: TypeAlias = Mapping[str, Any]
"""A command of the page: `do` and what it needs, and the page's form fields."""

Answer: TypeAlias = "str | dict[str, str] | None"
"""A notice, or contents for the panels that are not the view's: hint, focus, download."""


def opened_set(view: View) -> OpenSet:
    assert view.open is not None  # `run` has looked
    return view.open


def chosen_keys(view: View, values: Values) -> list[str]:
    keys = view.scope(str(values.get("scope", "everything")))
    if not keys:
        raise ConfigError("No picture is chosen: select some, or take 'everything'.")
    return keys


def show_preview(view: View, preview: Preview) -> None:
    view.preview, view.conflicts = preview, ()


def filled(values: Values) -> dict[str, Any]:
    return dict(values.get("values") or {})


def number(values: Values, name: str, label: str) -> float:
    """A number of the form. Raises `ConfigError` naming it."""
    try:
        return float(str(values.get(name, "")).strip().rstrip("%"))
    except ValueError:
        raise ConfigError(f"{label} = {values.get(name)!r}: it must be a number.") from None
