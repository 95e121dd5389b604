"""Commands of the Dataset tab that only look: filter, pages, selection."""

from __future__ import annotations

import json

from lib_trainer.captions.edits import make_edit
from lib_trainer.captions.filters import parse_filter
from lib_trainer.refusals import ConfigError
from lib_trainer.ui.dataset.common import Answer, Values, filled
from lib_trainer.ui.dataset.view import PAGE, View
from lib_trainer.ui.kit.notices import told


def filter(view: View, values: Values) -> None:
    view.set_filter(str(values.get("text", "")))


def clear(view: View, values: Values) -> None:
    view.set_filter("")


def check_typed(view: View, values: Values) -> Answer:
    """What is wrong with what is being typed, if anything is."""
    try:
        if values.get("what") == "filter":
            parse_filter(str(values.get("text", "")))
        else:
            make_edit(str(values.get("edit", "")), filled(values))
    except ConfigError as error:
        return {"hint": told(error.sentence)}
    return {"hint": ""}


def tags(view: View, values: Values) -> None:
    view.tag_search = str(values.get("text", ""))


def tag(view: View, values: Values) -> None:
    term = str(values["tag"])
    plain = term if term.replace(" ", "").replace("-", "").isalnum() else json.dumps(term, ensure_ascii=False)
    added = f"NOT {plain}" if values.get("without") else plain
    view.set_filter(f"{view.text}, {added}" if view.text and added not in view.text else added)


def page(view: View, values: Values) -> None:
    try:
        view.page = int(values["to"]) if "to" in values else int(str(values.get("text", "1"))) - 1
    except ValueError:
        raise ConfigError("looking.page") from None


def click(view: View, values: Values) -> None:
    key, mode, keys = str(values["key"]), values.get("mode", "one"), view.keys()
    if key not in keys:
        return
    if mode == "range" and view.anchor in keys:
        first, last = sorted((keys.index(view.anchor), keys.index(key)))
        view.selected |= set(keys[first : last + 1])
    elif mode == "toggle":
        view.selected ^= {key}
        view.anchor = key
    else:
        view.selected, view.anchor = {key}, key
    view.current = key


def move(view: View, values: Values) -> None:
    keys = view.keys()
    if not keys:
        return
    place = keys.index(view.current) if view.current in keys else -1
    place = min(max(place + int(values["by"]), 0), len(keys) - 1)
    view.current, view.page = keys[place], place // PAGE
    view.selected, view.anchor = {view.current}, view.current


def select(view: View, values: Values) -> None:
    shown = set(view.keys())
    chosen = {"all": shown, "none": set[str](), "invert": shown - view.selected}
    view.selected = chosen[str(values["what"])]


def tab(view: View, values: Values) -> None:
    view.tab = str(values["tab"])
