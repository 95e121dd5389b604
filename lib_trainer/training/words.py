"""Names of embeddings, the text they start from, and captions made from templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lib_trainer.config import JobConfig
from lib_trainer.dataset.scan import NAME, with_trigger
from lib_trainer.ports import Host
from lib_trainer.refusals import ConfigError

WORD_KINDS = ("embedding", "pivotal")
FILEWORDS = "[filewords]"
TEMPLATE_KINDS = (*WORD_KINDS, "hypernetwork")


def word_names(job: JobConfig) -> list[str]:
    """The names of the embeddings that a job trains, in order."""
    if job.network.kind not in WORD_KINDS:
        return []
    return [name.strip() for name in job.embedding.names.split(",") if name.strip()] or [job.output.name]


def names_field(job: JobConfig) -> str:
    """The option that names a job's embeddings."""
    return "embedding.names" if job.embedding.names.strip() else "output.name"


def initial_texts(job: JobConfig) -> list[str]:
    """The text that each embedding starts from; empty: random vectors. Raises `ConfigError` for too many."""
    names, text = word_names(job), job.embedding.initial_text
    texts = [part.strip() for part in text.split(";")] if len(names) > 1 else [text.strip()]
    if len(texts) > len(names):
        raise ConfigError(
            f"embedding.initial_text has {len(texts)} texts for {len(names)} names: give one for each, separated by "
            "semicolons."
        )
    return texts + [""] * (len(names) - len(texts))


def word_path(path: Path, name: str, job: JobConfig) -> Path:
    """Where an embedding goes when the run's file is `path`: that file for the one named as the result."""
    if len(word_names(job)) == 1 and name == job.output.name:
        return path
    return path.with_name(name + path.name[len(job.output.name) :])


@dataclass(frozen=True)
class CaptionMaker:
    """What a picture is said to show in one step. `lines` are a template's; else `names` go in front.

    `called` is what `[name]` means where there are no names, in captions too.
    """

    lines: tuple[str, ...]
    names: tuple[str, ...]
    called: str = ""

    def __call__(self, caption: str, generator: torch.Generator) -> str:
        name, whole = " ".join(self.names) or self.called, caption
        for one in reversed(self.names):
            whole = with_trigger(whole, one)
        if not self.lines:
            return whole.replace(NAME, name) if name else whole
        line = self.lines[int(torch.randint(len(self.lines), (1,), generator=generator))]
        own = caption.removeprefix(name).removeprefix(", ")  # the scan puts the name where a caption says nothing
        text = line.replace(FILEWORDS, own if NAME in line else whole)
        return text.replace(NAME, name).strip(" ,")

    @property
    def varies(self) -> bool:
        return bool(self.lines)


def caption_maker(job: JobConfig, host: Host) -> CaptionMaker:
    """Captions as a job wants them. Raises `ConfigError` for a template that is not there or says nothing."""
    called = job.dataset.trigger_word.strip() or job.output.name
    if job.network.kind not in TEMPLATE_KINDS:
        return CaptionMaker((), (), called)
    names = word_names(job) or [job.output.name]
    if not job.dataset.template:
        return CaptionMaker((), tuple(word_names(job)), called)
    path = _template_path(job.dataset.template, host)
    lines = read_template(path)
    bad = next((line for line in lines if not re.search(r"(?<!\w)\[name\](?!\w)|\[filewords\]", line)), None)
    if word_names(job) and bad is not None:
        raise ConfigError(
            f"dataset.template: the line {bad!r} of {path} has no [name] that stands alone and no [filewords] that "
            "would bring it, so it would teach nothing: correct it."
        )
    return CaptionMaker(tuple(lines), tuple(names))


def read_template(path: Path) -> list[str]:
    """The lines of a template that say something. Raises `ConfigError` naming the file."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"dataset.template: {path} cannot be read as UTF-8 text ({error}): choose another."
        ) from error
    found = [line for line in lines if line]
    if not found:
        raise ConfigError(f"dataset.template: {path} is empty: write lines such as 'a photo of [name], [filewords]'.")
    return found


def _template_path(text: str, host: Host) -> Path:
    folder = host.template_folder()
    candidates: Sequence[Path] = [Path(text).expanduser(), folder / text, folder / f"{text}.txt"]
    for path in candidates:
        if path.is_file():
            return path
    raise ConfigError(f"dataset.template = {text!r} is neither a file nor a name in {folder}: correct it.")
