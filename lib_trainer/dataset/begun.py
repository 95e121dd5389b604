"""How far a transaction has come: a record beside the journal, so that recovery need not guess it from the files.

A file that holds what a transaction would have written may have been put there by it, or by somebody else while it was
refused or had not come so far. Only the first may be put back.
"""

from __future__ import annotations

import os
from pathlib import Path

CHUNK = 256
"""So many steps are announced at a time: one flush of the record for all of them."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_HEADER = "{token:32} {boot:36} {announced:010d}\n"
_LENGTH = len(_HEADER.format(token="", boot="", announced=0))


class Begun:
    """The record of one transaction, which `token` (up to 32 letters) names: a line, and one byte for each step that
    was begun.

    What a process has written outlives it, so after a kill the bytes count exactly. A machine that stops may lose the
    last of them: the line also holds how many steps may have been begun, and is on the disk before the first of them.
    """

    def __init__(self, path: Path, token: str) -> None:
        self.count = self._announced = 0
        self._token = token
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        self._file = os.open(path, flags, 0o666)
        try:
            self._write_header()
        except BaseException:
            os.close(self._file)
            raise

    def one_more(self) -> None:
        """The next step begins. Raises `OSError`; the step must not be carried out then."""
        if self.count == self._announced:
            self._announced += CHUNK
            self._write_header()
            os.fsync(self._file)
        os.lseek(self._file, _LENGTH + self.count, os.SEEK_SET)
        os.write(self._file, b".")
        self.count += 1

    def _write_header(self) -> None:
        os.lseek(self._file, 0, os.SEEK_SET)
        header = _HEADER.format(token=self._token, boot=_boot(), announced=self._announced).encode("ascii")
        if os.write(self._file, header) != len(header):
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        os.close(self._file)


def begun_steps(path: Path, token: str, total: int) -> int:
    """How many of a transaction's `total` steps have, or may have, been begun; 0 where the record is not its own."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0
    fields = data[:_LENGTH].decode("ascii", "replace").split(" ")
    if len(data) < _LENGTH or fields[0] != token:
        return 0
    exact = bool(_boot()) and fields[1] == _boot()
    return min(len(data) - _LENGTH if exact else int(data[_LENGTH - 11 : _LENGTH - 1]), total)


def taken_back(path: Path, count: int) -> None:
    """Only the first `count` steps are left to be taken back."""
    os.truncate(path, _LENGTH + count)


def _boot() -> str:
    """What tells one start of the machine from another; empty where the system does not say."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()[:36]
    except (OSError, UnicodeError):
        return ""
