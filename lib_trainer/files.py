"""Files that are whole or absent: written beside their target, flushed, then renamed over it; found again by name."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

TRASH = ".trainer-trash"
"""Folder beside results in which what was replaced is kept; `*.old`, so that no loader takes it for a model."""

OLD = ".old"
TEMPORARY = ".trainer-"
"""How files that are being written begin. Their names do not grow with the target's, which may be the longest one."""


def write_atomically(path: Path, data: bytes, *, overwrite: bool = True) -> None:
    """Write `data` to `path`, as `whole_file` does."""
    with whole_file(path, overwrite=overwrite) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(
    path: Path, *, overwrite: bool = True, otherwise: Callable[[], Path] | None = None
) -> Iterator[BinaryIO]:
    """A file to write into, which becomes `path` on leaving: a reader sees the old file or the new one, never a part.

    With `overwrite=False` an existing file is kept and `FileExistsError` is raised, without a gap in between in which
    another program could have made it; or, with `otherwise`, the file gets the name beside it that this gives, asked
    until one is free. With `overwrite` a link is written through. Whatever is raised (`OSError` on a full
    disk, an interrupt), `path` is what it was and no temporary file is left behind.
    """
    if overwrite:
        path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _temporary(path.parent)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(file.name, path)
        else:
            _take_a_name(file.name, path, otherwise)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.name)
        raise


def _temporary(folder: Path) -> BinaryIO:
    """A new file, as readable for others as any: `tempfile` makes private ones, and the umask cannot be asked for."""
    while True:
        name = folder / f"{TEMPORARY}{secrets.token_hex(6)}.tmp"
        with contextlib.suppress(FileExistsError):
            return name.open("xb")


def _take_a_name(name: str, path: Path, otherwise: Callable[[], Path] | None) -> None:
    while True:
        try:
            return _rename_without_replacing(name, path)
        except FileExistsError:
            if otherwise is None:
                raise
        path = otherwise()


def _rename_without_replacing(name: str, path: Path) -> None:
    if os.name == "nt":
        os.rename(name, path)  # Windows refuses where the target exists
        return
    try:
        os.link(name, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links (exFAT, some network shares)
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        os.replace(name, path)
        return
    os.unlink(name)


def plain(name: str) -> str:
    """A name as it is compared: composed (NFC) and without the case of its letters, as Windows and macOS compare."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def found(path: Path) -> Path:
    """`path`, or the file whose name looks the same: "é" is one letter for one program and two for another.

    A path that leads nowhere comes back as it is; nothing is raised.
    """
    try:
        if os.path.lexists(path) or not path.name:
            return path
        folder = found(path.parent)
        wanted = unicodedata.normalize("NFC", path.name)
        with os.scandir(folder) as entries:
            alike = sorted(entry.name for entry in entries if unicodedata.normalize("NFC", entry.name) == wanted)
    except (OSError, ValueError):
        return path
    return folder / alike[0] if alike else path


def by_stem(folder: Path, endings: Iterable[str]) -> dict[str, Path]:
    """{name without its ending, in NFC: path} of a folder's files with one of the endings, in any case of letters."""
    wanted = tuple(ending.lower() for ending in endings)
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in wanted and path.is_file())
    except OSError:
        return {}
    return {unicodedata.normalize("NFC", path.stem): path for path in paths}


def all_by_stem(folder: Path, endings: Iterable[str]) -> dict[str, list[Path]]:
    """As `by_stem`, with all that is below the folder, also behind links; without folders that begin with a dot."""
    wanted = tuple(ending.lower() for ending in endings)
    found: dict[str, list[Path]] = {}
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(place, name) for name in sorted(names)):
            if path.suffix.lower() in wanted and path.is_file():
                found.setdefault(unicodedata.normalize("NFC", path.stem), []).append(path)
    return found


def to_trash(paths: Iterable[Path]) -> list[Path]:
    """Move files into a trash folder beside them, all or none, and return where they are now.

    The names get `.old` at their end. Raises `OSError` when one of them cannot be moved; then all are where they were.
    """
    moved: list[tuple[Path, Path]] = []
    stamp = time.strftime("%Y%m%d-%H%M%S")
    try:
        for path in paths:
            folder = _fresh(path.parent / TRASH / stamp, path.name + OLD)
            folder.mkdir(parents=True, exist_ok=True)
            os.rename(path, folder / (path.name + OLD))
            moved.append((path, folder / (path.name + OLD)))
    except OSError:
        for path, place in reversed(moved):
            os.rename(place, path)
        raise
    return [place for _, place in moved]


def _fresh(folder: Path, name: str) -> Path:
    number, tried = 1, folder
    while os.path.lexists(tried / name):
        number += 1
        tried = folder.with_name(f"{folder.name}-{number}")
    return tried
