"""Steps of a transaction on files: contents that change, files that move. See `history` for how they become one.

A link to a file: new contents go through it, into the file where it lies, and so do the old ones when they come back.
Of several names of one file each may say the same change. What is moved is the link itself. No file is made or removed
behind a link: it may be another set's, and the journal would be all that is left of it. A link where a step makes or
removes a file is a conflict, as is any other change from outside.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from lib_trainer.refusals import DatasetError, few

FEW = 32
"""So many files are flushed one by one; with more the system flushes everything once, where it can: that is faster."""


@dataclass(frozen=True)
class Change:
    """A file's bytes before and after; None where there is no file. `path` is relative to the set, with `/`."""

    path: str
    before: bytes | None
    after: bytes | None


@dataclass(frozen=True)
class Move:
    """A file that changes its place inside the set; of a link the link itself, wherever it leads from there."""

    path: str
    target: str


Step: TypeAlias = Change | Move

Signature: TypeAlias = "tuple[int, ...] | None"
"""(time of change, size, number) of a file, None where there is none; a write of another program changes it."""


@dataclass(frozen=True)
class Conflict:
    """A file that is not what it was expected to be. `found` is None where it is gone."""

    path: str
    expected: bytes | None
    found: bytes | None


class ConflictError(DatasetError):
    """Files were changed by another program. Nothing was written."""

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        super().__init__("history.changed_outside", files=few([one.path for one in conflicts]))
        self.conflicts = tuple(conflicts)


class RefusedError(DatasetError):
    """The system does not let a set's files be changed. Nothing was. `path`: the file, relative to the set; empty where
    the system does not say. `errno`: its reason."""

    def __init__(self, root: Path, error: OSError) -> None:
        super().__init__("history.files_locked", folder=root, reason=error)
        name = str(error.filename or "")
        self.path = os.path.relpath(name, root).replace(os.sep, "/") if name.startswith(str(root)) else ""
        self.errno = error.errno


def reverse(steps: Sequence[Step]) -> list[Step]:
    """What takes the steps back."""
    return [
        Change(step.path, step.after, step.before) if isinstance(step, Change) else Move(step.target, step.path)
        for step in reversed(steps)
    ]


def apply_steps(root: Path, steps: Sequence[Step], seen: Sequence[Signature], begin: Callable[[], None]) -> None:
    """Carry the steps out; `seen` is what `checked` gave, and `begin` is called before each. Contents are written in
    place, which takes a hundredth of the time that replacing ten thousand files does and keeps links, owners and
    permissions; what is half written is known to `put_back`.

    Raises `ConflictError` where a file was changed since it was checked, and `OSError` from the file system; the caller
    puts back what was begun.
    """
    singly = _flushed_singly(steps)  # either way all is on the disk before the journal says that it is done
    written: set[str | int] = set()  # by path, and by the number of the file: a link may lead to another of the set
    for step, signature in zip(steps, seen, strict=True):
        if isinstance(step, Move):
            _check_free(root / step.target)  # before it begins: what lies there is nothing to be taken back
            begin()
            _move(root / step.path, root / step.target)
            continue
        path = f"{root}/{step.path}"  # pathlib takes longer to join two names than the system to write them
        number = signature[2] if signature is not None else 0
        again = step.path in written or number in written
        found = read(path) if again else step.before
        if found not in (step.before, step.after) or not (again or _signature(path) == signature):
            raise ConflictError([Conflict(step.path, step.before, read(path))])
        begin()
        if found != step.after:
            _write(path, step.after, flush=singly)
        written |= {step.path, number} if number else {step.path}
    if not singly:
        os.sync()


def put_back(root: Path, steps: Sequence[Step], taken_back: Callable[[int], None]) -> list[str]:
    """Take back steps that were begun, the last one first; `taken_back` hears how many are left after each.

    Returns the paths that another program has changed since: they are left alone.
    """
    foreign, singly = [], _flushed_singly(steps)
    for number in reversed(range(len(steps))):
        step = steps[number]
        path = root / step.path
        if isinstance(step, Move):
            _move_back(path, root / step.target)
        elif (found := read(path)) != step.before:
            ours = step.after is None if found is None else _is_between(found, step.before or b"", step.after or b"")
            if ours and not _meets_link(step, path):
                _write(path, step.before, flush=singly)
            else:
                foreign.append(step.path)
        taken_back(number)
    if not singly:
        os.sync()
    return foreign


def _move_back(path: Path, target: Path) -> None:
    if not os.path.lexists(target):
        return
    if not os.path.lexists(path):
        _move(target, path)
    elif _begins(path, target):  # between two disks a move is a copy: this one was cut short
        target.unlink()


def _begins(whole: Path, part: Path) -> bool:
    """Whether one file is the beginning of another, or one link the same as another."""
    if whole.is_symlink() or part.is_symlink():
        return whole.is_symlink() and part.is_symlink() and os.readlink(whole) == os.readlink(part)
    return whole.read_bytes().startswith(part.read_bytes())


def _flushed_singly(steps: Sequence[Step]) -> bool:
    """Windows can do no other."""
    return len(steps) <= FEW or not hasattr(os, "sync")


def _is_between(found: bytes, before: bytes, after: bytes) -> bool:
    """Whether a file is what a write leaves that was cut short, also on its way back: each byte is the one or the
    other's, and so is the length or lies between."""
    short, long = sorted((len(before), len(after)))
    if not short <= len(found) <= long:
        return False
    return all(byte in (before[i : i + 1], after[i : i + 1]) for i, byte in enumerate(map(bytes, zip(found))))


def read(path: Path | str) -> bytes | None:
    """The file's bytes, None where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def checked(root: Path, steps: Sequence[Step]) -> list[Signature]:
    """Each step's file as the system knows it. Writes nothing. Several steps may change a file one after another.

    Raises `ConflictError` naming every file that is not as expected, and every link where a file is to be made or
    removed.
    """
    conflicts, seen = [], []
    then: dict[str, bytes | None] = {}
    for step in steps:
        path = f"{root}/{step.path}"
        if isinstance(step, Change):
            seen.append(_signature(path))
            found = then[step.path] if step.path in then else read(path)
            if found != step.before or _meets_link(step, path):
                conflicts.append(Conflict(step.path, step.before, found))
            then[step.path] = step.after
            continue
        seen.append(_signature(path, link=True))
        if seen[-1] is None or os.path.lexists(root / step.target):
            wrong = step.path if seen[-1] is None else step.target
            conflicts.append(Conflict(wrong, None, None))
    if conflicts:
        raise ConflictError(conflicts)
    return seen


def _meets_link(step: Change, path: Path | str) -> bool:
    """Whether a file would be made or removed behind a link."""
    return (step.before is None or step.after is None) and os.path.islink(path)


def _signature(path: Path | str, *, link: bool = False) -> Signature:
    """`link`: of a link itself, which may lead nowhere."""
    try:
        status = os.lstat(path) if link else os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _write(path: Path | str, data: bytes | None, *, flush: bool = False) -> None:
    """Put new content into a file, through a link; make it, or remove it for None. The old length goes last."""
    if data is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0)
    try:
        file = os.open(path, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = os.open(path, flags, 0o666)
    try:
        done = 0
        while done < len(data):
            done += os.write(file, data[done:])
        os.ftruncate(file, len(data))
        if flush:
            os.fsync(file)
    finally:
        os.close(file)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_free(target)
    shutil.move(source, target)


def _check_free(target: Path) -> None:
    if os.path.lexists(target):
        raise FileExistsError(17, "the target of a move exists already", str(target))
