"""What is known of a data set's tags: `<dataset>/.trainer/scores.sqlite`.

Scores are kept by the picture's content (SHA-256 of the file) and the model's fingerprint: a renamed or copied picture,
another threshold or a second run costs nothing. Beside them stands what was accepted or rejected by hand. Where each
written tag came from stands in the history of the set (`dataset.history`), so that an undo takes it back as well. Tags
are returned spelt with spaces; they are compared by `captions.tags.tag_key`.

Format: tables `models`, `scores` (uint16 outputs and float32 scores, little-endian, as blobs), `files` (a picture's
size and time of change when it was hashed), `verdicts`; `origins` as earlier versions kept them, which are read.
`PRAGMA user_version` is `VERSION`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib_trainer.captions.tags import tag_key, with_spaces
from lib_trainer.dataset.history import HAND, HIDDEN, REMOVED, History
from lib_trainer.refusals import TaggerError
from lib_trainer.tagging.models.labels import Labels
from lib_trainer.tagging.scores.database import SCHEMA, VERSION, content_of, sentence, unwritten
from lib_trainer.tagging.scores.table import Rows, ScoreTable

FOLDER, FILE = HIDDEN, "scores.sqlite"
WAIT_SECONDS = 20.0
FEW = 200
"""Up to so many pictures are looked up one by one; more are cheaper to find in the whole table."""


class ScoreStore:
    """The scores and origins of one data set. Any thread may use it; several processes may, too.

    `dataset`: the folder that is tagged. With `create=False` a data set that was never tagged is an empty store, and
    nothing is written. Raises `TaggerError` in one sentence wherever the file cannot be read or written.
    """

    def __init__(self, dataset: Path, *, create: bool = True) -> None:
        self.dataset = Path(os.path.abspath(dataset))
        self.path = self.dataset / FOLDER / FILE
        self._lock = threading.RLock()
        self._labels: dict[str, Labels] = {}
        self._history: History | None = None
        with self._told():
            if create:
                self.path.parent.mkdir(exist_ok=True)
            self._open(str(self.path) if create or self.path.exists() else ":memory:")
            try:
                self._prepare()
            except sqlite3.OperationalError:
                if create or self.path.with_name(f"{FILE}-wal").exists():
                    raise
                self._closer()
                self._open(unwritten(self.path))  # a folder that nobody may write to
                if self._version() < VERSION:
                    raise

    def _open(self, target: str) -> None:
        self._base = sqlite3.connect(
            target, timeout=WAIT_SECONDS, check_same_thread=False, isolation_level=None, uri=True
        )
        self._closer = weakref.finalize(self, self._base.close)

    def _version(self) -> int:
        version = int(self._base.execute("PRAGMA user_version").fetchone()[0])
        if version > VERSION:
            raise TaggerError("scores.newer", path=self.path)
        return version

    def _prepare(self) -> None:
        version = self._version()
        self._base.execute("PRAGMA journal_mode=WAL")  # readers go on while a batch writes; network drives decline
        self._base.execute("PRAGMA synchronous=NORMAL")
        if version < VERSION:
            self._base.executescript(SCHEMA)
            self._base.execute(f"PRAGMA user_version={VERSION}")

    def close(self) -> None:
        with self._lock:
            self._closer()
            if self._history is not None:
                self._history.close()

    @property
    def history(self) -> History:
        """The edits of the data set. Made with the first edit; what a killed one has left is put back here."""
        with self._lock:
            if self._history is None:
                self._history = History(self.dataset)
            return self._history

    def __enter__(self) -> ScoreStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- pictures ------------------------------------------------------------------------------------------------

    def known_content(self, paths: Iterable[Path]) -> dict[Path, str]:
        """{picture: content hash} of those that have not changed since they were hashed. No file is read."""
        paths = list(paths)
        with self._told():
            if len(paths) < FEW:
                query = "SELECT path, size, changed, content FROM files WHERE path = ?"
                rows = [row for path in paths for row in self._base.execute(query, (self.key(path),))]
            else:
                rows = self._base.execute("SELECT path, size, changed, content FROM files").fetchall()
        seen = {path: (size, changed, content) for path, size, changed, content in rows}
        found = {}
        for path in paths:
            entry = seen.get(self.key(path))
            if entry is None:
                continue
            with contextlib.suppress(OSError):
                status = path.stat()
                if (status.st_size, status.st_mtime_ns) == entry[:2]:
                    found[path] = entry[2]
        return found

    def content_hash(self, path: Path) -> str:
        """SHA-256 of the file in hexadecimal; read only if the file has changed. Raises `TaggerError`."""
        known = self.known_content([path])
        if path in known:
            return known[path]
        try:
            status, data = path.stat(), path.read_bytes()
        except OSError as error:
            raise TaggerError("scores.picture", path=path, reason=error) from error
        content = content_of(data)
        with self._writing() as base:
            base.execute(*self._file_row(path, status, content))
        return content

    def key(self, path: Path) -> str:
        """How a picture or caption is named in the store: relative to the data set, with slashes."""
        return Path(os.path.relpath(os.path.abspath(path), self.dataset)).as_posix()

    # -- scores --------------------------------------------------------------------------------------------------

    def put(
        self,
        fingerprint: str,
        name: str,
        labels: Labels,
        scored: Sequence[tuple[Path, os.stat_result, str, Rows]],
    ) -> None:
        """Keep (picture, its status when it was read, content hash, scores) of some pictures, in one transaction."""
        with self._writing() as base:
            model = self._model_id(base, fingerprint, name, labels)
            for path, status, content, (outputs, values) in scored:
                base.execute(*self._file_row(path, status, content))
                blobs = (outputs.astype("<u2").tobytes(), values.astype("<f4").tobytes())
                base.execute("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", (model, content, *blobs))

    def models(self) -> dict[str, str]:
        """{fingerprint: name} of every model that has scored something here."""
        with self._told():
            return dict(self._base.execute("SELECT fingerprint, name FROM models ORDER BY id").fetchall())

    def scored(self, model: str) -> set[str]:
        """Content hashes that a model (fingerprint or name) has scored."""
        with self._told():
            query = "SELECT content FROM scores JOIN models ON models.id = model WHERE ? IN (fingerprint, name)"
            return {content for (content,) in self._base.execute(query, (model,))}

    def scores(self, content_hash: str, model: str) -> dict[str, float]:
        """{tag with spaces: score} of one picture by one model (its fingerprint or name); empty if it is not known.

        Scores below `table.FLOOR` are not kept.
        """
        with self._told():
            query = (
                "SELECT fingerprint, outputs, scores FROM scores JOIN models ON models.id = model"
                " WHERE content = ? AND ? IN (fingerprint, name) ORDER BY model DESC LIMIT 1"
            )
            row = self._base.execute(query, (content_hash, model)).fetchone()
        return {} if row is None else self._named(*row)

    def best_scores(self, path: Path) -> Mapping[str, float]:
        """{tag with spaces: highest score of any model} of a picture; empty if none has scored it as it is now."""
        content = self.known_content([path]).get(path)
        best: dict[str, float] = {}
        with self._told():
            query = "SELECT fingerprint, outputs, scores FROM scores JOIN models ON models.id = model WHERE content = ?"
            rows = self._base.execute(query, (content,)).fetchall() if content else []
        for row in rows:
            for tag, score in self._named(*row).items():
                best[tag] = max(score, best.get(tag, 0.0))
        return best

    def table(self, model: str, contents: Sequence[str]) -> ScoreTable:
        """The scores of pictures by content hash, in that order, by one model (its fingerprint).

        Raises `TaggerError` if one of them has not been scored.
        """
        with self._told():
            query = "SELECT content, outputs, scores FROM scores JOIN models ON models.id = model WHERE fingerprint = ?"
            rows = {content: (outputs, scores) for content, outputs, scores in self._base.execute(query, (model,))}
        try:
            blobs = [rows[content] for content in contents]
        except KeyError:
            raise TaggerError("scores.some_missing") from None
        counts = np.array([len(outputs) // 2 for outputs, _ in blobs], dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        columns = np.frombuffer(b"".join(outputs for outputs, _ in blobs), "<u2").astype(np.int32)
        values = np.frombuffer(b"".join(scores for _, scores in blobs), "<f4").astype(np.float32)
        return ScoreTable(self.labels_of(model), starts, columns, values)

    def rows_of(self, fingerprint: str, contents: Sequence[str]) -> list[Rows]:
        """The kept scores of a few pictures. Raises `TaggerError` if one of them has not been scored."""
        query = (
            "SELECT outputs, scores FROM scores JOIN models ON models.id = model WHERE fingerprint = ? AND content = ?"
        )
        with self._told():
            found = [self._base.execute(query, (fingerprint, content)).fetchone() for content in contents]
        if None in found:
            raise TaggerError("scores.some_missing")
        return [(np.frombuffer(outputs, "<u2"), np.frombuffer(scores, "<f4")) for outputs, scores in found]

    def labels_of(self, fingerprint: str) -> Labels:
        """The labels of a model that has scored something here. Raises `TaggerError`."""
        with self._lock:
            if fingerprint not in self._labels:
                with self._told():
                    query = "SELECT labels FROM models WHERE fingerprint = ?"
                    row = self._base.execute(query, (fingerprint,)).fetchone()
                if row is None:
                    raise TaggerError("scores.missing")
                names, categories, counts = json.loads(row[0])
                self._labels[fingerprint] = Labels(tuple(names), tuple(categories), tuple(counts))
            return self._labels[fingerprint]

    # -- origins and verdicts ------------------------------------------------------------------------------------

    def origins(self, path: Path) -> Mapping[str, str]:
        """{tag with spaces: 'hand' or 'model-name score'} as recorded for a picture.

        A tag of the caption that is not in here stands there by hand, or came with the data set.
        """
        from lib_trainer.tagging.pictures import CaptionPlaces  # knows picture files, which a plain question need not

        said = self.said_of([path], {path: CaptionPlaces().path(path)})
        return {with_spaces(tag): origin for tag, origin in origins_of(said.get(self.key(path), {})).items()}

    def said_of(self, pictures: Sequence[Path], captions: Mapping[Path, Path]) -> dict[str, dict[str, str]]:
        """{`key` of a picture: {tag_key: 'hand', 'model-name score', `REMOVED` or ''}} of all that is recorded, for
        pictures and the captions that belong to them."""
        said: dict[str, dict[str, str]] = {}
        with self._told():
            query, values = "SELECT path, tag, origin FROM origins", ()
            if len(pictures) == 1:
                query, values = f"{query} WHERE path = ?", (self.key(pictures[0]),)  # type: ignore[assignment]
            for path, tag, origin in self._base.execute(query, values):
                said.setdefault(path, {})[tag_key(tag)] = origin
        later = self.history.origins()
        for picture in pictures if later else ():
            found = later.get(self.key(captions[picture]))
            if found:
                said.setdefault(self.key(picture), {}).update(found)
        return said

    def verdicts(self) -> dict[tuple[str, str], bool]:
        """{(content hash, tag_key): accepted} of what was decided by hand."""
        with self._told():
            rows = self._base.execute("SELECT content, tag, accepted FROM verdicts").fetchall()
        return {(content, tag): bool(accepted) for content, tag, accepted in rows}

    def decide(self, content: str, tag: str, accepted: bool | None) -> None:
        """Accept or reject a tag for a picture, whatever its score; None takes the decision back."""
        with self._writing() as base:
            base.execute("DELETE FROM verdicts WHERE content = ? AND tag = ?", (content, tag_key(tag)))
            if accepted is not None:
                base.execute("INSERT INTO verdicts VALUES (?, ?, ?)", (content, tag_key(tag), int(accepted)))

    # -- within --------------------------------------------------------------------------------------------------

    def _named(self, fingerprint: str, outputs: bytes, scores: bytes) -> dict[str, float]:
        names = self.labels_of(fingerprint).spaced
        numbers = np.frombuffer(outputs, "<u2").tolist()
        return {names[number]: score for number, score in zip(numbers, np.frombuffer(scores, "<f4").tolist())}

    def _model_id(self, base: sqlite3.Connection, fingerprint: str, name: str, labels: Labels) -> int:
        row = base.execute("SELECT id FROM models WHERE fingerprint = ?", (fingerprint,)).fetchone()
        if row is not None:
            return int(row[0])
        text = json.dumps([labels.names, labels.categories, labels.counts], ensure_ascii=False)
        base.execute(
            "INSERT OR IGNORE INTO models (fingerprint, name, labels) VALUES (?, ?, ?)", (fingerprint, name, text)
        )
        row = base.execute("SELECT id FROM models WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return int(row[0])

    def _file_row(self, path: Path, status: os.stat_result, content: str) -> tuple[str, tuple[Any, ...]]:
        row = (self.key(path), status.st_size, status.st_mtime_ns, content)
        return "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", row

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it or nothing."""
        with self._told():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
            except BaseException:
                if self._base.in_transaction:  # a full disk has rolled back by itself
                    self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The lock, and the file system's and SQLite's errors as a sentence."""
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                raise TaggerError(sentence(self.path, error)) from error


def origins_of(said: Mapping[str, str]) -> dict[str, str]:
    """Of what is recorded: where the tags come from. One that was removed and is there again stands there by hand."""
    return {tag: HAND if origin == REMOVED else origin for tag, origin in said.items() if origin}


def removed_of(said: Mapping[str, str], there: Collection[str]) -> set[str]:
    """The tags (by `tag_key`) that a person has taken away: by an edit of the set, or with another program.

    `there`: the tags of the caption. From one that has none nothing is concluded but what an edit has said.
    """
    return {tag for tag, origin in said.items() if tag not in there and (origin == REMOVED or (origin and there))}
