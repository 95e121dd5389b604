"""How every kind of result reaches the disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lib_trainer.errors import SaveError
from lib_trainer.files import whole_file


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """A file to write a result into piece by piece: whole or not there. Raises `SaveError` naming it and the remedy."""
    try:
        with whole_file(path, overwrite=overwrite) as file:
            yield file
    except FileExistsError:
        raise SaveError(f"{path} exists already: choose another name or move that file away.") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise SaveError(
            f"{path} could not be written ({reason}): make room or choose another folder; earlier files are untouched."
        ) from error
