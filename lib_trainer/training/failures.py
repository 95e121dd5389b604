"""What went wrong in a run, in the user's terms, and what has been learned until then."""

from __future__ import annotations

from typing import Literal

import torch

from lib_trainer.config import JobConfig
from lib_trainer.kinds.base import Kind
from lib_trainer.kinds.recipe import Recipe, parameters
from lib_trainer.memory import is_out_of_memory
from lib_trainer.refusals import MemoryExhausted, TrainerError, UnexpectedError

Point = Literal["loading", "class pictures", "setup", "encoding", "captions", "step", "preview", "saving", "finishing"]
"""Where a run is, for the sentence that says what to lower."""

WHILE: dict[Point, str] = {
    "loading": "while the model was loaded",
    "class pictures": "while class pictures were drawn",
    "setup": "before the first step was done",
    "encoding": "while the pictures were encoded",
    "captions": "while the captions were encoded",
    "preview": "while the preview was drawn",
    "saving": "while the file was written",
    "finishing": "while the difference was made a LoRA",
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
    return error if isinstance(error, TrainerError) else UnexpectedError(f"{type(error).__name__}: {error}")


def out_of_memory(
    error: BaseException, job: JobConfig, kind: Kind, device: torch.device, point: Point, step: int
) -> str:
    """What ran out of memory, when, and what to lower."""
    own = isinstance(error, (MemoryError, OSError)) or any(mark in str(error).lower() for mark in HOST_MARKS)
    what = "computer" if own and device.type != "cpu" else device.type
    where = f"at step {step + 1}" if point == "step" and step else WHILE.get(point, WHILE["setup"])
    return f"The {what} ran out of memory {where}: {what_to_lower(job, kind, point, device)}."


def what_to_lower(job: JobConfig, kind: Kind, point: Point, device: torch.device) -> str:
    """The options that cost memory at a point of a run, with what they are now: the end of a sentence."""
    training, data = job.training, job.dataset
    size = f"lower dataset.width and dataset.height (now {data.width}×{data.height})"
    if point == "preview":
        width, height = job.preview.width or data.width, job.preview.height or data.height
        return f"lower preview.width and preview.height (now {width}×{height}) or leave preview.prompt empty"
    if point == "class pictures":
        return f"{size}, or put class pictures of your own into prior.class_folder"
    if point == "encoding":
        return f"{size}, or close other programs that use it"
    if point == "captions":
        longer = f"lower training.max_tokens (now {training.max_tokens}) or " if training.max_tokens > 75 else ""
        return f"{longer}close other programs that use it"
    if point in ("loading", "saving", "finishing"):
        return "close other programs that use it"
    lower = []
    if training.batch_size > 1:
        lower.append(f"training.batch_size (now {training.batch_size})")
    lower.append(f"dataset.width and dataset.height (now {data.width}×{data.height})")
    lower += kind.to_lower(job, device)
    checkpointing = "" if training.gradient_checkpointing else "turn on training.gradient_checkpointing, "
    return f"{checkpointing}lower {', '.join(lower)}"


def all_finite(recipe: Recipe) -> bool:
    """Whether every weight is a number. Looked at on the CPU in small pieces: the device may be full."""
    for parameter in parameters(recipe):
        flat = parameter.detach().reshape(-1)
        for start in range(0, flat.numel(), AT_ONCE):
            if not bool(torch.isfinite(flat[start : start + AT_ONCE].cpu()).all()):
                return False
    return True
