"""What the desk is told by a host and by a page."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from lib_trainer.tagging.choices import How


@dataclass(frozen=True)
class Places:
    """What a host tells: where taggers are looked for, where a download goes, and how to wait for its graphics card."""

    roots: Callable[[], Sequence[Path]]
    download_folder: Callable[[], Path]
    lease: Callable[[str], AbstractContextManager[object]] = lambda title: contextlib.nullcontext()


@dataclass(frozen=True)
class Selection:
    """Which folder and models a page has chosen. `models`: names or folders; several are an ensemble."""

    folder: str
    recursive: bool
    models: tuple[str, ...]
    how: How = "mean"
