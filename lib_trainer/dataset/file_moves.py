"""Steps of a transaction on files: contents that change, files that move. See `history` for how they become one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from lib_trainer.errors import DatasetError


@dataclass(frozen=True)
class Change:
    """A file's bytes before and after; None where there is no file. `path` is relative to the set, with `/`."""

    path: str
    before: bytes | None
    after: bytes | None


@dataclass(frozen=True)
class Move:
    """A file that changes its place inside the set."""

    path: str
    target: str


Step: TypeAlias = Change | Move


@dataclass(frozen=True)
class Conflict:
    """A file that is not what it was expected to be. `found` is None where it is gone."""

    path: str
    expected: bytes | None
    found: bytes | None


class ConflictError(DatasetError):
    """Files were changed by another program. Nothing was written."""

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        names = ", ".join(one.path for one in conflicts[:3])
        more = f" and {len(conflicts) - 3} more" if len(conflicts) > 3 else ""
        super().__init__(
            f"{names}{more} changed outside of this editor: read the folder again, look, and repeat the edit; nothing "
            "has been written."
        )
        self.conflicts = tuple(conflicts)


def reverse(steps: Sequence[Step]) -> list[Step]:
    """What takes the steps back."""
    return [
        Change(step.path, step.after, step.before) if isinstance(step, Change) else Move(step.target, step.path)
        for step in reversed(steps)
    ]


def apply_steps(root: Path, staging: Path, steps: Sequence[Step]) -> None:
    """Carry the steps out: contents are staged first, so that a full disk is noticed before any file is touched.

    Raises `ConflictError` before anything is changed, and `OSError` from the file system; the caller puts back.
    """
    seen = _checked(root, steps)
    staging.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(steps):
        if isinstance(step, Change) and step.after is not None:
            _stage(staging / str(number), step.after, seen[number])
    for number, step in enumerate(steps):
        if isinstance(step, Move):
            _move(root / step.path, root / step.target)
            continue
        path = root / step.path
        if _signature(path) != seen[number]:
            raise ConflictError([Conflict(step.path, step.before, read(path))])
        if step.after is None:
            path.unlink()
        else:
            _rename_over(staging / str(number), path)


def put_back(root: Path, staging: Path, steps: Sequence[Step]) -> list[str]:
    """Undo whichever of the steps have been carried out; returns the paths that are neither old nor new."""
    staging.mkdir(parents=True, exist_ok=True)
    foreign = []
    for number, step in reversed(list(enumerate(steps))):
        path = root / step.path
        if isinstance(step, Move):
            if (root / step.target).exists() and not path.exists():
                _move(root / step.target, path)
            continue
        found = read(path)
        if found == step.before:
            continue
        if found != step.after:
            foreign.append(step.path)
        elif step.before is None:
            path.unlink()
        else:
            _stage(staging / f"back{number}", step.before, _signature(path))
            _rename_over(staging / f"back{number}", path)
    return foreign


def clean_staging(staging: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)


def read(path: Path) -> bytes | None:
    """The file's bytes, None where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _checked(root: Path, steps: Sequence[Step]) -> list[tuple[int, ...] | None]:
    """Each step's file as the system knows it. Raises `ConflictError` naming every file that is not as expected."""
    conflicts, seen = [], []
    for step in steps:
        path = root / step.path
        seen.append(_signature(path))
        if isinstance(step, Change):
            found = read(path)
            if found != step.before:
                conflicts.append(Conflict(step.path, step.before, found))
        elif seen[-1] is None or (root / step.target).exists():
            wrong = step.path if seen[-1] is None else step.target
            conflicts.append(Conflict(wrong, None, None))
    if conflicts:
        raise ConflictError(conflicts)
    return seen


def _signature(path: Path) -> tuple[int, ...] | None:
    """(time of change, size, number, permissions) of a file; a write of another program changes it."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode & 0o7777


def _stage(path: Path, data: bytes, old: tuple[int, ...] | None) -> None:
    with open(path, "wb", buffering=0) as file:
        written = file.write(data)
        while written < len(data):
            written += file.write(data[written:])
    if old is not None and os.name != "nt":
        os.chmod(path, old[3])  # a file keeps its permissions


def _rename_over(source: Path, target: Path) -> None:
    if os.path.islink(target):
        target = Path(os.path.realpath(target))  # the link stays, what it points to changes
    try:
        os.replace(source, target)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    except OSError:
        if os.stat(source).st_dev == os.stat(target.parent).st_dev:
            raise
        beside = target.with_name(f".{target.name}.tmp")  # a subfolder on another disk
        try:
            shutil.copyfile(source, beside)
            os.replace(beside, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
            raise


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise FileExistsError(17, "the target of a move exists already", str(target))
    shutil.move(source, target)
