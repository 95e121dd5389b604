"""The use case as a whole: a folder is scored, and captions are written as the scores come or at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_trainer.tagging.events import Progress, ScoreReport, WriteReport
from lib_trainer.tagging.existing import read_captions, shares
from lib_trainer.tagging.pictures import Folder, sharing
from lib_trainer.tagging.pipeline import score_pictures
from lib_trainer.tagging.plan import Opened
from lib_trainer.tagging.registry import Tagger
from lib_trainer.tagging.store import ScoreStore
from lib_trainer.tagging.style import Style
from lib_trainer.tagging.table import Rows, ScoreTable, Thresholds
from lib_trainer.tagging.writing import CaptionWriter, planned, write_captions


@dataclass(frozen=True)
class TagReport:
    """How `tag_folder` ended; `written` is None where the run was stopped before any caption was due."""

    scored: ScoreReport
    written: WriteReport | None


def tag_folder(
    tagger: Tagger,
    store: ScoreStore,
    folder: Folder,
    thresholds: Thresholds,
    style: Style,
    *,
    stop: Callable[[], bool] = lambda: False,
    listener: Callable[[Progress], None] = lambda progress: None,
) -> TagReport:
    """Score and write with one model. Captions land batch by batch, unless tags are sorted by frequency, which is known
    only at the end. Raises `TaggerError`; what was done before is kept."""
    if style.sort == "frequency":
        scored = score_pictures(tagger, store, folder.pictures, stop=stop, listener=listener)
        if scored.stopped:
            return TagReport(scored, None)
        opened = Opened.read(store, folder.pictures, [tagger.fingerprint], style)
        return TagReport(scored, write_captions(opened, thresholds, style, stop=stop, listener=listener))
    writer = _AsTheyCome(tagger, store, folder, thresholds, style)
    scored = score_pictures(tagger, store, folder.pictures, stop=stop, listener=listener, on_scored=writer)
    return TagReport(scored, writer.report(scored.stopped))


class _AsTheyCome:
    """Writes the captions of pictures that were just scored."""

    def __init__(self, tagger: Tagger, store: ScoreStore, folder: Folder, thresholds: Thresholds, style: Style) -> None:
        self._tagger, self._thresholds, self._style, self._store = tagger, thresholds, style, store
        self._writer = CaptionWriter(store, style.template)
        self._origins = store.all_origins()
        self._shared = sharing(folder.pictures, style.template)
        self._writer.failed += [shares(path, first) for path, first in self._shared.items()]
        self._unchanged = 0

    def __call__(self, scored: Sequence[tuple[Path, str, Rows]]) -> None:
        rows = {path: row for path, _, row in scored if path not in self._shared}
        wanted = [(path, content) for path, content, _ in scored if path in rows]
        found, unreadable = read_captions(wanted, self._style.template, self._store.key, self._origins)
        self._writer.failed += unreadable
        table = ScoreTable.of(self._tagger.labels, [rows[picture.path] for picture in found])
        opened = Opened(self._store, table, found, self._tagger.name, self._style)
        changes = list(planned(opened, range(len(found)), opened.choose(self._thresholds, self._style), self._style))
        self._unchanged += len(found) - len(changes)
        self._writer.write(changes)

    def report(self, stopped: bool) -> WriteReport:
        writer = self._writer
        return WriteReport(writer.written, self._unchanged, tuple(writer.failed), stopped, writer.first)
