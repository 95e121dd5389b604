"""Commands of the Dataset tab that change captions, take changes back, or plan them."""

from __future__ import annotations

from lib_trainer.captions.document import Caption, cached_key
from lib_trainer.captions.edits import make_edit
from lib_trainer.captions.plans import DropImplied, fold, implied_pairs, learned_pairs, several_concepts, traits
from lib_trainer.captions.tags import split_tags
from lib_trainer.counts import counted
from lib_trainer.refusals import ConfigError, DatasetError
from lib_trainer.ui.dataset.common import Values, chosen_keys, filled, number, opened_set, show_preview, ticked
from lib_trainer.ui.dataset.view import View
from lib_trainer.ui.kit.notices import told


def chip(view: View, values: Values) -> None:
    opened, caption = opened_set(view), view.caption()
    if str(values.get("seen", caption.text)).split() != caption.text.split():
        raise DatasetError("editing.caption_changed")
    after = changed_chip(caption, values)
    view.mine = view.current, after
    opened.editor.write(view.current, after, caption)
    view.mine = None


def preview(view: View, values: Values) -> None:
    edit = make_edit(str(values["edit"]), filled(values))
    show_preview(view, opened_set(view).editor.preview(edit, chosen_keys(view, values)))


def apply(view: View, values: Values) -> str:
    if view.preview is None:
        raise DatasetError("editing.nothing_to_apply")
    moved = view.preview.moved
    entry = opened_set(view).editor.apply(view.preview)
    view.preview, view.proposal, view.implied, view.plan = None, (), (), ""
    done = "Undo brings them back" if moved else f"{counted(entry.files, 'caption')} changed. Undo takes it back"
    return f"{entry.label}: {done}."


def cancel(view: View, values: Values) -> None:
    view.preview = None


def undo(view: View, values: Values) -> str:
    view.preview = None
    return f"Undone: {opened_set(view).editor.undo().label}."


def undo_others(view: View, values: Values) -> str:
    """Take back what no other program has changed; what it has stays as it is."""
    leaving = [conflict.path for conflict in view.conflicts]
    entry = opened_set(view).editor.undo(leaving)
    opened_set(view).editor.reload()
    view.conflicts, view.undoing = (), False
    return f"Undone but for {counted(len(leaving), 'caption')}: {entry.label}."


def redo(view: View, values: Values) -> str:
    view.preview = None
    return f"Done again: {opened_set(view).editor.redo().label}."


def trash(view: View, values: Values) -> str:
    keys = [str(key) for key in values.get("keys") or sorted(view.selected)]
    following = view.keys()
    place = following.index(view.current) if view.current in following else 0
    entry = opened_set(view).editor.to_trash(keys)
    left = view.keys()
    view.current = left[min(place, len(left) - 1)] if left else ""
    return f"{entry.label}: Undo brings them back."


def convert(view: View, values: Values) -> str:
    opened_set(view).editor.convert(str(values["path"]))
    return f"{values['path']} is UTF-8 now."


def reload(view: View, values: Values) -> str:
    view.conflicts, view.mine, view.preview, view.undoing = (), None, None, False
    opened_set(view).editor.reload()
    return "The folder was read again."


def keep_mine(view: View, values: Values) -> str:
    if view.mine is None:
        raise DatasetError("editing.nothing_to_keep")
    key, caption = view.mine
    opened_set(view).editor.write(key, caption, caption, force=True)
    view.conflicts, view.mine = (), None
    return "Your version was written; Undo gives the other one back."


def plan(view: View, values: Values) -> str:
    opened, keys = opened_set(view), chosen_keys(view, values)
    captions = {key: opened.editor.caption(key) for key in keys}
    view.proposal = traits(
        captions, opened.knowledge, str(values["plan"]),
        share=number(values, "share", "Share") / 100, protected=str(values.get("protected", "")), trigger=view.trigger,
    )  # fmt: skip
    view.plan, view.implied, view.preview = str(values["plan"]), (), None
    warning = several_concepts({opened.editor.items[key].concept for key in keys})
    return told(warning) if warning else ""


def plan_preview(view: View, values: Values) -> None:
    if not view.trigger:
        raise ConfigError("editing.no_trigger")
    edit = fold(view.proposal, view.trigger, view.plan, ticked(values, ConfigError("editing.none_to_fold")))
    show_preview(view, opened_set(view).editor.preview(edit, chosen_keys(view, values)))


def implied(view: View, values: Values) -> None:
    opened = opened_set(view)
    captions = {key: opened.editor.caption(key) for key in chosen_keys(view, values)}
    view.implied = [*implied_pairs(captions, opened.knowledge), *learned_pairs(captions, opened.knowledge)]
    view.plan, view.proposal, view.preview = "implied", (), None


def implied_preview(view: View, values: Values) -> None:
    pairs = [tuple(pair.split("\t")) for pair in ticked(values, ConfigError("editing.none_to_drop"))]
    edit = DropImplied(frozenset((pair[0], pair[1]) for pair in pairs if len(pair) == 2))
    show_preview(view, opened_set(view).editor.preview(edit, chosen_keys(view, values)))


def snapshot(view: View, values: Values) -> str:
    opened_set(view).editor.take_snapshot(str(values.get("text", "")))
    return "The snapshot was taken."


def compare(view: View, values: Values) -> None:
    show_preview(view, opened_set(view).editor.compare_snapshot(str(values["name"])))


def outside(view: View, values: Values) -> str:
    view.conflicts = opened_set(view).editor.outside_changes()
    count = len(view.conflicts)
    return f"Changed on the disk: {counted(count, 'caption')}." if count else "Nothing has changed."


def changed_chip(caption: Caption, values: Values) -> Caption:
    """One gesture on the chips: add, remove, move or rewrite a tag."""
    op, index = values.get("op"), int(values.get("index", 0))
    if op == "add":
        new = [tag for tag in split_tags(str(values.get("text", ""))) if not caption.has(cached_key(tag))]
        return caption.insert(len(caption.tags), new)
    if not 0 <= index < len(caption.tags):
        raise DatasetError("editing.tag_gone")
    if op == "remove":
        return caption.without({index})
    if op == "move":
        tags = list(caption.tags)
        to = min(max(int(values["to"]), 0), len(tags) - 1)
        tags.insert(to, tags.pop(index))
        return caption.retag(tags)
    new = split_tags(str(values.get("text", "")))
    result = caption.insert(index + 1, new) if new else caption
    return result.without({index})
