"""The pictures that a job wants to see: prompts of several lines, each with settings of its own behind it.

    a cat on a sofa --n blurry --w 768 --h 512 --d 7
    a cat in the rain

The short names are those of sd-scripts' prompt files, the long ones those of the WebUI's script "Prompts from file or
textbox". What a line does not say is the job's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib_trainer.config import JobConfig, field_specs
from lib_trainer.families.family import Family
from lib_trainer.kinds.base import Kind
from lib_trainer.options.values import from_text
from lib_trainer.ports import PreviewRequest
from lib_trainer.refusals import ConfigError

PROMPT = "preview.prompt"
SIDES = ("width", "height")
WORDS: Mapping[str, str] = {
    "w": "width", "width": "width",
    "h": "height", "height": "height",
    "s": "steps", "steps": "steps",
    "l": "cfg_scale", "cfg_scale": "cfg_scale",
    "d": "seed", "seed": "seed",
    "ss": "sampler", "sampler_name": "sampler",
    "n": "negative_prompt", "negative_prompt": "negative_prompt",
    "prompt": "prompt",
}  # fmt: skip
"""What a line may say behind `--`, and the options of previews that it takes the place of."""
SAID = re.compile(r"(?:^|\s)--(?=[A-Za-z])")


@dataclass(frozen=True)
class Wanted:
    """One line: its prompt, and the options of previews that it sets otherwise."""

    line: str
    prompt: str
    own: Mapping[str, Any]


def wanted(job: JobConfig) -> tuple[Wanted, ...]:
    """The lines of a job's prompts. Raises `ConfigError` naming a line that says something that there is not."""
    return tuple(_read(line) for line in _lines(job.preview.prompt))


def preview_requests(job: JobConfig, kind: Kind) -> tuple[PreviewRequest, ...]:
    """The pictures that a job wants to see between its steps; one of what it learns where it names none."""
    usual = job.dataset.trigger_word or " ".join(kind.words(job))
    return tuple(_request(job, one) for one in wanted(job) or (Wanted(usual, usual, {}),))


def labels(job: JobConfig, kind: Kind) -> tuple[str, ...]:
    """What stands above the columns of a grid of `preview_requests`."""
    return tuple(one.line for one in wanted(job)) or tuple(one.prompt for one in preview_requests(job, kind))


def sizes(job: JobConfig) -> tuple[tuple[int, int], ...]:
    """(width, height) of the previews in pixels. What is wrong with a line is not said here."""
    try:
        own: tuple[Mapping[str, Any], ...] = tuple(one.own for one in wanted(job))
    except ConfigError:
        own = ()
    return tuple(_size(job, one) for one in own or ({},))


def check_previews(
    job: JobConfig, family: Family, samplers: Sequence[str], field: str = PROMPT
) -> Iterator[ConfigError]:
    """All that is wrong with the lines: with each its first mistake. `field` is where they were written."""
    for line in _lines(job.preview.prompt):
        try:
            one = _read(line, field)
        except ConfigError as error:
            yield error
            continue
        for side in SIDES:
            wrong = wrong_side(int(one.own.get(side, 0)), family)
            if wrong is not None:
                yield ConfigError(
                    "preview.size", field=field, line=line, name=side, size=one.own[side], cell=family.cell,
                    least=family.stride, nearest=wrong,
                )  # fmt: skip
        sampler = one.own.get("sampler", "")
        if sampler and sampler not in samplers:
            yield ConfigError("preview.line_sampler", field=field, line=line, sampler=sampler, samplers=samplers)


def wrong_side(size: int, family: Family) -> int | None:
    """The nearest side that a preview may have, in pixels; None for one that it may have, or 0."""
    if size % family.cell == 0 and not 0 < size < family.stride:
        return None
    return max(family.stride, size // family.cell * family.cell)


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def _read(line: str, field: str = PROMPT) -> Wanted:
    prompt, *said = SAID.split(line)
    own: dict[str, Any] = {}
    for one in said:
        word, _, text = one.strip().partition(" ")
        name = WORDS.get(word.lower())
        text = text.strip()
        if len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1]
        if name is None:
            raise ConfigError("preview.no_setting", field=field, line=line, word=word, words=_words())
        if name == "prompt":
            prompt = text
            continue
        spec = field_specs()[f"preview.{name}"]
        own[name] = from_text(spec, text)
        if not spec.takes(own[name]):
            raise ConfigError("preview.value", field=field, line=line, word=word, text=text, allowed=spec.allowed)
    if not prompt.strip():
        raise ConfigError("preview.no_prompt", field=field, line=line)
    return Wanted(line, prompt.strip(), own)


def _words() -> list[str]:
    return [f"--{word}" for word in WORDS]


def _size(job: JobConfig, own: Mapping[str, Any]) -> tuple[int, int]:
    preview, data = job.preview, job.dataset
    width, height = own.get("width") or preview.width, own.get("height") or preview.height
    return width or data.width, height or data.height


def _request(job: JobConfig, one: Wanted) -> PreviewRequest:
    preview = job.preview
    width, height = _size(job, one.own)
    return PreviewRequest(
        prompt=one.prompt,
        negative_prompt=one.own.get("negative_prompt", preview.negative_prompt),
        width=width,
        height=height,
        steps=one.own.get("steps", preview.steps),
        cfg_scale=one.own.get("cfg_scale", preview.cfg_scale),
        sampler=one.own.get("sampler", preview.sampler),
        seed=one.own.get("seed", preview.seed),
        clip_skip=job.training.clip_skip,
        prediction=job.model.prediction,
        zero_terminal_snr=job.model.zero_terminal_snr,
    )
