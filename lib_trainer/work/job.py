"""What is to be done: plain data, and the work itself."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lib_trainer.refusals import Sentence
from lib_trainer.work.control import Control
from lib_trainer.work.events import Listener
from lib_trainer.work.monitor import Monitor

Work = Callable[[Control, Listener], None]
"""Runs in a thread of its own and tells events; the last one is `Finished`, or it raises."""


@dataclass(frozen=True)
class Job:
    """`kind`: "training", "tagging", "writing", "download", "install", "check", "search", "grid" or "toolbox". `name`:
    what it is called. `given`: what it was asked to do. `monitor`: makes what folds its events."""

    kind: str
    name: Sentence | str
    work: Work = field(repr=False, compare=False)
    given: object = None
    monitor: Callable[[Sentence | str, str, str], Monitor] = field(default=Monitor, repr=False, compare=False)


def new_id() -> str:
    """Of a job: no other has it, in this process or another one. Ids ascend with the seconds, and are file names."""
    return f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(4)}"
