"""Writing captions: as one entry of the set's history, with the origin of every tag, so that Undo takes it all back."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib_trainer.captions.tags import tag_key
from lib_trainer.dataset import file_moves
from lib_trainer.dataset.folder import Skipped
from lib_trainer.dataset.history import ConflictError, Entry, RefusedError
from lib_trainer.refusals import DatasetError, Sentence, TaggerError
from lib_trainer.tagging.captions.effect import Opened
from lib_trainer.tagging.captions.existing import read_existing
from lib_trainer.tagging.captions.style import Composed, Existing, Style
from lib_trainer.tagging.pictures import CaptionPlaces
from lib_trainer.tagging.reports import WriteReport
from lib_trainer.tagging.scores.store import ScoreStore
from lib_trainer.tagging.scores.table import Thresholds
from lib_trainer.work.events import Phase
from lib_trainer.work.meter import Meter

CHUNK = 512
"""Captions that are written at a time: what is stopped, or killed, keeps those before it."""


@dataclass(frozen=True)
class Change:
    """A picture, the caption it was planned for, and the one it gets."""

    picture: Path
    existing: Existing | None
    composed: Composed


@dataclass(frozen=True)
class _Planned:
    picture: Path
    path: Path
    step: file_moves.Change
    origins: dict[str, str]


class CaptionWriter:
    """Writes captions of one data set and counts them. All that it writes is one entry of the history called `label`,
    unless somebody else makes one in between."""

    def __init__(self, store: ScoreStore, template: str, label: str) -> None:
        self._store, self._places, self._label = store, CaptionPlaces(template), label
        self._entry: Entry | None = None
        self.written = 0
        self.failed: list[Skipped] = []
        self.first: Path | None = None

    def write(self, changes: Sequence[Change]) -> list[Path]:
        """Write captions, with where their tags come from; returns the pictures whose captions were written. One that
        was changed meanwhile, or is locked, is listed and left alone. Raises `TaggerError` for a full disk: everything
        after would fail as well."""
        left = [planned for change in changes if (planned := self._planned(change)) is not None]
        while left:
            refused = self._commit(left)
            if not refused:
                self.first = self.first or left[0].path
                self.written += len(left)
                break
            for one in left:
                if one.step.path in refused:
                    self.failed.append(Skipped(one.path, refused[one.step.path]))
            left = [one for one in left if one.step.path not in refused]
        return [one.picture for one in left]

    def _commit(self, changes: Sequence[_Planned]) -> dict[str, Sentence]:
        """{path: why} of those for which none of them was written; empty if all were."""
        steps, origins = [one.step for one in changes], {one.step.path: one.origins for one in changes}
        try:
            self._entry = self._store.history.commit(self._label, steps, origins=origins, onto=self._entry)
        except ConflictError as error:
            return {conflict.path: Sentence("writing.meanwhile") for conflict in error.conflicts}
        except RefusedError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise TaggerError("writing.disk_full", written=self.written) from error
            if error.path not in origins:
                raise
            return {error.path: Sentence("system.says", reason=error.__cause__ or error)}
        return {}

    def _planned(self, change: Change) -> _Planned | None:
        """The step that writes a caption, if its file still says what it was planned for."""
        path = self._places.path(change.picture)
        old = change.existing
        try:
            data = file_moves.read(path)
            now = read_existing(change.picture, self._places, {})
            if (now.text if now else None) != (old.text if old else None) or file_moves.read(path) != data:
                raise DatasetError("writing.meanwhile")
        except (DatasetError, OSError) as error:
            self.failed.append(Skipped(path, Sentence("system.says", reason=error)))
            return None
        name, text = self._store.key(path), change.composed.caption.encode()
        gone = dict.fromkeys(map(tag_key, old.tags), "") if old else {}
        there = {tag_key(tag): origin for tag, origin in change.composed.origins.items()}
        stays = set(map(tag_key, change.composed.caption.parts()[1].tags))
        origins = {tag: origin for tag, origin in gone.items() if tag not in stays} | there
        return _Planned(change.picture, path, file_moves.Change(name, data, text), origins)


def write_captions(
    opened: Opened,
    thresholds: Thresholds,
    style: Style,
    *,
    stop: Callable[[], bool] = lambda: False,
    listener: Callable[[Phase], None] = lambda phase: None,
) -> WriteReport:
    """Write every caption that changes. Stopping keeps what is written. Raises `TaggerError` for a full disk."""
    chosen = opened.choose(thresholds, style)
    writer = CaptionWriter(opened.store, style.template, f"Captions by {opened.name}")
    moved = {opened.paths[row] for row in np.unique(opened.preview(thresholds, style).moved[0]).tolist()}
    meter, done, unchanged, reordered = Meter(), 0, 0, 0
    for rows in _chunks(range(len(opened.paths))):
        if stop():
            break
        changes = list(planned(opened, rows, chosen, style))
        reordered += sum(picture not in moved for picture in writer.write(changes))
        done += len(rows)
        unchanged += len(rows) - len(changes)
        listener(
            meter.phase(Sentence("phase.writing"), done, len(opened.paths), "captions", left_out=tuple(writer.failed))
        )
    stopped = done < len(opened.paths)
    return WriteReport(writer.written, unchanged, tuple(writer.failed), stopped, writer.first, reordered)


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
