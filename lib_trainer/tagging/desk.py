"""What the pages and the Extras step hold: one open model, one job at a time, and the folder that was opened last.

Jobs run in a thread of their own, so that a closed page or a reloaded UI does not end one.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lib_trainer.refusals import Decimals, Joined, Sentence, TaggerError, TrainerError
from lib_trainer.tagging.captions.effect import Opened
from lib_trainer.tagging.captions.style import Style
from lib_trainer.tagging.captions.writing import write_captions
from lib_trainer.tagging.choices import How
from lib_trainer.tagging.models.download import Stopped, download
from lib_trainer.tagging.models.folders import find_taggers, pick
from lib_trainer.tagging.models.registry import Found, Tagger, known_model
from lib_trainer.tagging.pictures import list_pictures
from lib_trainer.tagging.reports import ScoreReport
from lib_trainer.tagging.run import score_folder
from lib_trainer.tagging.scores.database import content_of
from lib_trainer.tagging.scores.ensemble import combine
from lib_trainer.tagging.scores.store import ScoreStore
from lib_trainer.tagging.scores.table import ScoreTable, Thresholds, sparse
from lib_trainer.tagging.views import Places, Selection
from lib_trainer.work.control import Control
from lib_trainer.work.events import Finished, Listener
from lib_trainer.work.job import Job
from lib_trainer.work.monitor import JobView
from lib_trainer.work.runner import Runner, kept

KEPT_SINGLES = 4
KEPT_FOLDERS = 3
"""Several pages may look at folders of their own."""


@dataclass(frozen=True)
class _Kept:
    """A folder in memory, and after how many jobs it was read."""

    opened: Opened
    changes: int


class TaggerDesk:
    """Everything that a page does with taggers. Any number of pages may use one desk."""

    def __init__(self, places: Places, runner: Runner | None = None) -> None:
        self.places = places
        self._queue = (runner or Runner()).queue("tagger", _busy)
        self._lock = threading.RLock()  # held for moments: reading folders and opening models have locks of their own
        self._opening = threading.Lock()
        self._reading: dict[object, threading.Lock] = {}
        self._found: list[Found] | None = None
        self._tagger: tuple[object, Tagger] | None = None
        self._open: OrderedDict[object, _Kept] = OrderedDict()
        self._changes = 0
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._singles: OrderedDict[object, ScoreTable] = OrderedDict()

    # -- models --------------------------------------------------------------------------------------------------

    def found(self, *, again: bool = False) -> list[Found]:
        """The taggers on disk; looked for once, and when asked again."""
        if self._found is None or again:
            self._found = find_taggers(self.places.roots())
        return self._found

    def tagger(self, name: str, device: str = "auto") -> Tagger:
        """The model of that name, opened; the last one stays open until its files are others. Raises `TaggerError`."""
        if not name:
            raise TaggerError("tagger.none_chosen")
        found = pick(self.found(), name)
        with self._opening:
            held, wanted = self._tagger, (found.folder, device, found.stamp())
            if held is not None and held[0] == wanted:
                return held[1]
            self._tagger = held = None  # two at once would need twice the memory
            opened = found.open(device=device)
            self._tagger = (wanted, opened)
            return opened

    def unload(self) -> None:
        """Give the model's memory back."""
        self._tagger = None

    def device(self) -> Sentence | None:
        """What runs the open model, for the page; None while none is open."""
        held = self._tagger
        tagger = held[1] if held else None
        if tagger is None:
            return None
        runs = Sentence("tagger.runs_on", name=tagger.name, device=tagger.device)
        return Sentence("list.sentences", sentences=Joined([runs, *tagger.notes]))

    # -- jobs ----------------------------------------------------------------------------------------------------

    def view(self) -> JobView | None:
        """The job under way, or the last one; None before the first."""
        return self._queue.view()

    @property
    def running(self) -> bool:
        return self._queue.running

    def stop(self) -> None:
        """Tell the job to stop; what is done is kept."""
        self._queue.stop()

    def wait(self, timeout: float | None = None) -> JobView | None:
        return self._queue.wait(timeout)

    def start_scoring(self, chosen: Selection, device: str = "auto") -> None:
        """Score a folder with every chosen model, in the background. Raises `TaggerError` for what is wrong before."""
        folder = list_pictures(Path(chosen.folder), recursive=chosen.recursive)
        if not chosen.models:
            raise TaggerError("tagger.none_chosen")
        for name in chosen.models:
            problem = pick(self.found(), name).problem
            if problem:
                raise TaggerError("tagger.unusable", folder=name, reason=problem)

        def work(control: Control, emit: Listener) -> Finished:
            with ScoreStore(folder.root) as store:
                turns = [partial(self._turn, name, device) for name in chosen.models]
                scored = score_folder(turns, store, folder, stop=lambda: control.stopping, listener=emit)
            told, notes = [], [*folder.notes, *scored.notes]
            for report in scored.reports:
                notes += [Sentence("tagger.runs_on", name=report.name, device=report.device), *report.notes]
                told.append(_scored(report))
            ended = Sentence(
                "tagger.scored_and_stopped" if scored.stopped else "tagger.scored", reports=Joined(told, between="; ")
            )
            return Finished(stopped=scored.stopped, told=ended, notes=tuple(notes), left_out=scored.left_out)

        self._start("tagging", Sentence("job.tagging", folder=folder.root.name), work, chosen)

    @contextlib.contextmanager
    def _turn(self, name: str, device: str) -> Iterator[Tagger]:
        tagger = self.tagger(name, device)
        with self._leased(tagger, "Tagging"):
            yield tagger

    def start_writing(self, chosen: Selection, thresholds: Thresholds, style: Style) -> None:
        """Write the captions of a folder that was scored, in the background."""
        opened = self.opened(chosen, style)

        def work(control: Control, emit: Listener) -> Finished:
            report = write_captions(opened, thresholds, style, stop=lambda: control.stopping, listener=emit)
            told = [report.sentence]
            if report.written:
                told.append(Sentence("writing.undo"))
            if report.stopped:
                told.append(Sentence("writing.stopped"))
            ended = Sentence("list.sentences", sentences=Joined(told))
            return Finished(stopped=report.stopped, told=ended, left_out=report.failed)

        self._start("writing", Sentence("job.writing"), work, (chosen, thresholds, style))

    def start_download(self, name: str) -> None:
        """Fetch a known model in the background."""
        model = known_model(name)
        if model is None:
            raise TaggerError("download.unknown", name=name)

        def work(control: Control, emit: Listener) -> Finished:
            place = self.places.download_folder()
            try:
                folder = download(model, place, stop=lambda: control.stopping, listener=emit)
            except Stopped as stopped:
                return Finished(stopped=True, told=stopped.sentence)
            self.found(again=True)
            return Finished(path=folder, told=Sentence("download.done", name=model.name, folder=folder))

        self._start("download", Sentence("phase.downloading", name=model.name), work, model.name)

    def _start(self, kind: str, name: Sentence, work: Callable[[Control, Listener], Finished], given: object) -> None:
        def worked(control: Control, emit: Listener) -> None:
            try:
                end = work(control, emit)
            finally:  # before anybody hears of the end: what is kept in memory is no longer what is on the disk
                with self._lock:
                    self._changes += 1
            emit(end)

        self._queue.start(lambda: Job(kind, name, worked, given))

    @contextlib.contextmanager
    def _leased(self, tagger: Tagger, title: str) -> Iterator[None]:
        """The host's turn, if the model needs the graphics card that it draws with; afterwards the card is free."""
        if tagger.device == "CPU":
            yield
            return
        with self.places.lease(title):
            try:
                yield
            finally:
                self.unload()

    # -- what was scored -----------------------------------------------------------------------------------------

    def opened(self, chosen: Selection, style: Style, *, again: bool = False) -> Opened:
        """The folder's scores and captions in memory, read anew after every job and every edit of the set. Nothing is
        written. Raises `TaggerError`."""
        key = (chosen, style.template, style.foreign)
        kept = self._fresh(key)
        if kept is not None and not again:
            return kept
        with self._lock:
            reading = self._reading.setdefault(key, threading.Lock())
        with reading:
            kept = self._fresh(key)
            if kept is None or again:
                changes, kept = self._changes, self._read(chosen, style)
                with self._lock:
                    self._open[key] = _Kept(kept, changes)
                    self._open.move_to_end(key)
                    while len(self._open) > KEPT_FOLDERS:
                        self._reading.pop(self._open.popitem(last=False)[0], None)
        return kept

    def _fresh(self, key: object) -> Opened | None:
        with self._lock:
            kept = self._open.get(key)
            if kept is None or kept.changes != self._changes:
                return None
            self._open.move_to_end(key)
        return kept.opened if kept.opened.revision == kept.opened.store.history.revision else None

    def mark(self) -> list[int]:
        """Changes when what a page has seen of a folder is no longer true: after a job, or an edit of a set."""
        with self._lock:
            kept = list(self._open.values())
        return [self._changes, *(one.opened.store.history.revision for one in kept)]

    def _read(self, chosen: Selection, style: Style) -> Opened:
        folder = list_pictures(Path(chosen.folder), recursive=chosen.recursive)
        store = ScoreStore(folder.root, create=False)  # closed with the last one who holds it: a job may go on with it
        return Opened.read(store, folder.pictures, self._fingerprints(chosen.models, store), style, chosen.how)

    def _fingerprints(self, names: Sequence[str], store: ScoreStore) -> list[str]:
        """The chosen models' fingerprints, without opening one: by the files, or by name where the files are gone."""
        known, models = store.models(), []
        for name in names:
            try:
                models.append(pick(self.found(), name).fingerprint())
            except (OSError, TaggerError):
                models += [mark for mark, called in known.items() if called == name][-1:]
        if not models or any(model not in known for model in models):
            raise TaggerError("scores.none_by_tagger")
        return models

    def remember(self, data: bytes) -> str:
        """Keep one picture (a file's bytes) for `single`, and return the key it is found by; a few are kept."""
        key = content_of(data)
        with self._lock:
            self._pictures[key] = data
            self._pictures.move_to_end(key)
            while len(self._pictures) > KEPT_SINGLES:
                self._pictures.popitem(last=False)
        return key

    def single(
        self, key: str, models: Sequence[str], how: How = "mean", device: str = "auto", *, waits: bool = True
    ) -> ScoreTable:
        """The scores of a remembered picture; what was scored lately is not scored again. Raises `TrainerError`.

        `waits=False` where the caller has the host's turn already, and would wait for itself.
        """
        if not models:
            raise TaggerError("tagger.none_chosen")
        tables = []
        for name in models:
            wanted = (key, name, pick(self.found(), name).stamp())
            with self._lock:
                known, data = self._singles.get(wanted), self._pictures.get(key)
            if known is None:
                if data is None:
                    raise TaggerError("tagger.picture_gone")
                tagger = self.tagger(name, device)
                with self._leased(tagger, "Tagging") if waits else contextlib.nullcontext():
                    row = tagger.scores(tagger.batch([tagger.load(Path("the picture"), data)]))[0]
                known = ScoreTable.of(tagger.labels, [sparse(row)])
                with self._lock:
                    self._singles[wanted] = known
                    while len(self._singles) > 4 * KEPT_SINGLES:
                        self._singles.popitem(last=False)
            tables.append(known)
        return combine(tables, how)


def _scored(report: ScoreReport) -> Sentence:
    seconds = Decimals(report.seconds, 0 if report.seconds > 9 else 1)
    if report.cached:
        return Sentence("tagger.scored_one_known", count=report.scored, seconds=seconds, known=report.cached)
    return Sentence("tagger.scored_one", count=report.scored, seconds=seconds)


def _busy() -> TrainerError:
    return TaggerError("tagger.busy")


def process_desk(make_places: Callable[[], Places]) -> TaggerDesk:
    """The one desk of this process: "Reload UI" must find a running job again."""
    return kept("tagger", lambda: TaggerDesk(make_places(), kept("runner", Runner)))
