"""What a run says (events, going out) and what it can be told (commands, coming in).

The core imports no host and no page: whoever wants to watch passes a listener, whoever wants to steer holds the
`Control`. Events are plain frozen data, so that a page, a progress bar, a log file and a test read the same stream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from lib_trainer.refusals import Sentence


@dataclass(frozen=True)
class Phase:
    """A stage before or after the steps: 'Caching latents', 'Saving' … with `done` of `total` units."""

    name: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Started:
    """The first step is about to run. `trained_parameters` counts scalars, `total_steps` optimizer steps."""

    total_steps: int
    trained_parameters: int
    modules: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StepDone:
    """One optimizer step. `loss` is the mean over its micro-batches, `learning_rates` by part ('unet', 'te1' …).

    `applied` is false where the weights are what they were before: loss scaling found gradients that overflow, or
    dropouts left nothing to learn.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    learning_rates: dict[str, float]
    gradient_norm: float
    seconds: float
    memory_bytes: int
    applied: bool = True


@dataclass(frozen=True)
class PreviewMade:
    step: int
    image: Image.Image
    prompt: str


@dataclass(frozen=True)
class Saved:
    step: int
    path: Path
    final: bool


@dataclass(frozen=True)
class Message:
    """A line for the log. `level` is 'info' or 'warning'."""

    text: str | Sentence
    level: str = "info"


@dataclass(frozen=True)
class Finished:
    """The run ended by itself or was stopped; what it has is saved at `path` (None if there was nothing to keep)."""

    step: int
    path: Path | None
    stopped: bool


@dataclass(frozen=True)
class Failed:
    """The run ended with an error. `path` is the file that holds the last good weights, if any."""

    error: str
    path: Path | None = None


Event = Phase | Started | StepDone | PreviewMade | Saved | Message | Finished | Failed
Listener = Callable[[Event], None]


class Control:
    """Commands to a running job; every method may be called from any thread.

    `stop` ends the run after the step in progress and keeps what it has; `save` and `sample` are served between two
    steps and then forgotten.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._save = threading.Event()
        self._sample = threading.Event()
        self.stops = 0
        """How often `stop` was called: what is done after the steps ends at the next one."""

    def stop(self) -> None:
        self.stops += 1
        self._stop.set()

    def save(self) -> None:
        self._save.set()

    def sample(self) -> None:
        self._sample.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def take_save(self) -> bool:
        """True once for each `save` (calls that come before it is served count as one)."""
        return _take(self._save)

    def take_sample(self) -> bool:
        return _take(self._sample)


def _take(flag: threading.Event) -> bool:
    was_set = flag.is_set()
    flag.clear()
    return was_set
