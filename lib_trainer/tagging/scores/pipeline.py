"""Scoring a folder: reading, decoding, fitting and the model at the same time, with queues that cannot grow.

    pictures ─► workers (read, hash, decode, fit) ─► assembler (batches) ─► the model ─► keeper (store, listeners)

The model runs in the caller's thread. Pillow and onnxruntime release Python's lock, so threads are enough. In memory
are at most `AHEAD` batches of fitted pictures (0.6 MB each at 448²; or as many for each worker, where that is more),
three batches as floats, and as many decoded pictures as fit into `PIXEL_BUDGET`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib_trainer.dataset.folder import Skipped
from lib_trainer.dataset.pictures import PictureError
from lib_trainer.refusals import Sentence
from lib_trainer.tagging.models.preprocess import checked_header
from lib_trainer.tagging.models.registry import Tagger
from lib_trainer.tagging.reports import ScoreReport
from lib_trainer.tagging.scores.database import content_of
from lib_trainer.tagging.scores.store import ScoreStore
from lib_trainer.tagging.scores.table import Rows, sparse
from lib_trainer.work.events import Phase
from lib_trainer.work.meter import Meter

AHEAD = 2
"""Batches of fitted pictures that wait for the model, or pictures for each worker."""

PIXEL_BUDGET = 80_000_000
"""Pixels that may be decoded at the same time (four bytes each); a larger picture is decoded alone."""

CHUNK = 256
"""Cached pictures that are handed to a listener at a time."""

MAX_BYTES = 512 << 20
"""A larger file is refused unread."""

Listener = Callable[[Phase], None]
Scored = Callable[[Sequence[tuple[Path, str, Rows]]], None]


@dataclass
class _Fitted:
    path: Path
    status: os.stat_result
    content: str
    pixels: NDArray[np.uint8] | None
    animated: bool = False


class PixelBudget:
    """Lets work through while its sizes add up to no more than `total`; what is larger than all of it goes alone."""

    def __init__(self, total: int = PIXEL_BUDGET) -> None:
        self._total = self._free = total
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, size: int) -> Iterator[None]:
        size = min(size, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


@dataclass
class _Batch:
    items: list[_Fitted]
    pixels: Any


@dataclass
class _Run:
    """One call of `score_pictures`, as its threads see it."""

    tagger: Tagger
    store: ScoreStore
    total: int
    seen: set[str]
    stop: Callable[[], bool]
    listener: Listener
    on_scored: Scored
    skipped: list[Skipped] = field(default_factory=list)
    animated: list[Path] = field(default_factory=list)
    cached: int = 0
    scored: int = 0
    meter: Meter = field(default_factory=Meter)
    failure: BaseException | None = None
    abandoned: threading.Event = field(default_factory=threading.Event)

    @property
    def stopping(self) -> bool:
        return self.abandoned.is_set() or self.stop()

    def tell(self) -> None:
        free, skipped = self.cached + len(self.skipped), tuple(self.skipped)
        done = free + self.scored
        self.listener(
            self.meter.phase(
                Sentence("phase.scoring"), done, self.total, "pictures", free=free, known=self.cached, left_out=skipped
            )
        )


def score_pictures(
    tagger: Tagger,
    store: ScoreStore,
    pictures: Sequence[Path],
    *,
    stop: Callable[[], bool] = lambda: False,
    listener: Listener = lambda phase: None,
    on_scored: Scored | None = None,
    workers: int = 0,
    batch: int = 0,
) -> ScoreReport:
    """Score what the store does not know yet; what it knows is not even opened.

    `on_scored` gets (picture, content hash, scores) of pictures after they are in the store, in the order of the
    batches, and those that were cached first. `workers`: decoding threads, 0 for a choice by the machine. `batch`:
    pictures at once, 0 for the tagger's own; never more than it takes. A picture that cannot be read is skipped and
    listed. When `stop` answers yes the batch that is with the model is finished and kept.
    Raises `TaggerError` where the store or the model fails; what was done before is kept.
    """
    run = _Run(tagger, store, len(pictures), store.scored(tagger.fingerprint), stop, listener, on_scored or _nothing)
    known = store.known_content(pictures)
    fresh = [path for path in pictures if known.get(path) not in run.seen]
    _tell_cached(run, pictures, known)
    size = min(batch or tagger.max_batch, tagger.max_batch)
    batches: queue.Queue[_Batch | None] = queue.Queue(1)
    results: queue.Queue[tuple[_Batch, NDArray[np.float32]] | None] = queue.Queue(4)
    assembler, keeper = _Assembler(run, batches, fresh, workers, size), _Keeper(run, results)
    if fresh:
        assembler.start()
        keeper.start()
        try:
            for item in iter(batches.get, None):
                _offer(run, results, (item, tagger.scores(item.pixels)))
        except BaseException:
            run.abandoned.set()
            raise
        finally:
            _drain(batches, assembler)
            _offer(run, results, None, force=True)
            keeper.join()
    if run.failure is not None:
        try:
            raise run.failure
        finally:
            run.failure = None  # its traceback holds this frame, and with it the model
    run.tell()
    stopped = run.cached + run.scored + len(run.skipped) < run.total
    report = (run.total, run.scored, run.cached, tuple(run.skipped), stopped, run.meter.seconds)
    return ScoreReport(
        *report, name=tagger.name, device=tagger.device, notes=tuple(tagger.notes), animated=tuple(run.animated)
    )


def _tell_cached(run: _Run, pictures: Sequence[Path], known: dict[Path, str]) -> None:
    hits = [path for path in pictures if known.get(path) in run.seen]
    run.cached = len(hits)
    run.tell()
    if run.on_scored is _nothing:
        return
    for start in range(0, len(hits), CHUNK):
        if not run.stopping:
            chunk = hits[start : start + CHUNK]
            rows = run.store.rows_of(run.tagger.fingerprint, [known[path] for path in chunk])
            run.on_scored([(path, known[path], row) for path, row in zip(chunk, rows)])


def _nothing(scored: Sequence[tuple[Path, str, Rows]]) -> None:
    """Nobody wants the scores as they come."""


class _Stage(threading.Thread):
    """A part of the line in a thread of its own. An error in it ends the run instead of vanishing, and whatever
    happens `close` is called: the stages beside it must not wait for this one."""

    def __init__(self, run: _Run) -> None:
        super().__init__(name=f"tagger-{type(self).__name__.strip('_').lower()}")
        self._of = run

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self._of.failure = self._of.failure or error
            self._of.abandoned.set()
        self.close()

    def work(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _Assembler(_Stage):
    """Fitted pictures, in order, into batches; the last thing in the queue is None."""

    def __init__(
        self, run: _Run, batches: queue.Queue[_Batch | None], fresh: Sequence[Path], workers: int, size: int
    ) -> None:
        super().__init__(run)
        self._batches, self._fresh, self._size = batches, fresh, size
        self._workers = workers or default_workers(run.tagger.device)

    def work(self) -> None:
        run, items = self._of, list[_Fitted]()
        for item in _fitted(run, self._fresh, self._workers, AHEAD * max(self._size, self._workers)):
            if run.stopping:
                break
            items.append(item)
            if len(items) == self._size:
                _offer(run, self._batches, _batch_of(run, items))
                items = []
        if items and not run.abandoned.is_set():
            _offer(run, self._batches, _batch_of(run, items))

    def close(self) -> None:
        _offer(self._of, self._batches, None, force=True)


class _Keeper(_Stage):
    """Scores into the store, then to the listeners, until None comes."""

    def __init__(self, run: _Run, results: queue.Queue[tuple[_Batch, NDArray[np.float32]] | None]) -> None:
        super().__init__(run)
        self._results, self._done = results, False

    def work(self) -> None:
        run = self._of
        while (entry := self._results.get()) is not None:
            batch, scores = entry
            rows = [sparse(row) for row in scores]
            kept = [(item.path, item.status, item.content, row) for item, row in zip(batch.items, rows)]
            run.store.put(run.tagger.fingerprint, run.tagger.name, run.tagger.labels, kept)
            run.scored += len(kept)
            run.animated += [item.path for item in batch.items if item.animated]
            run.on_scored([(item.path, item.content, row) for item, row in zip(batch.items, rows)])
            run.tell()
        self._done = True

    def close(self) -> None:
        while not self._done:  # after an error: the model's thread must not wait for room
            self._done = self._results.get() is None


def _offer(run: _Run, out: queue.Queue[Any], item: Any, *, force: bool = False) -> None:
    """Put; gives up where the run has ended early, as nothing makes room then."""
    while force or not run.abandoned.is_set():
        try:
            out.put(item, timeout=0.2)
            return
        except queue.Full:
            continue


def _drain(batches: queue.Queue[_Batch | None], thread: threading.Thread) -> None:
    while thread.is_alive():
        with contextlib.suppress(queue.Empty):
            batches.get(timeout=0.05)


def _batch_of(run: _Run, items: list[_Fitted]) -> _Batch:
    pixels = run.tagger.batch([item.pixels for item in items if item.pixels is not None])
    for item in items:
        item.pixels = None
    return _Batch(items, pixels)


def _fitted(run: _Run, paths: Sequence[Path], workers: int, ahead: int) -> Iterator[_Fitted]:
    """Decoded by `workers` threads, at most `ahead` + `workers` at a time, handed out in order."""
    budget = PixelBudget()
    waiting: deque[tuple[Path, Future[_Fitted]]] = deque()
    with ThreadPoolExecutor(workers, "tagger-decode") as pool:
        try:
            yield from _windowed(pool, run, paths, budget, waiting, ahead + workers)
        finally:
            for _, future in waiting:
                future.cancel()


def _windowed(
    pool: ThreadPoolExecutor,
    run: _Run,
    paths: Iterable[Path],
    budget: PixelBudget,
    waiting: deque[tuple[Path, Future[_Fitted]]],
    most: int,
) -> Iterator[_Fitted]:
    todo = iter(paths)
    while True:
        while len(waiting) < most and not run.stopping:
            path = next(todo, None)
            if path is None:
                break
            waiting.append((path, pool.submit(_fit, run.tagger, path, budget)))
        if not waiting:
            return
        path, future = waiting.popleft()
        try:
            yield future.result()
        except PictureError as error:
            run.skipped.append(Skipped(path, error.reason))
        except MemoryError:
            run.skipped.append(Skipped(path, Sentence("picture.no_memory")))


def _fit(tagger: Tagger, path: Path, budget: PixelBudget) -> _Fitted:
    """Read once; hashed and decoded from memory. Raises `PictureError`."""
    try:
        status = path.stat()
        if status.st_size > MAX_BYTES:
            raise PictureError(path, Sentence("picture.large_file", most=MAX_BYTES >> 20))
        data = path.read_bytes()
    except OSError as error:
        raise PictureError(path, Sentence("system.says", reason=error)) from error
    header = checked_header(path, data)
    with budget.taken(header.size[0] * header.size[1]):
        pixels = tagger.load(path, data)
    return _Fitted(path, status, content_of(data), pixels, header.animated)


def default_workers(device: str) -> int:
    """A GPU waits for the decoders; on a CPU the model needs the cores itself."""
    cores = os.cpu_count() or 1
    return max(2, min(8, cores if device != "CPU" else cores // 2))
