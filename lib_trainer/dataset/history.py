"""Edits of a set's files as transactions: all of one or none of it, undone and redone, across restarts.

`<set>/.trainer/history.sqlite` is the journal. A transaction is written there with the bytes before and after, and
marked as pending, before a file is touched; new contents are staged beside it, then renamed over the old ones, and the
mark is taken away. Who finds a pending mark without its writer (which holds a lock of the operating system, so a killed
process holds none) puts everything back. Files are compared with what is expected of them before anything is changed:
what another program has written is a conflict, never overwritten.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_trainer.dataset.file_lock import FileLock
from lib_trainer.dataset.file_moves import (
    Change,
    ConflictError,
    Move,
    Step,
    apply_steps,
    clean_staging,
    put_back,
    reverse,
)
from lib_trainer.errors import DatasetError

HIDDEN = ".trainer"
VERSION = 1
TABLES = """
CREATE TABLE content (hash BLOB PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE entry (id INTEGER PRIMARY KEY, label TEXT NOT NULL, time REAL NOT NULL, files INTEGER NOT NULL,
                    undone INTEGER NOT NULL DEFAULT 0);
CREATE TABLE step (entry INTEGER NOT NULL, place INTEGER NOT NULL, path TEXT NOT NULL, target TEXT,
                   before BLOB, after BLOB, PRIMARY KEY (entry, place)) WITHOUT ROWID;
CREATE TABLE pending (entry INTEGER NOT NULL, direction TEXT NOT NULL);
CREATE TABLE snapshot (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, time REAL NOT NULL);
CREATE TABLE snapshot_file (snapshot INTEGER NOT NULL, path TEXT NOT NULL, hash BLOB,
                            PRIMARY KEY (snapshot, path)) WITHOUT ROWID;
CREATE TABLE revision (number INTEGER NOT NULL);
INSERT INTO revision VALUES (0);
"""


@dataclass(frozen=True)
class Entry:
    """A transaction in the history. `time`: seconds since 1970; `undone`: it can be redone."""

    id: int
    label: str
    time: float
    files: int
    undone: bool


@dataclass(frozen=True)
class Snapshot:
    """A named state of all captions."""

    name: str
    time: float
    files: int


class History:
    """The journal of one set. Safe for several threads and several processes.

    `root`: the set's folder; paths in steps are relative to it, with `/`. Raises `DatasetError` where the journal
    cannot be made or read. `recovered` says in a sentence what was put back on opening, if anything was.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / HIDDEN
        self.path = self.folder / "history.sqlite"
        self.recovered = ""
        self._threads = threading.RLock()
        self._lock = FileLock(self.folder / "lock")
        self._database: sqlite3.Connection | None = None
        if self.path.exists():
            with self.writing():
                pass  # puts back what a killed process has left

    @property
    def revision(self) -> int:
        """Grows with every change that any editor makes through a journal of this set."""
        if not self.path.exists():
            return 0
        with self._threads, self._naming_trouble():
            return int(self._db().execute("SELECT number FROM revision").fetchone()[0])

    def entries(self) -> list[Entry]:
        """The transactions, oldest first; those that were undone are at the end."""
        if not self.path.exists():
            return []
        with self._threads, self._naming_trouble():
            rows = self._db().execute("SELECT id, label, time, files, undone FROM entry ORDER BY id").fetchall()
        return [Entry(row[0], row[1], row[2], row[3], bool(row[4])) for row in rows]

    def commit(self, label: str, steps: Sequence[Step]) -> Entry:
        """Change the files. What was undone before can no longer be redone.

        Raises `ConflictError` where a file is not what a step expects, and `DatasetError` where the disk refuses; in
        both cases everything is as it was.
        """
        if not steps:
            raise DatasetError("Nothing would change: no transaction was made.")
        with self.writing() as database:
            with self._naming_trouble(), database:
                cursor = database.execute(
                    "INSERT INTO entry (label, time, files) VALUES (?, ?, ?)", (label, time.time(), len(steps))
                )
                number = int(cursor.lastrowid or 0)
                self._write_steps(database, number, steps)
                database.execute("INSERT INTO pending VALUES (?, 'do')", (number,))
            self._carry_out(database, number, steps, undone=False)
            with self._naming_trouble(), database:
                database.execute("DELETE FROM step WHERE entry IN (SELECT id FROM entry WHERE undone)")
                database.execute("DELETE FROM entry WHERE undone")
        return next(entry for entry in self.entries() if entry.id == number)

    def undo(self) -> Entry:
        """Take back the last transaction. Raises as `commit` does, and `DatasetError` where there is none."""
        return self._turn("SELECT max(id) FROM entry WHERE NOT undone", "undo")

    def redo(self) -> Entry:
        """Do again what was undone last."""
        return self._turn("SELECT min(id) FROM entry WHERE undone", "redo")

    def steps(self, number: int) -> list[Step]:
        """What a transaction changed."""
        with self._threads, self._naming_trouble():
            return self._read_steps(self._db(), number)

    def take_snapshot(self, name: str, files: Mapping[str, bytes | None]) -> None:
        """Keep the captions' contents under a name. None stands for a picture without a caption file."""
        name = " ".join(name.split())
        if not name:
            raise DatasetError("The snapshot has no name: write one.")
        if any(one.name == name for one in self.snapshots()):
            raise DatasetError(f"There is a snapshot called '{name}' already: choose another name.")
        with self.writing() as database, self._naming_trouble(), database:
            cursor = database.execute("INSERT INTO snapshot (name, time) VALUES (?, ?)", (name, time.time()))
            hashed = {path: None if data is None else _hash(data) for path, data in files.items()}
            _store(database, (data for data in files.values() if data is not None))
            rows = [(cursor.lastrowid, path, digest) for path, digest in hashed.items()]
            database.executemany("INSERT INTO snapshot_file VALUES (?, ?, ?)", rows)

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, oldest first."""
        if not self.path.exists():
            return []
        query = "SELECT name, time, (SELECT count(*) FROM snapshot_file WHERE snapshot = id) FROM snapshot ORDER BY id"
        with self._threads, self._naming_trouble():
            return [Snapshot(*row) for row in self._db().execute(query)]

    def snapshot(self, name: str) -> dict[str, bytes | None]:
        """The contents that a snapshot holds, by path. Raises `DatasetError` for a name that is none."""
        if name not in {one.name for one in self.snapshots()}:
            raise DatasetError(f"There is no snapshot called '{name}'.")
        query = (
            "SELECT path, data FROM snapshot_file LEFT JOIN content USING (hash) "
            "WHERE snapshot = (SELECT id FROM snapshot WHERE name = ?)"
        )
        with self._threads, self._naming_trouble():
            return dict(self._db().execute(query, (name,)).fetchall())

    def close(self) -> None:
        with self._threads:
            if self._database is not None:
                self._database.close()
                self._database = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the set against other editors; what a killed one has left behind is put back first."""
        with self._threads, self._naming_trouble():
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock:
                self.recovered = self._recover(self._db()) or self.recovered
                yield self._db()

    def _turn(self, query: str, word: str) -> Entry:
        if not self.path.exists():
            raise DatasetError(f"There is nothing to {word}.")
        with self.writing() as database:
            number = database.execute(query).fetchone()[0]
            if number is None:
                raise DatasetError(f"There is nothing to {word}.")
            steps = self._read_steps(database, number)
            with database:
                database.execute("INSERT INTO pending VALUES (?, ?)", (number, word))
            self._carry_out(database, number, reverse(steps) if word == "undo" else steps, undone=word == "undo")
        return next(entry for entry in self.entries() if entry.id == number)

    def _carry_out(self, database: sqlite3.Connection, number: int, steps: Sequence[Step], *, undone: bool) -> None:
        """Change the files and take the pending mark away; or put everything back, mark and all."""
        try:
            apply_steps(self.root, self.folder / "staging", steps)
            with database:
                database.execute("UPDATE entry SET undone = ? WHERE id = ?", (undone, number))
                database.execute("DELETE FROM pending")
                database.execute("UPDATE revision SET number = number + 1")
        except Exception:
            self._recover(database)
            raise

    def _recover(self, database: sqlite3.Connection) -> str:
        """Put back what is pending, and say so in a sentence."""
        said = ""
        for number, direction in database.execute("SELECT entry, direction FROM pending").fetchall():
            steps = self._read_steps(database, number)
            foreign = put_back(self.root, self.folder / "staging", reverse(steps) if direction == "undo" else steps)
            label = database.execute("SELECT label FROM entry WHERE id = ?", (number,)).fetchone()[0]
            with database:
                if direction == "do":
                    database.execute("DELETE FROM step WHERE entry = ?", (number,))
                    database.execute("DELETE FROM entry WHERE id = ?", (number,))
                database.execute("DELETE FROM pending")
                database.execute("UPDATE revision SET number = number + 1")
            said = f"'{label}' was cut short and has been taken back."
            if foreign:
                said += f" {len(foreign)} files were changed by another program since and were left alone: "
                said += ", ".join(foreign[:3]) + "."
        clean_staging(self.folder / "staging")
        return said

    def _write_steps(self, database: sqlite3.Connection, number: int, steps: Sequence[Step]) -> None:
        contents = (data for step in steps if isinstance(step, Change) for data in (step.before, step.after))
        _store(database, (data for data in contents if data is not None))
        rows = [(number, place, *_row(step)) for place, step in enumerate(steps)]
        database.executemany("INSERT INTO step VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _read_steps(self, database: sqlite3.Connection, number: int) -> list[Step]:
        query = (
            "SELECT path, target, b.data, a.data FROM step LEFT JOIN content b ON b.hash = before "
            "LEFT JOIN content a ON a.hash = after WHERE entry = ? ORDER BY place"
        )
        rows = database.execute(query, (number,)).fetchall()
        return [
            Change(path, before, after) if target is None else Move(path, target)
            for path, target, before, after in rows
        ]

    def _db(self) -> sqlite3.Connection:
        if self._database is None:
            database = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
            try:
                database.execute("PRAGMA synchronous = FULL")
                version = database.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    database.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
                elif version > VERSION:
                    raise DatasetError(f"'{self.path}' was written by a newer version of the trainer: update this one.")
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    @contextlib.contextmanager
    def _naming_trouble(self) -> Iterator[None]:
        """sqlite's and the system's errors as sentences."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            remedy = "free some space" if "full" in str(error) else "check the disk, or move the file away"
            raise DatasetError(f"The history '{self.path}' cannot be used ({error}): {remedy}.") from error
        except OSError as error:
            raise DatasetError(
                f"The files of '{self.root}' cannot be changed ({error.strerror or error}): free some space or check "
                "the permissions; nothing has been changed."
            ) from error


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _store(database: sqlite3.Connection, contents: Iterable[bytes]) -> None:
    database.executemany("INSERT OR IGNORE INTO content VALUES (?, ?)", ((_hash(data), data) for data in contents))


def _row(step: Step) -> tuple[str, str | None, bytes | None, bytes | None]:
    if isinstance(step, Move):
        return step.path, step.target, None, None
    hashes = [None if data is None else _hash(data) for data in (step.before, step.after)]
    return step.path, None, hashes[0], hashes[1]


__all__ = ["Change", "ConflictError", "Entry", "History", "Move", "Snapshot", "Step"]
