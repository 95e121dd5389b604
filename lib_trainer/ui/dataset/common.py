"""What the Dataset tab's commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from lib_trainer.dataset.desk import OpenSet
from lib_trainer.dataset.previews import Preview
from lib_trainer.refusals import ConfigError, Field, Sentence
from lib_trainer.ui.dataset.view import View

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
        raise ConfigError("editing.none_chosen")
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
        raise ConfigError(
            "edit.value", field=Field(name, label), given=values.get(name), allowed=Sentence("allowed.number")
        ) from None


def ticked(values: Values, refusal: ConfigError) -> list[str]:
    """The boxes that are ticked in a proposal. Raises `refusal` where none is."""
    chosen = [str(one) for one in values.get("chosen") or ()]
    if not chosen:
        raise refusal
    return chosen


def note_form(view: View, values: Values) -> None:
    """Remember what stands in the page's own fields, so that they still say it when they are drawn anew; and the size
    of the training form."""
    for name in ("trigger", "share", "protected"):
        if values.get(name) is not None:
            setattr(view, name, str(values[name]).strip())
    typed = (str(values.get("width")).strip(), str(values.get("height")).strip())
    if values.get("width") is not None and typed != view.size:
        view.size, view.typed_size = typed, True
    form = list(values.get("train") or ())
    if not view.typed_size and len(form) == 2 and all(str(side).isdigit() and int(side) >= 64 for side in form):
        view.size = (str(form[0]), str(form[1]))
