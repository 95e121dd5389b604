"""The tagger's knowledge of a set as the editor asks for it, read from the tagger's store and remembered."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lib_trainer.captions.knowledge import TagScores
from lib_trainer.dataset.history import HIDDEN


class ScoreStore(Protocol):
    """What is asked of `lib_trainer.tagging.store.ScoreStore`."""

    def known_content(self, paths: Iterable[Path]) -> dict[Path, str]: ...

    def models(self) -> dict[str, str]: ...

    def scores(self, content_hash: str, model: str) -> dict[str, float]: ...

    def all_origins(self) -> dict[str, dict[str, str]]: ...

    def key(self, path: Path) -> str: ...

    def close(self) -> None: ...


class StoredScores:
    """`TagScores` over a set's score store: the highest score of any model, and where each tag came from.

    The store may come to be, or change, while the set is open: what is remembered is let go when its file changes.
    `open_store` opens the store of a folder without making one.
    """

    def __init__(self, root: Path, open_store: Callable[[Path], ScoreStore]) -> None:
        self.root = root
        self._open = open_store
        self._store: ScoreStore | None = None
        self._stamp: tuple[Any, ...] = ()
        self._lock = threading.RLock()
        self._contents: dict[Path, str] = {}
        self._origins: dict[str, dict[str, str]] = {}
        self._scores: dict[str, dict[str, float]] = {}

    def scores(self, picture: Path) -> Mapping[str, float]:
        """{tag: highest score}; empty where the picture was not scored as it is now."""
        with self._lock:
            store = self._fresh()
            content = self._contents.get(picture)
            if store is None or content is None:
                return {}
            if content not in self._scores:
                best: dict[str, float] = {}
                for model in store.models():
                    for tag, score in store.scores(content, model).items():
                        best[tag] = max(score, best.get(tag, 0.0))
                self._scores[content] = best
            return self._scores[content]

    def origins(self, picture: Path) -> Mapping[str, str]:
        """{tag: 'hand' or 'model score'} as recorded."""
        with self._lock:
            store = self._fresh()
            return {} if store is None else self._origins.get(store.key(picture), {})

    def _fresh(self) -> ScoreStore | None:
        path = self.root / HIDDEN / "scores.sqlite"
        stamp = (_changed(path), _changed(path.with_name("scores.sqlite-wal")))
        if stamp != self._stamp:
            self._stamp = stamp
            self._scores.clear()
            if stamp[0] is None:
                self._store = None
                return None
            self._store = self._store or self._open(self.root)
            pictures = [path for path in self.root.rglob("*") if HIDDEN not in path.parts]
            self._contents = self._store.known_content(pictures)
            self._origins = self._store.all_origins()
        return self._store


def _changed(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def scores_of(root: Path) -> TagScores | None:
    """What the tagger knows of the set; None where this installation has no tagger."""
    try:
        store = importlib.import_module("lib_trainer.tagging.store")
    except ModuleNotFoundError:
        return None
    return StoredScores(root, lambda folder: store.ScoreStore(folder, create=False))
