"""Writing captions: each as a whole or not at all, as they are made, with the origin of every tag on record first."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib_trainer.dataset.scan import Skipped
from lib_trainer.errors import DatasetError, TaggerError
from lib_trainer.files import write_atomically
from lib_trainer.tagging.events import Meter, Progress, WriteReport
from lib_trainer.tagging.existing import read_existing
from lib_trainer.tagging.pictures import caption_path
from lib_trainer.tagging.plan import Opened
from lib_trainer.tagging.store import ScoreStore
from lib_trainer.tagging.style import Composed, Existing, Style
from lib_trainer.tagging.table import Thresholds

CHUNK = 64
"""Captions whose origins are recorded in one transaction before they are written."""


@dataclass(frozen=True)
class Change:
    """A picture, the caption it was planned for, and the one it gets."""

    picture: Path
    existing: Existing | None
    composed: Composed


class CaptionWriter:
    """Writes captions of one data set and counts them."""

    def __init__(self, store: ScoreStore, template: str) -> None:
        self._store, self._template = store, template
        self.written = 0
        self.failed: list[Skipped] = []
        self.first: Path | None = None

    def write(self, changes: Sequence[Change]) -> None:
        """Record origins, then write. A caption that was changed meanwhile, or is locked, is listed and left alone.

        Origins come first: a tag without one counts as written by hand, and would never go again. Raises `TaggerError`
        for a full disk: everything after would fail as well.
        """
        sound = [change for change in changes if self._unchanged(change)]
        self._store.record_origins((change.picture, change.composed.origins) for change in sound)
        for change in sound:
            path = caption_path(change.picture, self._template)
            try:
                write_atomically(path, change.composed.text.encode("utf-8"))
            except OSError as error:
                self._give_back(change)
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise TaggerError(
                        f"The disk is full: '{path}' keeps its old text, the {self.written} captions before it are "
                        "written; make room and write again."
                    ) from error
                self.failed.append(Skipped(path, error.strerror or str(error)))
                continue
            self.first = self.first or path
            self.written += 1

    def _unchanged(self, change: Change) -> bool:
        path = caption_path(change.picture, self._template)
        try:
            now = read_existing(change.picture, self._template, {})
        except DatasetError as error:
            self.failed.append(Skipped(path, str(error)))
            return False
        if (now.text if now else None) != (change.existing.text if change.existing else None):
            self.failed.append(Skipped(path, "it was changed by another program meanwhile"))
            return False
        return True

    def _give_back(self, change: Change) -> None:
        before = change.existing.origins if change.existing else {}
        self._store.record_origins([(change.picture, before)])


def write_captions(
    opened: Opened,
    thresholds: Thresholds,
    style: Style,
    *,
    stop: Callable[[], bool] = lambda: False,
    listener: Callable[[Progress], None] = lambda progress: None,
) -> WriteReport:
    """Write every caption that changes. Stopping keeps what is written. Raises `TaggerError` for a full disk."""
    chosen = opened.choose(thresholds, style)
    writer = CaptionWriter(opened.store, style.template)
    meter, done, unchanged = Meter(), 0, 0
    for rows in _chunks(range(len(opened.paths))):
        if stop():
            break
        changes = list(planned(opened, rows, chosen, style))
        writer.write(changes)
        done += len(rows)
        unchanged += len(rows) - len(changes)
        rate = meter.update(done)
        left = (len(opened.paths) - done) / rate if rate else None
        failed = tuple(writer.failed)
        listener(Progress("Writing", done, len(opened.paths), 0, failed, rate, left, meter.seconds))
    stopped = done < len(opened.paths)
    return WriteReport(writer.written, unchanged, tuple(writer.failed), stopped, writer.first)


def planned(opened: Opened, rows: Iterable[int], chosen: NDArray[np.bool_], style: Style) -> Iterable[Change]:
    """The captions of these pictures that would change, one by one."""
    frequency = opened.frequency(chosen) if style.sort == "frequency" else {}
    for row in rows:
        composed = opened.compose(row, chosen, style, frequency)
        if composed is not None:
            yield Change(opened.paths[row], opened.existing[row], composed)


def _chunks(rows: range) -> Iterable[range]:
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]
