"""Edits of a set's files as transactions: all of one or none of it, undone and redone, across restarts.

`<set>/.trainer/history.sqlite` is the journal. Files are first compared with what is expected of them: what another
program has written is a conflict, and a transaction that is refused has written nothing. Then the transaction is put
there with the bytes before and after, and marked as pending; then the files are written, with a record of how far that
has come (`begun`), and the mark is taken away. Who finds a pending mark without its writer (which holds a lock of the
operating system, so a killed process holds none) puts back what was begun, and nothing else.

The journal also knows where tags come from: what each transaction says of them counts while it is not undone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock, Timeout

from lib_trainer.dataset.begun import Begun, begun_steps, taken_back
from lib_trainer.dataset.file_moves import (
    Change,
    ConflictError,
    Move,
    RefusedError,
    Signature,
    Step,
    apply_steps,
    checked,
    put_back,
    reverse,
)
from lib_trainer.dataset.journal import digest, forget, mark, open_journal, read_steps, store, write_steps
from lib_trainer.refusals import DatasetError, Sentence

HIDDEN = ".trainer"
WAIT_SECONDS = 60.0
"""How long one editor waits for another. A batch edit of ten thousand captions takes a few seconds."""

HAND, REMOVED = "hand", "removed"

Origins: TypeAlias = Mapping[str, Mapping[str, str]]
"""{path of a caption: {tag_key: where it comes from}}; of tags that are not there, why: see `origins`."""


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
        self.recovered: Sentence | None = None
        self._threads = threading.RLock()
        self._lock = FileLock(self.folder / "lock", timeout=WAIT_SECONDS)
        self._begun = self.folder / "begun"
        self._database: sqlite3.Connection | None = None
        self._users = 0
        self._origins: tuple[object, dict[str, dict[str, str]]] = (None, {})
        if self.path.exists():
            try:
                with self.writing():
                    pass  # puts back what a killed process has left
            except RefusedError:
                if self._pending():
                    raise  # else a set that nobody may write to can be looked at

    @property
    def revision(self) -> int:
        """Grows with every change that any editor makes through a journal of this set."""
        if not self.path.exists():
            return 0
        with self._using() as database:
            return int(database.execute("SELECT number FROM revision").fetchone()[0])

    def entries(self) -> list[Entry]:
        """The transactions, oldest first; those that were undone are at the end."""
        if not self.path.exists():
            return []
        with self._using() as database:
            rows = database.execute("SELECT id, label, time, files, undone FROM entry ORDER BY id").fetchall()
        return [Entry(row[0], row[1], row[2], row[3], bool(row[4])) for row in rows]

    def commit(
        self, label: str, steps: Sequence[Step], *, origins: Origins | None = None, onto: Entry | None = None
    ) -> Entry:
        """Change the files. What was undone before can no longer be redone.

        `origins`: what is to be known of the captions' tags. `onto`: an entry that these steps are to be a part of; it
        grows where nothing has come after it, else there is a new one.
        Raises `ConflictError` where a file is not what a step expects, and `DatasetError` where the disk refuses; in
        both cases everything is as it was.
        """
        if not steps:
            raise DatasetError("history.nothing_would_change")
        with self.writing() as database:
            seen = checked(self.root, steps)
            with self._naming_trouble(), database:
                number, first = self._place(database, label, onto)
                database.execute("UPDATE entry SET files = files + ? WHERE id = ?", (len(steps), number))
                write_steps(database, number, first, steps)
                rows = [(path, number, first, json.dumps(tags)) for path, tags in (origins or {}).items() if tags]
                database.executemany("INSERT INTO origin VALUES (?, ?, ?, ?)", rows)
                token = mark(database, number, "do", first)
            self._carry_out(database, number, token, steps, seen, undone=False, forgets=True)
        return self.entry(number)

    def _place(self, database: sqlite3.Connection, label: str, onto: Entry | None) -> tuple[int, int]:
        """The entry that new steps belong to, and the place of the first of them."""
        last = database.execute("SELECT id, files FROM entry ORDER BY id DESC LIMIT 1").fetchone()
        if onto is not None and last is not None and last[0] == onto.id and not self.entry(onto.id).undone:
            place = database.execute("SELECT max(place) FROM step WHERE entry = ?", (onto.id,)).fetchone()[0]
            return onto.id, 0 if place is None else place + 1
        cursor = database.execute("INSERT INTO entry (label, time, files) VALUES (?, ?, 0)", (label, time.time()))
        return int(cursor.lastrowid or 0), 0

    def entry(self, number: int) -> Entry:
        """One transaction. Raises `DatasetError` where it is not, or no longer, there."""
        found = next((entry for entry in self.entries() if entry.id == number), None)
        if found is None:
            raise DatasetError("history.gone")
        return found

    def undo(self, leaving: Collection[str] = ()) -> Entry:
        """Take back the last transaction. Raises as `commit` does, and `DatasetError` where there is none.

        `leaving`: paths that stay as another program left them; they are no longer part of the transaction.
        """
        return self._turn("SELECT max(id) FROM entry WHERE NOT undone", "undo", leaving)

    def redo(self) -> Entry:
        """Do again what was undone last."""
        return self._turn("SELECT min(id) FROM entry WHERE undone", "redo")

    def steps(self, number: int) -> list[Step]:
        """What a transaction changed."""
        with self._using() as database:
            return read_steps(database, number)

    def origins(self) -> dict[str, dict[str, str]]:
        """{caption: {tag_key: the last that was said of it}}: 'model-name score' of a tag that a tagger has written,
        `HAND`, or `REMOVED` of one that a person has taken away; '' where a tagger has done so. Not to be changed."""
        if not self.path.exists():
            return {}
        with self._using() as database:
            status = os.stat(self.path)  # another folder's journal may be as old, and be in the same place of the disk
            known = status.st_ino, status.st_mtime_ns, self.revision
            if self._origins[0] != known:
                query = "SELECT path, tags FROM origin JOIN entry ON id = entry WHERE NOT undone ORDER BY entry, place"
                found: dict[str, dict[str, str]] = {}
                for path, tags in database.execute(query):
                    found.setdefault(path, {}).update(json.loads(tags))
                self._origins = known, found
            return self._origins[1]

    def take_snapshot(self, name: str, files: Mapping[str, bytes | None]) -> None:
        """Keep the captions' contents under a name. None stands for a picture without a caption file."""
        name = " ".join(name.split())
        if not name:
            raise DatasetError("snapshot.no_name")
        if any(one.name == name for one in self.snapshots()):
            raise DatasetError("snapshot.taken", name=name)
        with self.writing() as database, self._naming_trouble(), database:
            cursor = database.execute("INSERT INTO snapshot (name, time) VALUES (?, ?)", (name, time.time()))
            hashed = {path: None if data is None else digest(data) for path, data in files.items()}
            store(database, (data for data in files.values() if data is not None))
            rows = [(cursor.lastrowid, path, key) for path, key in hashed.items()]
            database.executemany("INSERT INTO snapshot_file VALUES (?, ?, ?)", rows)

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, oldest first."""
        if not self.path.exists():
            return []
        query = "SELECT name, time, (SELECT count(*) FROM snapshot_file WHERE snapshot = id) FROM snapshot ORDER BY id"
        with self._using() as database:
            return [Snapshot(*row) for row in database.execute(query)]

    def snapshot(self, name: str) -> dict[str, bytes | None]:
        """The contents that a snapshot holds, by path. Raises `DatasetError` for an unknown name."""
        if name not in {one.name for one in self.snapshots()}:
            raise DatasetError("snapshot.missing", name=name)
        query = (
            "SELECT path, data FROM snapshot_file LEFT JOIN content USING (hash) "
            "WHERE snapshot = (SELECT id FROM snapshot WHERE name = ?)"
        )
        with self._using() as database:
            return dict(database.execute(query, (name,)).fetchall())

    def close(self) -> None:
        """Nothing is held between two calls; there for who wants to be sure."""
        with self._threads:
            if self._database is not None:
                self._database.close()
                self._database = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the set against other editors; what a killed one has left behind is put back first."""
        with self._threads, self._naming_trouble():
            self.folder.mkdir(exist_ok=True)  # not the set itself, which may have been deleted
            with self._locked(), self._using() as database:
                self.recovered = self._recover(database) or self.recovered
                yield database

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._lock.acquire()
        except Timeout:
            raise DatasetError("history.busy", folder=self.root) from None
        try:
            yield
        finally:
            self._lock.release()

    def _turn(self, query: str, word: str, leaving: Collection[str] = ()) -> Entry:
        if not self.path.exists():
            raise DatasetError("history.nothing_to_undo" if word == "undo" else "history.nothing_to_redo")
        with self.writing() as database:
            number = database.execute(query).fetchone()[0]
            if number is None:
                raise DatasetError("history.nothing_to_undo" if word == "undo" else "history.nothing_to_redo")
            everything = read_steps(database, number)
            steps = [step for step in everything if step.path not in leaving]
            turned = reverse(steps) if word == "undo" else steps
            seen = checked(self.root, turned)
            with database:
                left = [(number, step.path) for step in everything if step.path in leaving]
                database.executemany("DELETE FROM step WHERE entry = ? AND path = ?", left)
                database.executemany("DELETE FROM origin WHERE entry = ? AND path = ?", left)
                database.execute("UPDATE entry SET files = files - ? WHERE id = ?", (len(left), number))
                token = mark(database, number, word)
            self._carry_out(database, number, token, turned, seen, undone=word == "undo")
        return self.entry(number)

    def _carry_out(
        self,
        database: sqlite3.Connection,
        number: int,
        token: str,
        steps: Sequence[Step],
        seen: Sequence[Signature],
        *,
        undone: bool,
        forgets: bool = False,
    ) -> None:
        """Change the files and take the pending mark away; or put back what was begun, mark and all. `forgets`: what
        was undone before goes with the mark."""
        try:
            record = Begun(self._begun, token)
            try:
                apply_steps(self.root, steps, seen, record.one_more)
            finally:
                record.close()
            with database:
                database.execute("UPDATE entry SET undone = ? WHERE id = ?", (undone, number))
                for table in ("step", "origin") if forgets else ():
                    database.execute(f"DELETE FROM {table} WHERE entry IN (SELECT id FROM entry WHERE undone)")
                if forgets:
                    database.execute("DELETE FROM entry WHERE undone")
                database.execute("DELETE FROM pending")
                database.execute("UPDATE revision SET number = number + 1")
        except Exception:
            self._recover(database)
            raise

    def _recover(self, database: sqlite3.Connection) -> Sentence | None:
        """Put back what is pending as far as it was begun, and say so in a sentence."""
        said: Sentence | None = None
        for number, direction, first, token in database.execute("SELECT * FROM pending").fetchall():
            steps = read_steps(database, number, first)
            ordered = reverse(steps) if direction == "undo" else steps
            begun = begun_steps(self._begun, token, len(steps)) if token else len(steps)  # an older version kept none
            kept = (lambda count: taken_back(self._begun, count)) if token else (lambda count: None)
            foreign = put_back(self.root, ordered[:begun], kept)
            label = database.execute("SELECT label FROM entry WHERE id = ?", (number,)).fetchone()[0]
            with database:
                if direction == "do":
                    forget(database, number, first)
                database.execute("DELETE FROM pending")
                database.execute("UPDATE revision SET number = number + 1")
            said = Sentence("history.taken_back", label=label)
            if foreign:
                said = Sentence("history.partly_taken_back", label=label, count=len(foreign), files=foreign[:3])
        return said

    def _pending(self) -> bool:
        with self._using() as database:
            return bool(database.execute("SELECT count(*) FROM pending").fetchone()[0])

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The journal, open for as long as somebody here reads or writes it. One that stays open is that of a folder
        which may be gone or another by now, and under Windows keeps its user from moving or deleting it."""
        with self._threads, self._naming_trouble():
            if self._database is None:
                self._database = open_journal(self.path)
            self._users += 1
            try:
                yield self._database
            finally:
                self._users -= 1
                if not self._users:
                    self.close()

    @contextlib.contextmanager
    def _naming_trouble(self) -> Iterator[None]:
        """sqlite's and the system's errors as sentences."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if "readonly" in str(error):
                locked = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))
                raise RefusedError(self.root, locked) from error
            full = "full" in str(error)
            raise DatasetError("history.full" if full else "history.unusable", path=self.path, reason=error) from error
        except OSError as error:
            raise RefusedError(self.root, error) from error


__all__ = ["HAND", "REMOVED", "Change", "ConflictError", "Entry", "History", "Move", "RefusedError", "Snapshot", "Step"]
