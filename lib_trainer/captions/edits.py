"""Edits of captions: each a frozen dataclass that says what it does and turns one caption into another.

Nothing here touches a file. `EDITS` is the registry that the command line and the page make their forms of: all
that is known of a field stands in its annotation.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from lib_trainer.captions.edit_base import Edit, Facts, count_tags
from lib_trainer.captions.edit_order import Deduplicate, KeepTokens, SetTrigger, SortTags, Spelling
from lib_trainer.captions.edit_prune import PruneByCount, PruneByScore, PruneByShare
from lib_trainer.captions.edit_words import AddTags, ExpressionOnCaption, ExpressionOnTags, RemoveTags, ReplaceTags
from lib_trainer.captions.foreign import PlainCommas, PromptOnly
from lib_trainer.options.describe import FieldSpec, describe
from lib_trainer.options.values import from_text
from lib_trainer.refusals import ConfigError, Field

__all__ = ["EDITS", "Edit", "Facts", "count_tags", "edit_specs", "make_edit"]

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


@functools.cache
def edit_specs(name: str) -> dict[str, FieldSpec]:
    """The options of an edit of `EDITS` by their names, in order."""
    return describe(EDITS[name])


def make_edit(name: str, values: Mapping[str, Any]) -> Edit:
    """An edit of `EDITS` with these values, as a form or a command line gives them, checked. Raises `ConfigError`
    naming the option."""
    if name not in EDITS:
        raise ConfigError("edit.missing", name=name, edits=EDITS)
    known = edit_specs(name)
    if wrong := set(values) - set(known):
        if not known:
            raise ConfigError("edit.no_fields", name=name, field_name=min(wrong))
        raise ConfigError("edit.no_field", name=name, field_name=min(wrong), known=known)
    edit: Edit = EDITS[name](**{key: _converted(known[key], value) for key, value in values.items()})
    edit.check()
    return edit


def _converted(spec: FieldSpec, given: Any) -> Any:
    value = from_text(spec, given) if isinstance(given, str) else given
    if spec.kind == "str":
        return str(value or "")
    if spec.kind == "bool":
        return bool(value)
    if spec.kind == "int" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not spec.takes(value):
        field = Field(spec.path, label=spec.label)
        raise ConfigError("edit.value", field=field, given=given, allowed=spec.allowed)
    return float(value) if spec.kind == "float" else value
