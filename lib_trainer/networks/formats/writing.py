"""How every kind of result reaches the disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lib_trainer.files import whole_file
from lib_trainer.refusals import SaveError


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool, otherwise: Callable[[], Path] | None = None) -> Iterator[BinaryIO]:
    """A file to write a result into piece by piece: whole or not there. Raises `SaveError` naming it and the remedy.

    `overwrite` and `otherwise` are those of `whole_file`.
    """
    try:
        with whole_file(path, overwrite=overwrite, otherwise=otherwise) as file:
            yield file
    except FileExistsError:
        raise SaveError("file.exists", path=path) from None
    except OSError as error:
        raise SaveError("file.not_written", path=path, reason=error) from error
