"""How long steps took in earlier runs on this machine, so that the next one's length can be told before it begins.

A step's length is taken to grow with the pixels in it, which is near enough for "about 40 minutes".
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lib_trainer.config import JobConfig
from lib_trainer.options.toml import read_toml, write_toml
from lib_trainer.ports import Host
from lib_trainer.refusals import TrainerError
from lib_trainer.training.forecast import work_key
from lib_trainer.training.pace import RECENT, WARM_UP
from lib_trainer.training.precision import resolve_precision
from lib_trainer.training.sizes import largest_size
from lib_trainer.work.events import Event, Listener, StepDone

FILE = "paces.toml"
KEPT = 50
"""Steps whose median tells the pace."""
MEGAPIXEL = 1_000_000


class Watch:
    """Takes the time between the steps of a run. Previews and files between two of them do not count in a median."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last, self._steps = clock, 0.0, 0
        self._seconds: deque[float] = deque(maxlen=KEPT)

    def listening(self, emit: Listener) -> Listener:
        def listen(event: Event) -> None:
            if isinstance(event, StepDone):
                now = self._clock()
                self._steps += 1
                if self._steps > WARM_UP:
                    self._seconds.append(now - self._last)
                self._last = now
            emit(event)

        return listen

    @property
    def seconds(self) -> float | None:
        """Of a usual step; None after too few."""
        return statistics.median(self._seconds) if len(self._seconds) >= RECENT else None


def keep(host: Host, job: JobConfig, seconds: float) -> None:
    """Remember the length of a run's steps. What cannot be written is not remembered."""
    with contextlib.suppress(OSError):
        write_toml({**_read(host), _key(host, job): seconds / _size(job)}, _file(host))


def expected(host: Host, job: JobConfig) -> float | None:
    """About how many seconds a step of a job takes here; None where none of its sort has been run."""
    pace = _read(host).get(_key(host, job))
    return pace * _size(job) if isinstance(pace, float) else None


def _key(host: Host, job: JobConfig) -> str:
    device = host.device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    work = work_key(job, resolve_precision(job.training.precision, device))
    return f"{host.family().word}, {work}, {job.training.weights}, {name}"


def _size(job: JobConfig) -> float:
    """Megapixels of a step."""
    width, height = largest_size(job)
    training = job.training
    return width * height * training.batch_size * training.gradient_accumulation / MEGAPIXEL


def _file(host: Host) -> Path:
    return host.cache_folder() / FILE


def _read(host: Host) -> dict[str, Any]:
    """What is known so far; nothing where the file is missing or no such file."""
    try:
        return read_toml(_file(host), FILE)
    except TrainerError:
        return {}
