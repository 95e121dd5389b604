"""What a job says while it runs.

The core imports no host and no page: whoever wants to watch passes a listener. Events are plain frozen data, so that a
page, a progress bar, a log file and a test read the same stream. Every stream has this form:

    (Phase | Message | Found)*
    [Started (Phase | Message | StepDone | Measured | PreviewMade | PreviewGrid | Saved)*] (Finished | Failed)

`Started` and what follows from it is of training alone, `Found` of jobs that answer a question. Steps ascend by one,
and nothing comes after the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from lib_trainer.dataset.folder import Skipped
from lib_trainer.refusals import Sentence


@dataclass(frozen=True)
class Phase:
    """A stage of a job: 'Caching latents', 'Scoring', 'Saving' … with `done` of `total` units.

    `unit`: what is counted, in the plural ('pictures', 'bytes'). `known`: of `done`, how many cost nothing. `rate`:
    units a second lately. `left`: seconds. `left_out`: what was passed over so far.
    """

    name: Sentence | str
    done: int = 0
    total: int = 0
    unit: str = ""
    known: int = 0
    rate: float = 0.0
    left: float | None = None
    left_out: tuple[Skipped, ...] = ()


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
    dropouts left nothing to learn. `epoch_ends`: it is the last step of its epoch.
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
    epoch_ends: bool = False


@dataclass(frozen=True)
class Measured:
    """Pictures were measured with noise that is always the same, after `step` steps (0: before the first one).

    `held_out` is the mean loss of those that are never trained, `trained` that of as many others, None where these are
    not measured. `best`: no earlier step's `held_out` is as low; the start itself is no step.
    """

    step: int
    held_out: float
    trained: float | None = None
    best: bool = False


@dataclass(frozen=True)
class PreviewMade:
    """A picture that was drawn after `step` steps, of the `number`th of `count` prompts."""

    step: int
    image: Image.Image
    prompt: str
    number: int = 1
    count: int = 1


@dataclass(frozen=True)
class PreviewGrid:
    """All previews so far are one picture, at `path`, which grows: a row for each step, a column for each prompt."""

    step: int
    path: Path


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
class Found:
    """What is known by now of what a job is to find out, as plain data of its own; the last one is its answer."""

    result: object


@dataclass(frozen=True)
class Finished:
    """The job ended by itself or was stopped. What training has is saved at `path` (None if there was nothing to keep).

    A run that its held-out pictures have ended was not stopped, though it has not done all steps; `told` says so.
    `told`: a sentence on what was done; `notes`: what else deserves a word; `left_out`: what was passed over.
    """

    step: int = 0
    path: Path | None = None
    stopped: bool = False
    told: Sentence | str = ""
    notes: tuple[Sentence | str, ...] = ()
    left_out: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Failed:
    """The job ended with an error. `path` is the file that holds the last good weights, if any."""

    error: Sentence | str
    path: Path | None = None


Event = Phase | Started | StepDone | Measured | PreviewMade | PreviewGrid | Saved | Message | Found | Finished | Failed
Listener = Callable[[Event], None]
