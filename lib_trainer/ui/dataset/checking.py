"""Commands of the Dataset tab around the check of a set: run it, look at findings, mend them, save the report."""

from __future__ import annotations

import contextlib
import json
import logging

from lib_trainer.captions.document import Caption, cached_key
from lib_trainer.captions.edits import EDITS, make_edit
from lib_trainer.dataset.desk import CheckSize, OpenSet
from lib_trainer.dataset.facts import duplicates, near_duplicates
from lib_trainer.dataset.mending import preview_renaming
from lib_trainer.dataset.report import Finding
from lib_trainer.refusals import ConfigError, DatasetError
from lib_trainer.ui.dataset.common import Answer, Values, number, opened_set, show_preview
from lib_trainer.ui.dataset.report import report_file
from lib_trainer.ui.dataset.view import View
from lib_trainer.ui.kit.notices import told

_log = logging.getLogger(__name__)


def start_check(view: View, values: Values) -> None:
    width, height = int(number(values, "width", "Training width")), int(number(values, "height", "height"))
    if min(width, height) < 64:
        raise ConfigError("check.size")
    begin_check(opened_set(view), CheckSize(width, height, bool(values.get("mirrored"))))


def begin_check(opened: OpenSet, size: CheckSize) -> None:
    """Check a set in the background, unless that is under way."""
    with contextlib.suppress(DatasetError):  # another tab has begun it
        opened.check(size)


def renew(view: View) -> None:
    """Make the report that is looked at anew where the set has changed: its buttons mean what is there no longer."""
    opened = view.open
    if opened is None or view.tab != "check" or not opened.outdated or opened.checked is None:
        return
    last = opened.checks.view()
    if last is None or not last.error:  # what has failed would do so again
        begin_check(opened, opened.checked)


def check_stop(view: View, values: Values) -> str:
    opened_set(view).checks.stop()
    return "The report is made of the pictures that were looked at so far."


def poll(view: View, values: Values) -> None:
    """Only to see what has changed."""


def show(view: View, values: Values) -> None:
    finding = finding_of(view, values)
    view.set_filter("")
    view.only, view.only_title = frozenset(finding.pictures), told(finding.title)


def finding_of(view: View, values: Values) -> Finding:
    opened = opened_set(view)
    report, number = opened.report, int(values["number"])
    of = int(values.get("of", opened.report_version))
    if report is None or number >= len(report.findings) or of != opened.report_version or opened.outdated:
        raise DatasetError("check.old_report")
    return report.findings[number]


def remedy(view: View, values: Values) -> str | None:
    finding, opened = finding_of(view, values), opened_set(view)
    editor = opened.editor
    present = [key for key in finding.pictures if key in editor.items]
    if finding.remedy in ("trash", "trash-orphans", "keep-one", "convert", "rename"):
        preview = {
            "trash": lambda: editor.preview_trash(present),
            "trash-orphans": lambda: editor.preview_trash([], finding.paths),
            "keep-one": lambda: editor.preview_trash(superfluous(opened, finding.kind)),
            "convert": editor.preview_conversion,
            "rename": lambda: preview_renaming(editor),
        }[finding.remedy]()
        show_preview(view, preview)
        return None
    if finding.remedy in EDITS:
        show_preview(view, editor.preview(make_edit(finding.remedy, {}), present))
        return None
    if finding.remedy == "caption":
        word = view.trigger
        if not word:
            raise ConfigError("check.no_trigger")
        show_preview(view, editor.preview(make_edit("add", {"tags": word}), present))
        return None
    key, right = (finding.kind == "misspelt" and finding.tags) or (*finding.tags[:1], "")
    new = [editor.spellings().get(right, right)] if right else []
    label = f"Write {right} instead of {key}" if right else f"Remove {key}"

    def mend(_: str, caption: Caption) -> Caption:
        return caption.change(lambda tag: new if cached_key(tag) == key else [tag])

    show_preview(view, editor.preview_function(label, mend, present))
    return None


def export(view: View, values: Values) -> Answer:
    opened = opened_set(view)
    if opened.report is None:
        raise DatasetError("check.no_report")
    named = {key for finding in opened.report.findings for key in finding.pictures[:12]}
    facts = opened.facts.get([key for key in named if key in opened.editor.items])
    text = report_file(opened.report, opened.editor.root, facts)
    return {"download": json.dumps({"name": f"{opened.editor.root.name}-report.html", "text": text})}


def superfluous(opened: OpenSet, kind: str) -> list[str]:
    """All but the largest picture of every group of duplicates; of equal ones the first stays."""
    facts = opened.facts.get(opened.editor.keys)
    groups = duplicates(facts) if kind == "duplicate" else near_duplicates(facts)
    result = []
    for group in groups:
        sizes = {key: facts[key].size or (0, 0) for key in group}
        best = max(group, key=lambda key: sizes[key][0] * sizes[key][1])
        result += [key for key in group if key != best]
    return result
