"""A host's queue, its progress bar and its Interrupt."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from lib_trainer.refusals import Sentence


class Lease(Protocol):
    """The host's attention during a run: its progress bar and its Interrupt button."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Show `done` of `total` steps in the host's own progress bar."""

    @property
    def interrupted(self) -> Sentence | str:
        """A sentence for the log if the user has ended the run by the host's own Interrupt or Stop, else empty."""


class Process(Protocol):
    """Where a run takes its turn."""

    def lease(self, title: str, *, trains: bool = False) -> AbstractContextManager[Lease]:
        """Wait for the host's own queue and hold its device until the run ends.

        With `trains` the whole model is on the device meanwhile, which a backward pass needs; otherwise it is where the
        host draws with it.
        """
