"""A folder that is scored, and then written: the one way for pages and command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lib_trainer.dataset.folder import Skipped, named
from lib_trainer.refusals import Sentence
from lib_trainer.tagging.captions.effect import UNSCORED, Opened
from lib_trainer.tagging.captions.style import Style
from lib_trainer.tagging.captions.writing import write_captions
from lib_trainer.tagging.models.registry import Tagger
from lib_trainer.tagging.pictures import Folder
from lib_trainer.tagging.reports import ScoreReport, WriteReport
from lib_trainer.tagging.scores.pipeline import score_pictures
from lib_trainer.tagging.scores.store import ScoreStore
from lib_trainer.tagging.scores.table import Thresholds
from lib_trainer.work.events import Phase

Stop = Callable[[], bool]
Listener = Callable[[Phase], None]
Taggers = Iterable[Callable[[], AbstractContextManager[Tagger]]]
"""Each is entered when its turn comes, so that no two need be in memory at once."""


@dataclass(frozen=True)
class Scored:
    """How `score_folder` ended: a report for each model that was run, what was left out by any of them, and sentences
    on the pictures."""

    reports: tuple[ScoreReport, ...]
    left_out: tuple[Skipped, ...]
    stopped: bool
    notes: tuple[Sentence, ...] = ()


def score_folder(taggers: Taggers, store: ScoreStore, folder: Folder, *, stop: Stop, listener: Listener) -> Scored:
    """Score a folder with one model after the other. Raises `TaggerError`; what was done before is kept."""
    reports: list[ScoreReport] = []
    left_out = list(folder.skipped)
    for turn in taggers:
        with turn() as tagger:
            reports.append(score_pictures(tagger, store, folder.pictures, stop=stop, listener=listener))
        left_out += [item for item in reports[-1].skipped if item not in left_out]
        if reports[-1].stopped:
            break
    animated = dict.fromkeys(path for report in reports for path in report.animated)
    names = [path.relative_to(folder.root).as_posix() for path in animated]
    notes = [Sentence("scan.animations_tagged", count=len(names), names=named(names))] if names else []
    return Scored(tuple(reports), tuple(left_out), any(report.stopped for report in reports), tuple(notes))


def write_scored(
    opened: Opened, scored: Scored, thresholds: Thresholds, style: Style, *, stop: Stop, listener: Listener
) -> tuple[WriteReport, list[Skipped]]:
    """Write the captions of what was scored, also where scoring was stopped; returns the report and all that was left
    out, each picture once, with the reason why it was not scored where there is one."""
    report = write_captions(opened, thresholds, style, stop=stop, listener=listener)
    left_out = list(scored.left_out)
    known = {item.path for item in left_out}
    left_out += [item for item in opened.skipped if item.path not in known and item.reason != UNSCORED]
    return report, [*left_out, *report.failed]
