"""Files that are whole or absent: written beside their target, flushed, then renamed over it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, overwrite: bool = True) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    With `overwrite=False` an existing file is kept and `FileExistsError` is raised, without a gap in between in which
    another program could have made it. `OSError` (a full disk, say) leaves no temporary file behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes the file private; a result is as public as any other
        if overwrite:
            os.replace(name, path)
        else:
            _rename_without_replacing(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _rename_without_replacing(name: str, path: Path) -> None:
    if os.name == "nt":
        os.rename(name, path)  # Windows refuses where the target exists
        return
    try:
        os.link(name, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links (exFAT, some network shares)
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(name, path)
        return
    os.unlink(name)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
