"""What is asked of a kind of training. What holds for most kinds is answered here."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from lib_trainer.captions.tags import TagPatterns
from lib_trainer.captions.variation import Variation
from lib_trainer.config import CaptionsConfig, JobConfig, field_specs
from lib_trainer.dataset.scan import NAME, Sample, Scan
from lib_trainer.families.detect import lora_of
from lib_trainer.families.family import Family
from lib_trainer.kinds.captions import CaptionMaker, template_maker
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.networks.formats.lora_file import LORA_ENDINGS
from lib_trainer.networks.formats.reading import read_header
from lib_trainer.ports import Host, LoadedModel, PreviewRequest
from lib_trainer.refusals import ConfigError, Field, ModelError, Problems, Sentence
from lib_trainer.training.memory_table import Table, Work
from lib_trainer.training.names import numbered
from lib_trainer.training.optimizers import wants_average

CONTINUE = "network.continue_from"
WORDS_RATE = "embedding.learning_rate"
STABILITY = "https://github.com/Stability-AI/generative-models"
"""ModelSpec's name for CompVis' layout."""
Changes = Sequence[Mapping[str, Any]]
"""Values of options that may be changed together, from the smallest change on."""


@dataclass(frozen=True)
class Outputs:
    """The files of a finished run: `results` hold what was learned, and the first is what the run is known by.

    `beside` is what else a kind may leave, by what it is.
    """

    results: tuple[Path, ...]
    beside: Mapping[str, Path] = field(default_factory=dict)

    @property
    def result(self) -> Path:
        return self.results[0]

    @property
    def all(self) -> tuple[Path, ...]:
        return (*self.results, *self.beside.values())

    def of_step(self, step: int) -> Outputs:
        """The files of an intermediate step, beside the final ones."""
        return Outputs(tuple(step_path(path, step) for path in self.results))

    @property
    def best(self) -> Outputs:
        """The files of the step with the lowest held-out loss, beside the final ones."""
        return Outputs(tuple(best_path(path) for path in self.results))


def step_path(path: Path, step: int) -> Path:
    """The file of an intermediate step, beside the final one."""
    return path.with_name(f"{path.stem}-step{step:08d}{path.suffix}")


def best_path(path: Path) -> Path:
    """The file of the step with the lowest held-out loss, beside the final one."""
    return path.with_name(f"{path.stem}-best{path.suffix}")


SAVED_ENDS = r"-step\d{8}|-best"
"""A regular expression of what `step_path` and `best_path` put behind a name."""


class Kind:
    """One kind of training. It holds nothing: a job is given to each question.

    `name` is what a job calls it. `call` is what a prompt says of a file, with its stem in the place of the first `{}`
    and its weight in that of the second, where it `weighs`. `endings` are those of the files that it may mean. `rates`
    are the options that hold its learning rates. `architecture` and `implementation` are ModelSpec's words for its
    files. What it can do follows from the options that it reads, which their declarations say (`kinds=`).
    """

    name: str
    call = "<lora:{}:{}>"
    weighs = True
    endings: tuple[str, ...] = LORA_ENDINGS
    rates: tuple[str, ...] = ("optimizer.unet_lr", "optimizer.text_encoder_lr")
    architecture = ""
    implementation = STABILITY
    writes_model = False
    """Whether the file holds the whole model."""
    learning_share = 1.0
    """Of what learns in a run, how much learns in one step."""

    @functools.cached_property
    def options(self) -> frozenset[str]:
        """Paths of the options that it reads."""
        return frozenset(path for path, spec in field_specs().items() if self.name in spec.kinds)

    @property
    def all_rates(self) -> tuple[str, ...]:
        """The options that hold learning rates, also those that no high loss is put down to."""
        return (*self.rates, *([WORDS_RATE] if self.has_words and WORDS_RATE not in self.rates else []))

    @property
    def has_class_pictures(self) -> bool:
        return "prior.class_prompt" in self.options

    @property
    def has_templates(self) -> bool:
        return "dataset.template" in self.options

    @property
    def has_words(self) -> bool:
        return "embedding.names" in self.options

    @property
    def has_convolutions(self) -> bool:
        return "network.conv_rank" in self.options

    # Names and files

    def folder(self, host: Host) -> Path:
        """Where the host's prompts find its files."""
        return host.lora_folder()

    def ending(self, job: JobConfig) -> str:
        return ".safetensors"

    def outputs(self, job: JobConfig, folder: Path, host: Host) -> Outputs:
        """What a finished run of a job leaves in `folder`, and in folders of the host's."""
        return Outputs((folder / f"{job.output.name}{self.ending(job)}",))

    def words(self, job: JobConfig) -> list[str]:
        """The names of the embeddings that a job trains, in order."""
        if not self.has_words:
            return []
        return [name.strip() for name in job.embedding.names.split(",") if name.strip()] or [job.output.name]

    def names_field(self, job: JobConfig) -> str:
        """The option that names what a job trains."""
        return "embedding.names" if self.has_words and job.embedding.names.strip() else "output.name"

    def numbered(self, job: JobConfig, number: int) -> JobConfig:
        """The job under a name with a number; the words of embeddings get it too."""
        words = job.embedding.names
        if self.has_words and words.strip():
            words = ", ".join(numbered(name, number) for name in self.words(job))
        return self._named(job, numbered(job.output.name, number), words)

    @staticmethod
    def _named(job: JobConfig, name: str, words: str) -> JobConfig:
        return msgspec.structs.replace(
            job,
            output=msgspec.structs.replace(job.output, name=name),
            embedding=msgspec.structs.replace(job.embedding, names=words),
        )

    def trigger_words(self, job: JobConfig) -> list[str]:
        """What a prompt needs beside the call of the file: the trigger word, and names of embeddings inside it."""
        words, trigger = self.words(job), job.dataset.trigger_word.strip()
        return [*words, *([trigger] if trigger and trigger not in words else [])]

    def card_words(self, job: JobConfig) -> list[str]:
        """What the WebUI's card of the file puts into a prompt beside its call."""
        return self.trigger_words(job)

    def drawn_with(self, job: JobConfig, asked: PreviewRequest, files: Sequence[Path], weight: float) -> PreviewRequest:
        """A picture drawn with the results of one step of the job at a weight; at 0 with the model alone.

        What the prompt calls of the job's own results, of any step, is left out: it would act beside them.
        """
        begins = re.escape(self.call.partition("{")[0] + job.output.name)
        prompt = re.sub(rf"\s*{begins}(?:{SAVED_ENDS})?(?::[^>]*)?>", "", asked.prompt).strip()
        called = self.call.format(files[0].stem, f"{weight:g}") if weight else ""
        return replace(asked, prompt=" ".join(filter(None, [prompt, called])))

    def check_family(self, files: Sequence[Path], family: Family) -> None:
        """Raise a `TrainerError` for results that cannot be read, or are for models of another family."""
        header = read_header(files[0])
        other = lora_of({name.partition(".")[0] for name in header.shapes}, header.metadata)
        if other not in (None, family):
            word = other.word if other is not None else ""
            raise ModelError("trial.other_family", one=word, another=family.word)

    # Checks, and what is read before a run

    def check(self, job: JobConfig, host: Host, problems: Problems) -> None:
        """Put all that is wrong with a job of this kind into `problems`. May ask the host about its model."""

    def why_no_fp8(self, job: JobConfig) -> Sentence | None:
        """Why the frozen weights cannot be held in 8 bits, the end of a sentence; None where they can."""
        return None

    def why_no_bare_model(self) -> Sentence | None:
        """Why there is no model without what learns beside it, the end of a sentence; None where there is one."""
        return None

    def why_nothing_to_preserve(self) -> Sentence | None:
        """Why what is said without the words that are learned cannot change, the end of a sentence; None if it can."""
        return None

    def captions(self, job: JobConfig, host: Host) -> CaptionMaker:
        """Captions as a job wants them. Raises `ConfigError` for a template that is not there or says nothing."""
        words, called = self.words(job), job.dataset.trigger_word.strip() or job.output.name
        if self.has_templates and job.dataset.template:
            return template_maker(job.dataset.template, words, job.output.name, host)
        return CaptionMaker((), tuple(words), called, self.variation(job), self._captions(job).weights)

    def variation(self, job: JobConfig) -> Variation:
        """What is done to captions at each step.

        Raises `ConfigError` for an expression that is none, and for a tag that both lists name.
        """
        own, name = self._captions(job), " ".join(self.words(job)) or job.dataset.trigger_word.strip()
        given = [*self.words(job), *job.dataset.trigger_word.split(",")]
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
            own.prefix.replace(NAME, name or job.output.name).strip(),
            own.suffix.replace(NAME, name or job.output.name).strip(),
            words,
        )

    def captions_vary(self, job: JobConfig) -> bool:
        """Whether captions are drawn anew in each step, so that the text encoder is needed throughout."""
        own = self._captions(job)
        return (self.has_templates and bool(job.dataset.template)) or Variation(
            own.shuffle, tag_dropout=own.tag_dropout, wildcards=own.wildcards
        ).endless

    def _captions(self, job: JobConfig) -> CaptionsConfig:
        """What it reads of the options of captions."""
        unread = [one for one in CaptionsConfig.__struct_fields__ if f"captions.{one}" not in self.options]
        return msgspec.structs.replace(job.captions, **{one: getattr(CaptionsConfig(), one) for one in unread})

    def before(self, job: JobConfig, scan: Scan) -> list[Sample]:
        """Pictures that are learned before the others. Raises `DatasetError` or `ConfigError`."""
        return []

    def base_steps(self, job: JobConfig, total: int) -> int:
        """Steps that belong to the pictures before; there is always one left for the others."""
        return 0

    # The run and its file

    def recipe(self, job: JobConfig, model: LoadedModel, outputs: Outputs) -> Recipe:
        """Raises a `TrainerError` where the job does not fit the model."""
        raise NotImplementedError

    def metadata(self, job: JobConfig, recipe: Recipe) -> dict[str, str]:
        """What a file says of the kind alone, in sd-scripts' names; of ranks and sizes its tensors tell."""
        return {}

    def rates_told(self, job: JobConfig, recipe: Recipe, family: Family) -> dict[str, object]:
        """The learning rates of the parts that have something to learn; a part that has none says `None`."""
        raise NotImplementedError

    # Memory

    def learned(self, job: JobConfig, table: Table) -> dict[str, int]:
        """How many numbers learn, by part."""
        raise NotImplementedError

    def trains_text_encoder(self, job: JobConfig, family: Family) -> bool:
        return False

    def measured_as(self, job: JobConfig) -> str:
        """What tables of memory call its step."""
        return self.name

    def activations(self, job: JobConfig, table: Table, work: Work, dtype: torch.dtype, cells: int) -> float:
        """Bytes of a step beyond those that the table tells of a job at the ranks that it was measured at."""
        return 0.0

    def least_activations(self, job: JobConfig, learned: int) -> int:
        """Bytes that a step takes whatever the pictures; `learned` bytes learn."""
        return 0

    def replaces(self, job: JobConfig, family: Family) -> frozenset[str]:
        """Parts of the model whose own weights are away while others learn in their place."""
        return frozenset()

    def has_average(self, job: JobConfig) -> bool:
        """Whether a running average of what learns is kept."""
        return wants_average(job.optimizer)

    def to_lower(self, job: JobConfig, device: torch.device) -> list[Sentence]:
        """What else costs memory. The list follows the word "lower"."""
        return []

    def mild_remedies(self, job: JobConfig) -> Iterator[Changes]:
        """Changes that need less memory and harm the result little."""
        yield from ()

    def hard_remedies(self, job: JobConfig) -> Iterator[Changes]:
        """Changes that need less memory and make the result another one."""
        yield from ()


def _listed(text: str, path: str) -> TagPatterns:
    try:
        return TagPatterns.parse(text, path)
    except ConfigError as error:
        error.field = path
        raise


def option_of(job: JobConfig, path: str) -> Any:
    """The value of an option by its path."""
    section, _, name = path.partition(".")
    return getattr(getattr(job, section), name)
