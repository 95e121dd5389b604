"""A file that is written by other threads: its bytes, and what becomes of an error on either side."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer.toolbox import behind as module
from lib_trainer.toolbox.behind import BUFFERS, Behind


def others() -> int:
    return threading.active_count()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_pieces_are_rounded_and_written_in_order_and_may_change_afterwards(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSHED", 64)
    before, numbers, sizes = others(), torch.empty(7), 0
    with (tmp_path / "x").open("wb") as file, Behind(file) as behind:
        for number in range(200):
            sizes += behind.write(numbers.fill_(number), dtype)
        sizes += behind.write(torch.tensor([True, False]), torch.bool)
    wanted = torch.arange(200, dtype=dtype).repeat_interleave(7).numpy().tobytes() + b"\1\0"
    assert (tmp_path / "x").read_bytes() == wanted and sizes == len(wanted) and others() == before


class Full:
    """A file on a disk that has room for so many pieces, and that tells of it while writing or while it is flushed."""

    def __init__(self, file: Any, room: int, flushed: bool) -> None:
        self._file, self._room, self._flushed = file, room, flushed

    def write(self, data: Any) -> int:
        if self._room == 0 and not self._flushed:
            raise OSError(28, "No space left on device")
        self._room -= 1
        return int(self._file.write(data))

    def fileno(self) -> int:
        return 1 << 20 if self._flushed else int(self._file.fileno())  # no file has that number


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("pieces", [1, 3 * BUFFERS])
def test_a_full_disk_is_told(pieces: int, flushed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSHED", 4)
    before = others()
    with (tmp_path / "x").open("wb") as file, pytest.raises(OSError), Behind(Full(file, 0, flushed)) as behind:  # type: ignore[arg-type]
        for _ in range(pieces):
            behind.write(torch.ones(3), torch.float32)
    assert others() == before


def test_what_ends_the_making_ends_the_writing(tmp_path: Path) -> None:
    before = others()
    with (tmp_path / "x").open("wb") as file, pytest.raises(ZeroDivisionError), Behind(file) as behind:
        behind.write(torch.ones(3), torch.float32)
        behind.write(torch.ones(3) * (1 // 0), torch.float32)
    assert others() == before


def test_threads_that_are_not_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, start = others(), threading.Thread.start

    def second(thread: threading.Thread) -> None:
        if others() > before:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", second)
    with (tmp_path / "x").open("wb") as file, pytest.raises(RuntimeError, match="new thread"), Behind(file):
        pass
    for thread in threading.enumerate():
        if thread.daemon and thread.name.startswith("Thread-"):
            thread.join(10)
    assert others() == before


def test_a_flush_that_is_due_at_the_end_does_not_keep_the_writer_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two lines of the thread that flushes all others come to their end."""
    monkeypatch.setattr(module, "FLUSHED", 4)
    waits = {Behind._write.__code__: 0.01, Behind._flush.__code__: 0.1}
    begun: set[Any] = set()

    def slowly(frame: Any, event: str, argument: object) -> Any:
        if frame.f_code not in waits:
            return None
        if event == "line" and frame in begun:
            time.sleep(waits[frame.f_code])
        begun.add(frame)
        return slowly

    def write() -> None:
        with (tmp_path / "x").open("wb", buffering=0) as file, Behind(file) as behind:
            behind.write(torch.ones(3), torch.float32)

    before: Any = threading.gettrace()
    threading.settrace(slowly)
    try:
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(10)
    finally:
        threading.settrace(before)
    assert not writer.is_alive() and (tmp_path / "x").stat().st_size == 12
