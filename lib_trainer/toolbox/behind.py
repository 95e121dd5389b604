"""A file that is written while what comes next is made."""

from __future__ import annotations

import os
from queue import SimpleQueue
from threading import Thread
from typing import BinaryIO

import torch

from lib_trainer.networks.formats.stand_ins import bytes_of
from lib_trainer.networks.formats.tensor_file import AT_ONCE

BUFFERS = 4
WIDEST = 16
"""Bytes of the widest number."""
FLUSHED = 1 << 26
"""Bytes after which the disk is given what was written."""


class Behind:
    """Writes in one thread and hands over to the disk in another, out of a few buffers that are used again.

    What one of them raises (`OSError`: the disk is full) is raised by the next `write`, or on leaving.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._free: SimpleQueue[torch.Tensor] = SimpleQueue()
        self._full: SimpleQueue[tuple[torch.Tensor, int] | None] = SimpleQueue()
        self._due: SimpleQueue[bool] = SimpleQueue()
        """Whether something is to be handed over; False: nothing more."""
        self._error: BaseException | None = None
        self._threads = [Thread(target=one, daemon=True) for one in (self._write, self._flush)]
        for _ in range(BUFFERS):  # no page of which is taken before it is used
            self._free.put(torch.empty(AT_ONCE * WIDEST, dtype=torch.uint8))

    def __enter__(self) -> Behind:
        try:
            for one in self._threads:
                one.start()
        except RuntimeError:  # no more threads are to be had
            self._full.put(None)
            raise
        return self

    def write(self, numbers: torch.Tensor, dtype: torch.dtype) -> int:
        """At most `AT_ONCE` numbers, flat, rounded to a type; they may be changed afterwards. Returns their bytes."""
        buffer = self._free.get()
        if self._error is not None:
            self._raise()
        size = len(numbers) * bytes_of(dtype)
        buffer[:size].view(dtype).copy_(numbers)
        self._full.put((buffer, size))
        return size

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None:  # what is still to be written is of no use
            self._error = self._error or InterruptedError()
        self._full.put(None)
        self._threads[0].join()
        self._due.put(False)
        self._threads[1].join()
        if kind is None and self._error is not None:
            self._raise()

    def _raise(self) -> None:
        """What a thread has met. Its traceback holds this object, and with it the buffers: they must not hold it."""
        error, self._error = self._error, InterruptedError()
        assert error is not None
        try:
            raise error
        finally:
            del error

    def _write(self) -> None:
        since = 0
        while (piece := self._full.get()) is not None:
            buffer, size = piece
            if self._error is None:
                try:
                    self._file.write(buffer[:size].numpy().data)
                except BaseException as error:
                    self._error = error
            self._free.put(buffer)
            since += size
            if since >= FLUSHED and self._due.empty():
                since = 0
                self._due.put(True)

    def _flush(self) -> None:
        while self._due.get():
            if self._error is None:
                try:
                    os.fsync(self._file.fileno())
                except BaseException as error:
                    self._error = error
