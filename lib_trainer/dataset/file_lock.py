"""A lock between processes that the operating system takes away from a process that ends, however it ends."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from lib_trainer.errors import DatasetError

SECONDS = 60.0
"""How long one editor waits for another. A batch edit of ten thousand captions takes a few seconds."""


class FileLock:
    """Held in a `with` block, which may be entered again inside of itself by the same thread.

    Raises `DatasetError` where another process holds it for longer than `SECONDS`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1
        self._depth = 0

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            until = time.monotonic() + SECONDS
            while not _taken(self._file):
                if time.monotonic() > until:
                    os.close(self._file)
                    raise DatasetError(f"Another program is changing '{self.path.parent.parent}': try again later.")
                time.sleep(0.05)
        except BaseException:
            self._depth -= 1
            raise

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            os.close(self._file)  # which gives the lock back


def _taken(file: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
