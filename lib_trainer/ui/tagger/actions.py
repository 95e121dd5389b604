"""What the Tagger's buttons do, and what its polls answer: everything but the layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from lib_trainer.captions.tags import tag_key
from lib_trainer.refusals import Sentence, TaggerError
from lib_trainer.tagging.captions.effect import Opened, Preview
from lib_trainer.tagging.captions.style import Guess, Style, compose
from lib_trainer.tagging.captions.writing import planned
from lib_trainer.tagging.desk import TaggerDesk
from lib_trainer.tagging.models.registry import threshold_of
from lib_trainer.tagging.scores.table import ScoreTable, select
from lib_trainer.tagging.settings import TaggerSettings
from lib_trainer.ui.kit.notices import Notices, told
from lib_trainer.ui.tagger.form import names_of
from lib_trainer.ui.tagger.view import (
    border_html,
    captions_html,
    examples_html,
    job_html,
    mark_html,
    scores_html,
    summary_html,
    table_html,
)

FIRST_CAPTIONS = 6


@dataclass(frozen=True)
class TaggerOptions:
    """What the page must know of its place; `insert_js` puts a text into the host's prompt."""

    insert_js: str
    prefix: str = "tagger"
    send_label: str = "Send to txt2img"


class TaggerActions:
    """The page's use of a desk. Holds nothing of a page, so any number of pages may watch."""

    def __init__(self, desk: TaggerDesk, options: TaggerOptions) -> None:
        self.desk, self.options = desk, options
        self.notices = Notices(options.prefix)

    # -- jobs ----------------------------------------------------------------------------------------------------

    def tag(self, settings: TaggerSettings) -> str:
        return self.notices.of(lambda: self.desk.start_scoring(settings.selection, settings.device))

    def write(self, settings: TaggerSettings) -> str:
        return self.notices.of(lambda: self.desk.start_writing(settings.selection, settings.thresholds, settings.style))

    def download(self, name: str) -> str:
        return self.notices.of(lambda: self.desk.start_download(name.split(" ", 1)[0]))

    def stop(self) -> str:
        if not self.desk.running:
            return self.notices.say(Sentence("page.nothing_under_way"))
        self.desk.stop()
        return ""

    def unload(self) -> str:
        self.desk.unload()
        return self.notices.say(Sentence("page.tagger_closed"))

    def poll(self, seen: str, models: Sequence[str]) -> tuple[Any, Any, Any, Any, Any, str, str]:
        """The panel, Tag, Stop, Write and the list of taggers as they are now, a mark that changes with the folders'
        captions, and what has been seen."""
        view = self.desk.view()
        now = json.dumps([view.id, view.state, view.stopping] if view else ["", ""])
        active = bool(view and view.active)
        turned = now != seen
        panel = job_html(view, self.desk.device(), self.options.prefix) if active or turned else gr.update()
        mark = mark_html(self.desk.mark())
        idle, busy = (
            (gr.update(interactive=not active), gr.update(interactive=active)) if turned else (gr.update(),) * 2
        )
        return panel, idle, busy, idle, self._listed(models) if turned else gr.update(), mark, now

    # -- models --------------------------------------------------------------------------------------------------

    def refresh_models(self, settings: TaggerSettings) -> tuple[str, Any]:
        """A notice, and the list of taggers, looked for again; what is chosen stays if it is there."""
        found = [item for item in self.desk.found(again=True) if not item.problem]
        return self.notices.say(Sentence("page.taggers_found", count=len(found))), self._listed(settings.models)

    def _listed(self, chosen: Sequence[str]) -> Any:
        """What is there, and another choice only where what is chosen is gone: another may be made meanwhile."""
        names = names_of(self.desk.found())
        there = [name for name in chosen if name in names] or names[:1]
        return gr.update(choices=names) if there == list(chosen) else gr.update(choices=names, value=there)

    def preset(self, settings: TaggerSettings) -> tuple[str, float]:
        """A notice, and the general line where precision equals recall; of several taggers the mean."""
        lines = [threshold_of(name) for name in settings.models] or [threshold_of("")]
        line = round(sum(lines) / len(lines), 4)
        names = tuple(settings.models) or Sentence("page.any_tagger")
        return self.notices.say(Sentence("page.general_line", line=line, names=names)), line

    def send(self, prompt: str) -> str:
        """What is to be said where there is no prompt to send."""
        return "" if prompt.strip() else self.notices.say(Sentence("page.no_prompt"), error=True)

    # -- the folder ----------------------------------------------------------------------------------------------

    def look(self, settings: TaggerSettings, tag: str, complained: str = "") -> list[Any]:
        """Notice, summary, table and first captions for the settings as they are, which is what follows the slider;
        and whether the notice is a complaint of this. `complained`: whether the one that stands there is; any other is
        left, as it answers a button."""
        shown = ["", "", ""]

        def work() -> None:
            style, thresholds = settings.style, settings.thresholds
            if not settings.selection.folder:
                return
            try:
                opened = self.desk.opened(settings.selection, style)
            except TaggerError as error:  # a folder that waits for Tag, say: no reason for red
                shown[0] = f'<div class="tagger-empty">{escape(told(error.sentence))}</div>'
            else:
                preview = opened.preview(thresholds, style)
                captions = captions_html(self._first(opened, preview, style))
                shown[:] = [summary_html(opened, preview), table_html(preview, len(opened.paths), tag), captions]

        complaint = self.notices.of(work)
        notice = complaint if complaint or complained else gr.update()
        return [notice, *shown, "1" if complaint else ""]

    def reread(self, settings: TaggerSettings, tag: str) -> list[Any]:
        """As `look`, with the folder and its captions read again."""
        notice = self.notices.of(lambda: self.desk.opened(settings.selection, settings.style, again=True))
        return [notice, *self.look(settings, tag)[1:4], ""]

    def details(self, settings: TaggerSettings, tag: str) -> list[Any]:
        """The pictures of the chosen tag, and those near its line: they need thumbnails and come after the rest."""
        shown = ["", ""]

        def work() -> None:
            style, thresholds = settings.style, settings.thresholds
            if settings.selection.folder:
                opened = self.desk.opened(settings.selection, style)
                preview = opened.preview(thresholds, style)
                line = next((line for line in preview.tags if tag_key(line.tag) == tag_key(tag)), None)
                border = opened.borderline(thresholds, tag) if tag else []
                shown[:] = [examples_html(opened, line, tag, preview), border_html(opened, border, tag)]

        self.notices.of(work)  # `look` has told already what is wrong
        return shown

    def _first(self, opened: Opened, preview: Preview, style: Style) -> list[Any]:
        rows = np.unique(preview.moved[0])[:FIRST_CAPTIONS].tolist()
        first = planned(opened, rows, preview.chosen, style)
        return [(c.picture, c.existing.text if c.existing else "", c.composed.text) for c in first]

    def judge(self, settings: TaggerSettings, verdict: Sequence[str]) -> str:
        """A verdict of the border: content hash, tag, and 'accept', 'reject' or 'undo'."""

        def work() -> None:
            content, tag, word = verdict
            opened = self.desk.opened(settings.selection, settings.style)
            accepted = {"accept": True, "reject": False}.get(word)
            for row in (row for row, known in enumerate(opened.contents) if known == content):
                opened.decide(row, tag, accepted)

        return self.notices.of(work)

    # -- one picture ---------------------------------------------------------------------------------------------

    def single(self, image: Image.Image | None, settings: TaggerSettings) -> list[str]:
        """A new picture: its key, notice, bars, prompt and caption."""
        if image is None:
            return [""] * 5
        buffer = BytesIO()
        image.save(buffer, "PNG", compress_level=0)
        key = self.desk.remember(buffer.getvalue())
        return [key, *self.describe(key, settings)]

    def describe(self, key: str, settings: TaggerSettings) -> list[str]:
        """Notice, bars, prompt and caption of a picture that was given before, for the settings as they are."""
        result = ["", "", ""]

        def work() -> None:
            selection = settings.selection
            table = self.desk.single(key, selection.models, selection.how, settings.device)
            result[:] = self._described(table, settings)

        return [self.notices.of(work), *result]

    def _described(self, table: ScoreTable, settings: TaggerSettings) -> list[str]:
        style, thresholds = settings.style, settings.thresholds
        chosen = select(table, thresholds, style.excluded)
        guesses = [
            Guess(table.labels.names[column], float(score), "")
            for column, score in zip(table.columns[chosen], table.values[chosen])
        ]
        texts = [caption_of(guesses, style, escaped) for escaped in (True, False)]
        return [scores_html(table, thresholds, chosen.tolist()), *texts]


def caption_of(guesses: Sequence[Guess], style: Style, escaped: bool) -> str:
    """A picture's tags as a prompt (brackets escaped) or as a caption for training."""
    plain = Style(
        sort="score" if style.sort == "frequency" else style.sort,
        underscores=style.underscores and not escaped,
        escaped=escaped,
        trigger=style.trigger,
        always=style.always,
    )
    done = compose(None, guesses, plain)
    return done.text if done else ""
