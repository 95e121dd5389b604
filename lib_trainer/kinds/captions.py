"""What a picture is said to show: its caption, with the names that are learned in front, or lines of a template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from lib_trainer.captions.tags import TagPatterns
from lib_trainer.captions.variation import AS_IS, Moment, Variation
from lib_trainer.config import CaptionsConfig, JobConfig
from lib_trainer.dataset.scan import NAME, with_trigger
from lib_trainer.kinds.base import Kind
from lib_trainer.ports import Host
from lib_trainer.refusals import ConfigError, Field

FILEWORDS = "[filewords]"


@dataclass(frozen=True)
class CaptionMaker:
    """What a picture is said to show in one step. `lines` are a template's; else `names` go in front.

    `called` is what `[name]` means where there are no names, in captions too. `variation` is what is done to a caption
    at each step; `weighted`: brackets in captions are weights.
    """

    lines: tuple[str, ...]
    names: tuple[str, ...]
    called: str = ""
    variation: Variation = AS_IS
    weighted: bool = False

    def __call__(self, caption: str, generator: torch.Generator) -> str:
        name, whole = " ".join(self.names) or self.called, caption
        for one in reversed(self.names):
            whole = with_trigger(whole, one)
        if not self.lines:
            return whole.replace(NAME, name) if name else whole
        line = self.lines[int(torch.randint(len(self.lines), (1,), generator=generator))]
        # the scan puts the name where a caption says nothing; `cat` is not taken from `catfish`
        own = re.sub(rf"^{re.escape(name)}(?![\w-])(?:, )?", "", caption)
        text = line.replace(FILEWORDS, own if NAME in line else whole)
        return text.replace(NAME, name).strip(" ,")

    def told(self, caption: str, generator: torch.Generator, moment: Moment) -> str:
        """What a picture is said to show at one step."""
        return self.variation(self(caption, generator), moment)

    def calm(self) -> CaptionMaker:
        """The same without what varies captions of one picture, except what is drawn of a template or of choices."""
        return replace(self, variation=self.variation.calm())

    def forms(self, caption: str) -> list[str]:
        """Everything that a picture with this caption may be said to show, where that does not vary."""
        return self.variation.forms(self(caption, torch.Generator()))

    @property
    def varies(self) -> bool:
        """Whether captions have too many forms to encode all of them beforehand."""
        return bool(self.lines) or self.variation.endless


def template_maker(template: str, names: Sequence[str], called: str, host: Host) -> CaptionMaker:
    """Captions from a template, for the words `names`, or for what is `called` so where there are none.

    Raises `ConfigError` for a template that is not there or says nothing.
    """
    path = _template_path(template, host)
    lines = read_template(path)
    bad = next((line for line in lines if not re.search(r"(?<!\w)\[name\](?!\w)|\[filewords\]", line)), None)
    if names and bad is not None:
        raise ConfigError("template.teaches_nothing", field="dataset.template", line=bad, path=path)
    return CaptionMaker(tuple(lines), tuple(names) or (called,))


def read_template(path: Path) -> list[str]:
    """The lines of a template that say something. Raises `ConfigError` naming the file."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("template.unreadable", field="dataset.template", path=path, reason=error) from error
    found = [line for one in lines if (line := unmarked(one))]
    if not found:
        raise ConfigError("template.empty", field="dataset.template", path=path)
    return found


def _template_path(text: str, host: Host) -> Path:
    folder = host.template_folder()
    candidates: Sequence[Path] = [Path(text).expanduser(), folder / text, folder / f"{text}.txt"]
    for path in candidates:
        if path.is_file():
            return path
    raise ConfigError("template.missing", field="dataset.template", text=text, folder=folder)


def captions_of(kind: Kind, job: JobConfig, host: Host) -> CaptionMaker:
    """Captions as a job wants them. Raises `ConfigError` for a template that is not there or says nothing."""
    words, called = kind.words(job), job.dataset.trigger_word.strip() or job.output.name
    if kind.has_templates and job.dataset.template:
        return template_maker(job.dataset.template, words, job.output.name, host)
    return CaptionMaker((), tuple(words), called, caption_variation(kind, job), _read_options(kind, job).weights)


def caption_variation(kind: Kind, job: JobConfig) -> Variation:
    """What is done to captions at each step.

    Raises `ConfigError` for an expression that is none, and for a tag that both lists name.
    """
    own, name = _read_options(kind, job), " ".join(kind.words(job)) or job.dataset.trigger_word.strip()
    given = [*kind.words(job), *job.dataset.trigger_word.split(",")]
    words = tuple(dict.fromkeys(" ".join(word.split()) for word in given if word.strip()))
    spared = _listed(own.never_drop, "captions.never_drop")
    alone = _listed(own.only_drop, "captions.only_drop")
    if own.tag_dropout and (both := sorted(spared.keys & alone.keys)):
        raise ConfigError(
            "captions.in_both", field="captions.only_drop", other=Field("captions.never_drop"), tag=both[0]
        )
    return Variation(
        own.shuffle,
        own.keep_tokens,
        own.tag_dropout,
        spared,
        alone,
        own.warmup,
        own.dropout,
        own.dropout_epochs,
        own.wildcards,
        unmarked(own.prefix.replace(NAME, name or job.output.name)),
        unmarked(own.suffix.replace(NAME, name or job.output.name)),
        words,
        own.weights,
    )


def unmarked(text: str) -> str:
    """What stands around captions or in a template. It is never shuffled, so that the keep-token separator in it
    (sd-scripts) is a comma."""
    return re.sub(r"\s*,?\s*\|\|\|", ",", text).strip()


def captions_vary(kind: Kind, job: JobConfig) -> bool:
    """Whether captions are drawn anew in each step, so that the text encoder is needed throughout."""
    own = _read_options(kind, job)
    return (kind.has_templates and bool(job.dataset.template)) or Variation(
        own.shuffle, tag_dropout=own.tag_dropout, wildcards=own.wildcards
    ).endless


def _read_options(kind: Kind, job: JobConfig) -> CaptionsConfig:
    """What a kind reads of the options of captions."""
    unread = [one for one in CaptionsConfig.__struct_fields__ if f"captions.{one}" not in kind.options]
    return msgspec.structs.replace(job.captions, **{one: getattr(CaptionsConfig(), one) for one in unread})


def _listed(text: str, path: str) -> TagPatterns:
    try:
        return TagPatterns.parse(text, path)
    except ConfigError as error:
        error.field = path
        raise
