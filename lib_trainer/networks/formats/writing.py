"""How every kind of result reaches the disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lib_trainer.files import whole_file
from lib_trainer.refusals import SaveError


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """A file to write a result into piece by piece: whole or not there. Raises `SaveError` naming it and the remedy."""
    try:
        with whole_file(path, overwrite=overwrite) as file:
            yield file
    except FileExistsError:
        raise SaveError("file.exists", path=path) from None
    except OSError as error:
        raise SaveError("file.not_written", path=path, reason=error) from error
