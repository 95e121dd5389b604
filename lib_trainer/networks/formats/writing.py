"""How every kind of result reaches the disk."""

from __future__ import annotations

from pathlib import Path

from lib_trainer.errors import SaveError
from lib_trainer.files import write_atomically


def write_new(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a result whole or not at all. Raises `SaveError` naming the file and the remedy."""
    try:
        write_atomically(path, data, overwrite=overwrite)
    except FileExistsError:
        raise SaveError(f"{path} exists already: choose another name or move that file away.") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise SaveError(
            f"{path} could not be written ({reason}): make room or choose another folder; earlier files are untouched."
        ) from error
