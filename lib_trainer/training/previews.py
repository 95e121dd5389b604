"""The picture that a job wants to see between its steps."""

from __future__ import annotations

from lib_trainer.config import JobConfig
from lib_trainer.ports import PreviewRequest
from lib_trainer.training.words import word_names


def preview_request(job: JobConfig) -> PreviewRequest:
    preview, data = job.preview, job.dataset
    return PreviewRequest(
        prompt=preview.prompt or data.trigger_word or " ".join(word_names(job)),
        negative_prompt=preview.negative_prompt,
        width=preview.width or data.width,
        height=preview.height or data.height,
        steps=preview.steps,
        cfg_scale=preview.cfg_scale,
        sampler=preview.sampler,
        seed=preview.seed,
        clip_skip=job.training.clip_skip,
    )
