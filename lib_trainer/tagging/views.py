"""What the desk is told by a host and a page, and what it shows of its jobs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lib_trainer.dataset.folder import Skipped
from lib_trainer.tagging.choices import How
from lib_trainer.tagging.events import Progress

State = Literal["running", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Places:
    """What a host tells: where taggers are looked for, where a download goes, and how to wait for its graphics card."""

    roots: Callable[[], Sequence[Path]]
    download_folder: Callable[[], Path]
    lease: Callable[[str], AbstractContextManager[object]] = lambda title: contextlib.nullcontext()


@dataclass(frozen=True)
class JobView:
    """The job under way, or the last one. `told`: the sentence about its end; `notes`: what else deserves a word.
    `stopping`: it was told to stop, and has not yet."""

    number: int
    title: str
    state: State = "running"
    progress: Progress | None = None
    told: str = ""
    notes: tuple[str, ...] = ()
    left_out: tuple[Skipped, ...] = ()
    stopping: bool = False

    @property
    def active(self) -> bool:
        return self.state == "running"


@dataclass(frozen=True)
class Selection:
    """Which folder and models a page has chosen. `models`: names or folders; several are an ensemble."""

    folder: str
    recursive: bool
    models: tuple[str, ...]
    how: How = "mean"
