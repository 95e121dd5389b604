"""What the Dataset tab does: one command in, changed panels out. Knows no gradio, so that tests may drive it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from lib_trainer.dataset.desk import DatasetDesk
from lib_trainer.dataset.file_moves import ConflictError
from lib_trainer.refusals import Count, DatasetError, Sentence, TrainerError
from lib_trainer.ui.dataset import buckets as dataset_buckets
from lib_trainer.ui.dataset import checking as dataset_checking
from lib_trainer.ui.dataset import editing as dataset_editing
from lib_trainer.ui.dataset import html as html
from lib_trainer.ui.dataset import looking as dataset_looking
from lib_trainer.ui.dataset.common import Answer, Values, note_form
from lib_trainer.ui.dataset.view import PAGE, Sessions, View
from lib_trainer.ui.dataset.work import conflict_html, preview_html, work_html
from lib_trainer.ui.kit.notices import notice_html, told, unexpected

_log = logging.getLogger(__name__)
PANELS = ("notice", "bar", "tags", "gallery", "picture", "preview", "work", "marks", "known", "download")

COMMANDS: dict[str, Callable[[View, Values], Answer]] = {
    "filter": dataset_looking.filter,
    "clear": dataset_looking.clear,
    "check-typed": dataset_looking.check_typed,
    "tags": dataset_looking.tags,
    "tag": dataset_looking.tag,
    "page": dataset_looking.page,
    "click": dataset_looking.click,
    "move": dataset_looking.move,
    "select": dataset_looking.select,
    "tab": dataset_looking.tab,
    "chip": dataset_editing.chip,
    "preview": dataset_editing.preview,
    "apply": dataset_editing.apply,
    "cancel": dataset_editing.cancel,
    "undo": dataset_editing.undo,
    "undo-others": dataset_editing.undo_others,
    "redo": dataset_editing.redo,
    "trash": dataset_editing.trash,
    "convert": dataset_editing.convert,
    "reload": dataset_editing.reload,
    "keep-mine": dataset_editing.keep_mine,
    "plan": dataset_editing.plan,
    "plan-preview": dataset_editing.plan_preview,
    "implied": dataset_editing.implied,
    "implied-preview": dataset_editing.implied_preview,
    "snapshot": dataset_editing.snapshot,
    "compare": dataset_editing.compare,
    "outside": dataset_editing.outside,
    "check": dataset_checking.start_check,
    "check-stop": dataset_checking.check_stop,
    "poll": dataset_checking.poll,
    "buckets": dataset_buckets.buckets,
    "as-trained": dataset_buckets.as_trained,
    "cache-look": dataset_buckets.cache_look,
    "cache-prune": dataset_buckets.cache_prune,
    "show": dataset_checking.show,
    "remedy": dataset_checking.remedy,
    "export": dataset_checking.export,
}
"""Every command by the name that the page sends."""


class DatasetActions:
    """Carries out commands on a tab's view."""

    def __init__(self, desk: DatasetDesk) -> None:
        self.desk, self.sessions = desk, Sessions()
        self._number = 0

    def run(self, view: View, command: Values) -> dict[str, str]:
        """Carry out a command and render. A mistake is a sentence in the notice, and nothing has changed."""
        notice, error = "", False
        extra = {"hint": "", "focus": str(command.get("focus", "")), "download": ""}
        try:
            answer = self._carried_out(view, command)
            if isinstance(answer, dict):
                extra |= answer
            else:
                notice = answer or ""
        except ConflictError as conflict:
            notice, error = told(conflict.sentence), True
            view.conflicts, view.undoing = conflict.conflicts, command.get("do") == "undo"
        except TrainerError as problem:
            notice, error = told(problem.sentence), True
        except Exception as bug:  # must not cost what was typed
            _log.exception("The Dataset tab met an unexpected error in '%s'", command.get("do"))
            notice, error = unexpected(bug), True
        dataset_checking.renew(view)
        self._number += 1
        if command.get("do") == "check-typed" and view.shown and not notice:  # at every key: nothing else has changed
            return view.shown | {"marks": html.marks_html(view, extra["hint"], extra["focus"], self._number)}
        panels = self.render(view, extra)
        if view.open is not None:
            view.open.look_ahead(view.keys()[(view.page + 1) * PAGE : (view.page + 2) * PAGE])
        panels["notice"] = notice_html(notice, error=error, number=self._number)
        return panels

    def _carried_out(self, view: View, command: Values) -> Answer:
        name = str(command.get("do", ""))
        note_form(view, command)
        dataset_buckets.note_sizes(view, command)
        if name == "open":
            return self._open(view, command)
        if name == "train":
            return self._train(str(command.get("folder", "")))
        if view.open is None or name not in COMMANDS:
            raise DatasetError("set.none_open")
        view.open.editor.follow()
        return COMMANDS[name](view, command)

    def _train(self, folder: str) -> str:
        """The script puts the folder into the training form; without one there is something to be said."""
        if not folder.strip():
            raise DatasetError("set.no_folder")
        return ""

    def _open(self, view: View, values: Values) -> str:
        opened = self.desk.open(str(values.get("folder", "")))
        view.begin(opened)
        said = [Sentence("set.open", count=Count(len(opened.editor.items)))]
        if opened.editor.history.recovered is not None:
            said.insert(0, opened.editor.history.recovered)
        opened.editor.history.recovered = None
        if opened.editor.unreadable:
            said.append(Sentence("set.unreadable", count=Count(len(opened.editor.unreadable))))
        return " ".join(map(told, said))

    def render(self, view: View, extra: Mapping[str, str]) -> dict[str, str]:
        """All panels."""
        view.settle()
        spellings = view.open.editor.spellings() if view.open else {}
        most = [spellings.get(key, key) for key, _ in view.counts().most_common(500)] if view.open else []
        return {
            "notice": "",
            "bar": html.bar_html(view),
            "tags": html.tags_html(view),
            "gallery": html.gallery_html(view),
            "picture": html.picture_html(view),
            "preview": conflict_html(view) + preview_html(view),
            "work": work_html(view),
            "marks": html.marks_html(view, extra["hint"], extra["focus"], self._number),
            "known": html.known_tags_html(most),
            "download": extra["download"],
        }
