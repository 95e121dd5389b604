"""What a kind of training offers, checks, calls and writes. What holds for most kinds is answered here.

What learns in a run is its `Recipe`, and what that needs of memory its `KindMemory`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from lib_trainer.config import JobConfig, field_specs
from lib_trainer.dataset.scan import Sample, Scan
from lib_trainer.families.detect import lora_of
from lib_trainer.families.family import Family
from lib_trainer.kinds.memory import KindMemory
from lib_trainer.kinds.outputs import SAVED_ENDS, Outputs
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.kinds.words import words_of
from lib_trainer.networks.formats.lora_file import LORA_ENDINGS
from lib_trainer.networks.formats.reading import read_header
from lib_trainer.ports import Host, LoadedModel, PreviewRequest
from lib_trainer.refusals import ModelError, Problems, Sentence
from lib_trainer.training.names import numbered

CONTINUE = "network.continue_from"
WORDS_RATE = "embedding.learning_rate"
STABILITY = "https://github.com/Stability-AI/generative-models"
"""ModelSpec's name for CompVis' layout."""


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
    memory: KindMemory

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
        return words_of(job) if self.has_words else []

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
