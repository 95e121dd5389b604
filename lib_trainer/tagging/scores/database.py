"""The file behind the score store: its tables, and SQLite's complaints as sentences."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePath

from lib_trainer.refusals import Sentence

VERSION = 1
"""`PRAGMA user_version` of the file."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS models (id INTEGER PRIMARY KEY, fingerprint TEXT UNIQUE NOT NULL, name TEXT NOT NULL,
    labels TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scores (model INTEGER NOT NULL, content TEXT NOT NULL, outputs BLOB NOT NULL,
    scores BLOB NOT NULL, PRIMARY KEY (model, content)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER NOT NULL, changed INTEGER NOT NULL,
    content TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS origins (path TEXT NOT NULL, tag TEXT NOT NULL, origin TEXT NOT NULL,
    PRIMARY KEY (path, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS verdicts (content TEXT NOT NULL, tag TEXT NOT NULL, accepted INTEGER NOT NULL,
    PRIMARY KEY (content, tag)) WITHOUT ROWID;
"""


def content_of(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def unwritten(path: PurePath) -> str:
    """What SQLite is to open so that it writes nothing at all beside the file. A share of Windows is no host to it."""
    address = path.as_uri()
    share = not address.startswith("file:///")  # file://server/share/…
    return f"{address.replace('file://', 'file:////', 1) if share else address}?immutable=1"


def sentence(path: Path, error: Exception) -> Sentence:
    """What went wrong with the file at `path`, and the remedy."""
    reason = str(getattr(error, "strerror", None) or error)
    if "malformed" in reason or "not a database" in reason:
        return Sentence("scores.damaged", path=path)
    if "full" in reason or "No space" in reason:
        return Sentence("scores.disk_full", path=path)
    if "locked" in reason:
        return Sentence("scores.in_use", path=path)
    return Sentence("scores.unusable", path=path, reason=error)
