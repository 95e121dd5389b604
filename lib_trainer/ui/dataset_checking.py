"""Commands of the Dataset tab around the check of a set: run it, look at findings, mend them, save the report."""

from __future__ import annotations

import json
import threading
import time

from lib_trainer.captions.document import Caption, cached_key
from lib_trainer.captions.edits import EDITS, make_edit
from lib_trainer.dataset.facts import duplicates, near_duplicates
from lib_trainer.dataset.mending import rename_captions
from lib_trainer.dataset.report import Finding, make_report
from lib_trainer.errors import ConfigError, DatasetError
from lib_trainer.ui.dataset_common import Answer, Values, number, opened_set, show_preview
from lib_trainer.ui.dataset_report import report_file
from lib_trainer.ui.dataset_view import CheckJob, OpenSet, View


def start_check(view: View, values: Values) -> None:
    opened = opened_set(view)
    if opened.job is not None and not opened.job.finished.is_set():
        return
    width, height = int(number(values, "width", "Training width")), int(number(values, "height", "height"))
    if min(width, height) < 64:
        raise ConfigError("Training width and height must be at least 64 pixels.")
    opened.job = CheckJob(len(opened.editor.items), started=time.monotonic())
    arguments = (opened, opened.job, width, height, bool(values.get("mirrored")))
    threading.Thread(target=run_check, args=arguments, daemon=True, name="dataset-check").start()


def check_stop(view: View, values: Values) -> str:
    opened = opened_set(view)
    if opened.job is not None:
        opened.job.stop.set()
    return "The report is made of the pictures that were looked at so far."


def poll(view: View, values: Values) -> None:
    """Only to see what has changed."""


def show(view: View, values: Values) -> None:
    finding = finding_of(view, values)
    view.set_filter("")
    view.only, view.only_title = frozenset(finding.pictures), finding.title


def finding_of(view: View, values: Values) -> Finding:
    report = opened_set(view).report
    if report is None or int(values["number"]) >= len(report.findings):
        raise DatasetError("The report is out of date: check the set again.")
    return report.findings[int(values["number"])]


def remedy(view: View, values: Values) -> str | None:
    finding, opened = finding_of(view, values), opened_set(view)
    editor = opened.editor
    present = [key for key in finding.pictures if key in editor.items]
    if finding.remedy == "trash":
        return f"{editor.to_trash(present).label}: Undo brings them back."
    if finding.remedy == "trash-orphans":
        return f"{editor.to_trash([], finding.paths).label}: Undo brings them back."
    if finding.remedy == "keep-one":
        return f"{editor.to_trash(superfluous(opened, finding.kind)).label}: Undo brings them back."
    if finding.remedy == "convert":
        return f"{editor.convert_all().label}: Undo gives the old bytes back."
    if finding.remedy == "rename":
        return f"{rename_captions(editor).label}: Undo gives the old names back."
    if finding.remedy in EDITS:
        show_preview(view, editor.preview(make_edit(finding.remedy, {}), present))
        return None
    if finding.remedy == "caption":
        word = str(values.get("trigger") or view.trigger).strip()
        if not word:
            raise ConfigError("Trigger word is empty: write it on the Prune tab first.")
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
        raise DatasetError("There is no report yet: check the set first.")
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


def run_check(opened: OpenSet, job: CheckJob, width: int, height: int, mirrored: bool) -> None:
    """Look at every picture and make the report; runs in a thread of its own."""

    def progress(done: int, total: int) -> None:
        job.done = done

    try:
        facts = opened.facts.get(opened.editor.keys, progress, job.stop.is_set)
        opened.report = make_report(
            opened.editor, facts, opened.count_tokens, opened.knowledge,
            width=width, height=height, mirrored=mirrored,
        )  # fmt: skip
        opened.report_version = opened.version
    except Exception as error:
        job.error = str(error) or type(error).__name__
    finally:
        job.finished.set()
