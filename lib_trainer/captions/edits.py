"""Edits of captions: each a frozen dataclass that says what it does and turns one caption into another.

Nothing here touches a file. `EDITS` is the registry that the command line and the page make their forms of: a field's
label and help stand in its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

from lib_trainer.captions.edit_base import Edit, Facts, count_tags
from lib_trainer.captions.edit_order import Deduplicate, KeepTokens, SetTrigger, SortTags, Spelling
from lib_trainer.captions.edit_prune import PruneByCount, PruneByScore, PruneByShare
from lib_trainer.captions.edit_words import AddTags, ExpressionOnCaption, ExpressionOnTags, RemoveTags, ReplaceTags
from lib_trainer.captions.foreign import PlainCommas, PromptOnly
from lib_trainer.refusals import ConfigError, Field

__all__ = ["EDITS", "Edit", "EditField", "Facts", "count_tags", "edit_fields", "make_edit"]

EDITS: dict[str, type[Any]] = {
    "add": AddTags,
    "remove": RemoveTags,
    "replace": ReplaceTags,
    "regex-tags": ExpressionOnTags,
    "regex-captions": ExpressionOnCaption,
    "dedupe": Deduplicate,
    "sort": SortTags,
    "trigger": SetTrigger,
    "keep-tokens": KeepTokens,
    "prune-count": PruneByCount,
    "prune-share": PruneByShare,
    "prune-score": PruneByScore,
    "spelling": Spelling,
    "prompt-only": PromptOnly,
    "plain-commas": PlainCommas,
}


@dataclass(frozen=True)
class EditField:
    """A field of an edit for a form. `kind` is 'str', 'int', 'float', 'bool' or 'choice'."""

    name: str
    kind: str
    label: str
    help: str
    default: Any
    choices: Sequence[str] = ()


def edit_fields(name: str) -> list[EditField]:
    """The fields of an edit of `EDITS`, in order."""
    kind = EDITS[name]
    hints = get_type_hints(kind)
    result = []
    for one in fields(kind):
        choices = tuple(str(choice) for choice in get_args(hints[one.name]))
        shown = "choice" if choices else hints[one.name].__name__
        result.append(EditField(one.name, shown, one.metadata["label"], one.metadata["help"], one.default, choices))
    return result


def make_edit(name: str, values: Mapping[str, Any]) -> Edit:
    """An edit of `EDITS` with these values, checked. Raises `ConfigError` naming the field."""
    if name not in EDITS:
        raise ConfigError("edit.missing", name=name, edits=EDITS)
    known = {one.name: one for one in edit_fields(name)}
    if wrong := set(values) - set(known):
        if not known:
            raise ConfigError("edit.no_fields", name=name, field_name=min(wrong))
        raise ConfigError("edit.no_field", name=name, field_name=min(wrong), known=known)
    edit: Edit = EDITS[name](**{key: _converted(known[key], value) for key, value in values.items()})
    edit.check()
    return edit


def _converted(spec: EditField, value: Any) -> Any:
    if spec.kind == "choice" and value not in spec.choices:
        raise ConfigError("edit.choice", field=Field(spec.name, spec.label), value=value, choices=spec.choices)
    if spec.kind in ("int", "float"):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ConfigError("edit.number", field=Field(spec.name, spec.label), value=value) from None
        if spec.kind == "float":
            return number
        if number != int(number):
            raise ConfigError("edit.whole", field=Field(spec.name, spec.label), value=value)
        return int(number)
    return bool(value) if spec.kind == "bool" else value if spec.kind == "choice" else str(value or "")
