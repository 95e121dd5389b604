"""The journal's file: its tables, and transactions' steps in and out of them. `history` says what they mean."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from lib_trainer.dataset.file_moves import Change, Move, Step
from lib_trainer.refusals import DatasetError

VERSION = 2
TABLES = """
CREATE TABLE content (hash BLOB PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE entry (id INTEGER PRIMARY KEY, label TEXT NOT NULL, time REAL NOT NULL, files INTEGER NOT NULL,
                    undone INTEGER NOT NULL DEFAULT 0);
CREATE TABLE step (entry INTEGER NOT NULL, place INTEGER NOT NULL, path TEXT NOT NULL, target TEXT,
                   before BLOB, after BLOB, PRIMARY KEY (entry, place)) WITHOUT ROWID;
CREATE TABLE pending (entry INTEGER NOT NULL, direction TEXT NOT NULL, first INTEGER NOT NULL DEFAULT 0, token TEXT);
CREATE TABLE origin (path TEXT NOT NULL, entry INTEGER NOT NULL, place INTEGER NOT NULL, tags TEXT NOT NULL,
                     PRIMARY KEY (path, entry, place)) WITHOUT ROWID;
CREATE TABLE snapshot (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, time REAL NOT NULL);
CREATE TABLE snapshot_file (snapshot INTEGER NOT NULL, path TEXT NOT NULL, hash BLOB,
                            PRIMARY KEY (snapshot, path)) WITHOUT ROWID;
CREATE TABLE revision (number INTEGER NOT NULL);
INSERT INTO revision VALUES (0);
"""
SINCE_1 = """
ALTER TABLE pending ADD COLUMN first INTEGER NOT NULL DEFAULT 0;
ALTER TABLE pending ADD COLUMN token TEXT;
CREATE TABLE origin (path TEXT NOT NULL, entry INTEGER NOT NULL, place INTEGER NOT NULL, tags TEXT NOT NULL,
                     PRIMARY KEY (path, entry, place)) WITHOUT ROWID;
"""


def open_journal(path: Path) -> sqlite3.Connection:
    """The journal at `path`, made where it is not there. Raises `DatasetError` for one of a newer version."""
    database = sqlite3.connect(path, timeout=30, check_same_thread=False)
    try:
        database.execute("PRAGMA synchronous = FULL")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version in (0, 1):
            tables = SINCE_1 if version else TABLES
            database.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA user_version = {VERSION}; COMMIT;")
        elif version > VERSION:
            raise DatasetError("history.newer", path=path)
    except BaseException:
        database.close()
        raise
    return database


def write_steps(database: sqlite3.Connection, number: int, first: int, steps: Sequence[Step]) -> None:
    """Put steps into an entry, from place `first` on."""
    contents = (data for step in steps if isinstance(step, Change) for data in (step.before, step.after))
    store(database, (data for data in contents if data is not None))
    rows = [(number, place, *_row(step)) for place, step in enumerate(steps, first)]
    database.executemany("INSERT INTO step VALUES (?, ?, ?, ?, ?, ?)", rows)


def read_steps(database: sqlite3.Connection, number: int, first: int = 0) -> list[Step]:
    """An entry's steps, in order, from place `first` on."""
    query = (
        "SELECT path, target, b.data, a.data FROM step LEFT JOIN content b ON b.hash = before "
        "LEFT JOIN content a ON a.hash = after WHERE entry = ? AND place >= ? ORDER BY place"
    )
    rows = database.execute(query, (number, first)).fetchall()
    return [
        Change(path, before, after) if target is None else Move(path, target) for path, target, before, after in rows
    ]


def mark(database: sqlite3.Connection, number: int, direction: str, first: int = 0) -> str:
    """Mark an entry's steps, from place `first` on, as pending; returns the name of the record of how far it comes."""
    token = secrets.token_hex(16)
    database.execute("INSERT INTO pending VALUES (?, ?, ?, ?)", (number, direction, first, token))
    return token


def forget(database: sqlite3.Connection, number: int, first: int) -> None:
    """Take the steps from place `first` on out of an entry, and the entry with its last step."""
    for table in ("step", "origin"):
        database.execute(f"DELETE FROM {table} WHERE entry = ? AND place >= ?", (number, first))
    left = database.execute("SELECT count(*) FROM step WHERE entry = ?", (number,)).fetchone()[0]
    database.execute("UPDATE entry SET files = ? WHERE id = ?", (left, number))
    if not left:
        database.execute("DELETE FROM entry WHERE id = ?", (number,))


def digest(data: bytes) -> bytes:
    """What a content is found by."""
    return hashlib.blake2b(data, digest_size=16).digest()


def store(database: sqlite3.Connection, contents: Iterable[bytes]) -> None:
    """Keep contents, each once."""
    database.executemany("INSERT OR IGNORE INTO content VALUES (?, ?)", ((digest(data), data) for data in contents))


def _row(step: Step) -> tuple[str, str | None, bytes | None, bytes | None]:
    if isinstance(step, Move):
        return step.path, step.target, None, None
    hashes = [None if data is None else digest(data) for data in (step.before, step.after)]
    return step.path, None, hashes[0], hashes[1]
