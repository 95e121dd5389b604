"""The sets that are open in this process: one editor for all pages that look at one, and the check of a set."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lib_trainer.captions.findings import all_findings, pictures_of
from lib_trainer.captions.knowledge import Knowledge, TagScores, read_knowledge
from lib_trainer.captions.tokens import LIMITS, TokenCounter
from lib_trainer.dataset.editor import Editor
from lib_trainer.dataset.facts import FactsCache
from lib_trainer.dataset.folder import checked_folder
from lib_trainer.dataset.report import Report, make_report
from lib_trainer.refusals import Count, DatasetError, Sentence, TrainerError
from lib_trainer.work.control import Control
from lib_trainer.work.events import Finished, Listener
from lib_trainer.work.job import Job
from lib_trainer.work.meter import Meter
from lib_trainer.work.runner import Queue, Runner, kept

OF_PICTURES = {
    "corrupt", "small", "aspect", "duplicate", "near-duplicate", "rotated", "alpha", "unreadable", "untrained",
    "shared",
}  # fmt: skip
"""Kinds of findings that no edit of captions changes."""


@dataclass(frozen=True)
class CheckSize:
    """What a set is checked against: pixels, and whether training mirrors pictures."""

    width: int
    height: int
    mirrored: bool


@dataclass
class OpenSet:
    """A set that is open in this process: one editor for all tabs that look at it."""

    editor: Editor
    facts: FactsCache
    count_tokens: TokenCounter
    knowledge: Knowledge
    checks: Queue
    report: Report | None = None
    report_version: int = -1
    checked: CheckSize | None = None
    latents: Callable[[], Path] | None = None
    """Where runs keep encoded pictures; None where that is not known here."""
    _troubles: tuple[int, dict[str, set[str]]] | None = None
    _ahead: threading.Thread | None = None

    def look_ahead(self, keys: Sequence[str]) -> None:
        """Decode the pictures that will probably be looked at next, one page at a time."""
        if keys and (self._ahead is None or not self._ahead.is_alive()):
            self._ahead = threading.Thread(target=self.facts.get, args=(keys,), daemon=True, name="dataset-ahead")
            self._ahead.start()

    @property
    def outdated(self) -> bool:
        """Whether there is a report, and the set has changed since."""
        return self.report is not None and self.report_version != self.version

    @property
    def version(self) -> int:
        """Changes with every change of the captions that this process knows of."""
        return self.editor.version

    def check(self, size: CheckSize) -> None:
        """Look at every picture and make the report, in the background. Raises `DatasetError` where that is under way.

        Stopped early, the report is made of the pictures that were looked at so far.
        """
        self.checks.start(
            lambda: Job("check", Sentence("check.name", folder=self.editor.root.name), partial(self._check, size), size)
        )

    def _check(self, size: CheckSize, control: Control, emit: Listener) -> None:
        version, meter = self.version, Meter()

        def progress(done: int, total: int) -> None:
            emit(meter.phase(Sentence("phase.looking"), done, total, "pictures"))

        facts = self.facts.get(self.editor.keys, progress, lambda: control.stopping)
        report = make_report(
            self.editor, facts, self.count_tokens, self.knowledge,
            width=size.width, height=size.height, mirrored=size.mirrored,
        )  # fmt: skip
        self.report, self.report_version, self.checked = report, version, size
        emit(Finished(stopped=control.stopping, told=Sentence("check.done", count=Count(report.checked))))

    def troubles(self) -> dict[str, set[str]]:
        """{picture: kinds of findings}: those of the tags as they are now, those of the pictures as last checked."""
        if self._troubles is None or self._troubles[0] != self.version:
            captions = self.editor.captions()
            concepts = {key: item.concept or item.folder for key, item in self.editor.items.items()}
            found = pictures_of(all_findings(captions, concepts, self.knowledge, mirrored=False))
            for key, caption in captions.items():
                kinds = found.setdefault(key, set())
                if not caption.tags:
                    kinds.add("empty" if self.editor.has_file(key) else "no-caption")
                over = [limit for limit in LIMITS if self.count_tokens(caption) > limit]
                if over:
                    kinds.add(f"long{over[-1]}")
            self._troubles = self.version, found
        result = {key: set(kinds) for key, kinds in self._troubles[1].items()}
        for key, kinds in (self.report.troubles() if self.report else {}).items():
            result.setdefault(key, set()).update(kinds & OF_PICTURES)
        return result


def no_scores(folder: Path) -> TagScores | None:
    """No tagger is at hand."""
    return None


def _busy() -> TrainerError:
    return DatasetError("check.busy")


class DatasetDesk:
    """The open sets of this process by folder. `scores_of` gives what the tagger knows of a set's pictures, `latents`
    the folder in which runs keep encoded ones."""

    def __init__(
        self,
        count: Callable[[str], int],
        scores_of: Callable[[Path], TagScores | None] = no_scores,
        runner: Runner | None = None,
        latents: Callable[[], Path] | None = None,
    ) -> None:
        self._runner = runner or Runner()
        self._count = TokenCounter(count)
        self._scores_of, self._latents = scores_of, latents
        self._sets: dict[Path, OpenSet] = {}
        self._lock = threading.Lock()

    def open(self, folder: str) -> OpenSet:
        """The set, read again if it is open already. Raises `DatasetError`."""
        with self._lock:
            root = checked_folder(folder)
            known = self._sets.get(root)
            if known is not None:
                known.editor.reload()
                known.knowledge = read_knowledge([known.editor.root / ".trainer"])
                return known
            editor = Editor(root, self._scores_of(root))
            knowledge = read_knowledge([editor.root / ".trainer"])
            checks = self._runner.queue(f"check {root}", _busy)
            self._sets[root] = OpenSet(editor, FactsCache(editor.root), self._count, knowledge, checks)
            self._sets[root].latents = self._latents
            return self._sets[root]


def process_desk(
    count: Callable[[str], int],
    scores_of: Callable[[Path], TagScores | None] = no_scores,
    latents: Callable[[], Path] | None = None,
) -> DatasetDesk:
    """The one desk of this process: "Reload UI" must find a check again."""
    return kept("dataset", lambda: DatasetDesk(count, scores_of, kept("runner", Runner), latents))
