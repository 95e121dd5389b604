"""What went wrong in a run, in the user's terms, and what has been learned until then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from lib_trainer.config import JobConfig
from lib_trainer.kinds.base import Kind
from lib_trainer.kinds.recipe import Recipe, parameters
from lib_trainer.memory import is_out_of_memory
from lib_trainer.refusals import (
    Field,
    MemoryExhausted,
    NumericalError,
    Sentence,
    TrainerError,
    UnexpectedError,
    one_line,
)

Point = Literal[
    "loading", "class pictures", "setup", "encoding", "captions", "step", "measuring", "preview", "saving", "finishing"
]  # fmt: skip
"""Where a run is, for the sentence that says what to lower."""

WHILE: dict[Point, Sentence] = {
    "loading": Sentence("memory.while_loading"),
    "class pictures": Sentence("memory.while_class_pictures"),
    "setup": Sentence("memory.while_setup"),
    "encoding": Sentence("memory.while_encoding"),
    "captions": Sentence("memory.while_captions"),
    "measuring": Sentence("memory.while_measuring"),
    "preview": Sentence("memory.while_preview"),
    "saving": Sentence("memory.while_saving"),
    "finishing": Sentence("memory.while_finishing"),
}
AT_ONCE = 1 << 20
"""Numbers that are looked at together."""
HOST_MARKS = ("defaultcpuallocator", "alloc_cpu", "bad_alloc", "bad allocation")


def short_of_memory(error: BaseException) -> bool:
    """Also where a part of ours has given up already and said so, as the VAE over row bands does."""
    return is_out_of_memory(error) or isinstance(error, MemoryExhausted)


def explained(
    error: Exception, job: JobConfig, kind: Kind, device: torch.device, point: Point, step: int
) -> TrainerError:
    """The error as one sentence. `step` is the number of steps that are done."""
    if short_of_memory(error):
        return MemoryExhausted(out_of_memory(error, job, kind, device, point, step))
    if isinstance(error, TrainerError):
        return error
    return UnexpectedError("run.defect", kind=type(error).__name__, reason=one_line(error))


def out_of_memory(
    error: BaseException, job: JobConfig, kind: Kind, device: torch.device, point: Point, step: int
) -> Sentence:
    """What ran out of memory, when, and what to lower."""
    own = isinstance(error, (MemoryError, OSError)) or any(mark in str(error).lower() for mark in HOST_MARKS)
    what = Sentence("device.computer") if own and device.type != "cpu" else device.type
    at_step = Sentence("memory.at_step", step=step + 1)
    when = at_step if point == "step" and step else WHILE.get(point, WHILE["setup"])
    return Sentence("memory.exhausted", device=what, when=when, remedy=what_to_lower(job, kind, point, device))


def what_to_lower(job: JobConfig, kind: Kind, point: Point, device: torch.device) -> Sentence:
    """The options that cost memory at a point of a run, with what they are now: the end of a sentence."""
    training, data = job.training, job.dataset
    size = Sentence("lower.size", sides=_sides("dataset", data.width, data.height))
    if point == "preview":
        sides = _sides("preview", job.preview.width or data.width, job.preview.height or data.height)
        return Sentence("lower.preview", sides=sides, prompt=Field("preview.prompt"))
    if point == "class pictures":
        return Sentence("lower.class_pictures", size=size, folder=Field("prior.class_folder"))
    if point == "encoding":
        return Sentence("lower.encoding", size=size)
    if point == "captions" and training.max_tokens > 75:
        return Sentence("lower.tokens", option=Field("training.max_tokens"), now=training.max_tokens)
    if point in ("captions", "loading", "saving", "finishing"):
        return Sentence("lower.other_programs")
    lower = []
    if training.batch_size > 1:
        lower.append(Sentence("lower.option", option=Field("training.batch_size"), now=training.batch_size))
    lower.append(_sides("dataset", data.width, data.height))
    if point == "measuring":
        return Sentence("lower.step", options=lower)
    lower += kind.memory.to_lower(job, device)
    if training.gradient_checkpointing:
        return Sentence("lower.step", options=lower)
    checkpointing = Field("training.gradient_checkpointing")
    return Sentence("lower.step_recomputed", checkpointing=checkpointing, options=lower)


def _sides(section: str, width: int, height: int) -> Sentence:
    return Sentence(
        "lower.sides", width=Field(f"{section}.width"), height=Field(f"{section}.height"), across=width, down=height
    )


def not_finite(step: int, rate_fields: Sequence[str]) -> NumericalError:
    """What the step before a file has made of the weights: gradients that are numbers may still give none."""
    return NumericalError(
        "loss.weights",
        step=step,
        rates=[Field(path) for path in rate_fields],
        precision=Field("training.precision"),
        arguments=Field("optimizer.arguments"),
    )


def all_finite(recipe: Recipe) -> bool:
    """Whether every weight is a number. Looked at on the CPU in small pieces: the device may be full."""
    for parameter in parameters(recipe):
        flat = parameter.detach().reshape(-1)
        for start in range(0, flat.numel(), AT_ONCE):
            if not bool(torch.isfinite(flat[start : start + AT_ONCE].cpu()).all()):
                return False
    return True
