"""A thread that computes by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from threading import Thread

import torch


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this thread compute without torch's helpers, which wait busily between operations as short as a merge's and
    keep the processor from those that write. Other threads, new ones too, have as many helpers as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # this thread's own, and what new threads begin with
    try:
        _begin_with(before)
        yield
    finally:
        torch.set_num_threads(before)


def _begin_with(count: int) -> None:
    """Set what new threads begin with, by a thread that is of no other use."""
    helper = Thread(target=torch.set_num_threads, args=(count,))
    helper.start()
    helper.join()
