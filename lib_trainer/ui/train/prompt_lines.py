"""What calls the file of a run in the host's prompt."""

from __future__ import annotations

from dataclasses import dataclass

from lib_trainer.config import JobConfig
from lib_trainer.kinds.registry import kind_of
from lib_trainer.training.preview_prompts import wanted


@dataclass(frozen=True)
class PromptLines:
    """Lines that go into a prompt, each where it is not in it yet; `with_prompt` has the first preview's prompt too."""

    parts: str = ""
    with_prompt: str = ""


def prompt_lines(call: str, job: JobConfig | None) -> PromptLines:
    """The trigger words of a job and the call of its file."""
    if not call:
        return PromptLines()
    parts = [*(kind_of(job).trigger_words(job) if job is not None else []), call]
    prompt = next((one.prompt for one in wanted(job)), "") if job is not None else ""
    return PromptLines("\n".join(parts), "\n".join([prompt, *parts]) if prompt else "")
