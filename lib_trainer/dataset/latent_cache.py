"""The folder of encoded pictures that runs share: what is in it, who reads from it now, and what may go.

Whoever opens a file here touches it first (`latents.DiskStore`), so its date says when a run last needed it. A run that
reads holds the lock of a file in `READERS` for as long: what has been touched since it began is never removed. Nobody
waits for anybody: a run that finds a file gone encodes its picture again.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lib_trainer.files import TEMPORARY
from lib_trainer.refusals import ConfigError, DatasetError

READERS = ".reading"
DAY = 86400.0
MOST_DAYS = 100_000
_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")


@dataclass(frozen=True)
class Amount:
    """Encoded pictures, and the bytes that they take."""

    pictures: int = 0
    bytes: int = 0

    def more(self, size: int) -> Amount:
        return Amount(self.pictures + 1, self.bytes + size)


@dataclass(frozen=True)
class Contents:
    """All that is kept; `unused`: that nothing has read for a while, and that may go."""

    all: Amount
    unused: Amount


def checked_days(days: Any) -> float:
    """A number of days, as somebody wrote it. Raises `ConfigError`."""
    try:
        value = float(str(days).strip())
    except ValueError:
        value = -1.0
    if not 0 <= value < MOST_DAYS:
        raise ConfigError("cache.days", days=days)
    return value


def shown_bytes(amount: Amount) -> str:
    """As people read it."""
    size = float(amount.bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[float]:
    """While it is open, nothing that is touched in the folder from now on is removed by `prune`.

    Gives the time that counts as now there. Raises `DatasetError` where the folder cannot be written.
    """
    place = folder / READERS / f"{os.getpid()}-{secrets.token_hex(4)}"
    lock = FileLock(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        os.utime(place)
        begun = place.stat().st_mtime
    except (OSError, Timeout) as error:
        raise DatasetError("latents.no_folder", folder=folder, reason=error) from error
    try:
        yield begun
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            place.unlink()


def contents(folder: Path, days: float = 0.0) -> Contents:
    """What is kept, and how much of it no run has read for so many days and no running one has needed so far.

    Raises `DatasetError` where the folder cannot be read; one that is not there is empty.
    """
    if not folder.is_dir():
        return Contents(Amount(), Amount())
    every, unused, before = Amount(), Amount(), _before(folder, days)
    for _, status in _kept(folder):
        every = every.more(status.st_size)
        if status.st_mtime < before:
            unused = unused.more(status.st_size)
    return Contents(every, unused)


def prune(folder: Path, days: float = 0.0) -> Amount:
    """Remove what `contents` calls unused, and say how much it was.

    What a run touches meanwhile stays: a file goes under another name first, is looked at again, and comes back where
    its date has changed. Raises `DatasetError`.
    """
    if not folder.is_dir():
        return Amount()
    gone, before = Amount(), _before(folder, days)
    _sweep(folder)
    for path, status in _kept(folder):
        if status.st_mtime >= before:
            continue
        aside = folder / f"{TEMPORARY}{secrets.token_hex(6)}"
        try:
            os.replace(path, aside)
            if aside.stat().st_mtime >= before:
                os.replace(aside, path)
                continue
            aside.unlink()
        except FileNotFoundError:  # another pruning has taken it
            continue
        except OSError as error:
            raise DatasetError("latents.not_removed", path=path, reason=error) from error
        gone = gone.more(status.st_size)
    return gone


def _before(folder: Path, days: float) -> float:
    """Files older than this are unused. The file system says what time it is there, as it dates what is touched."""
    place = folder / READERS
    try:
        place.mkdir(exist_ok=True)
        os.utime(place)
        now = place.stat().st_mtime
    except OSError as error:
        raise DatasetError("latents.no_folder", folder=folder, reason=error) from error
    return min([now - days * DAY, *_readers(folder)])


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left half-done."""
    for place in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if place.stat().st_mtime < time.time() - DAY:
                place.unlink()


def _readers(folder: Path) -> list[float]:
    """When each run that reads now began. Marks of runs that are dead are cleared away."""
    found = []
    for place in sorted((folder / READERS).glob("*-*")):
        lock = FileLock(place)
        try:
            begun = place.stat().st_mtime
            lock.acquire(timeout=0)
        except FileNotFoundError:
            continue
        except (OSError, Timeout):
            found.append(begun)
            continue
        lock.release()
        with contextlib.suppress(OSError):
            place.unlink()
    return found


def _kept(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        with os.scandir(folder) as entries:
            there = [entry for entry in entries if _NAME.fullmatch(entry.name)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise DatasetError("folder.unreadable", folder=folder, reason=error) from error
    for entry in there:
        with contextlib.suppress(FileNotFoundError):
            yield Path(entry.path), entry.stat()
