"""Textual Inversion (Gal et al. 2022, arXiv:2208.01618): a few vectors of the text encoder's input."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib_trainer.config import JobConfig
from lib_trainer.families.family import Family
from lib_trainer.kinds.base import CONTINUE, Kind
from lib_trainer.kinds.memory import KindMemory
from lib_trainer.kinds.outputs import SAVED_ENDS, Outputs
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.kinds.words import Words, check_words, numbers_of_words
from lib_trainer.networks.formats.embedding_file import ENDINGS, read_embedding, write_embedding
from lib_trainer.ports import Host, LoadedModel, PreviewRequest
from lib_trainer.refusals import ConfigError, Field, Problems, Sentence
from lib_trainer.training.memory_table import Table

MAX_VECTORS = 75


class EmbeddingMemory(KindMemory):
    """Of the words' rows alone, through the text encoder."""

    def learned(self, job: JobConfig, table: Table) -> dict[str, int]:
        return {"words": numbers_of_words(job, table.text_width)}

    def trains_text_encoder(self, job: JobConfig, family: Family) -> bool:
        return True


class EmbeddingKind(Kind):
    """One or several words, each in a file of its own, by whose name a prompt calls it."""

    name, call = "embedding", "{}"
    weighs, endings = False, ENDINGS
    rates = ("embedding.learning_rate",)
    architecture = "/textual-inversion"
    memory = EmbeddingMemory("embedding")

    def folder(self, host: Host) -> Path:
        return host.embedding_folder()

    def ending(self, job: JobConfig) -> str:
        return f".{job.embedding.format}"

    def outputs(self, job: JobConfig, folder: Path, host: Host) -> Outputs:
        return Outputs(tuple(folder / f"{name}{self.ending(job)}" for name in self.words(job)))

    def trigger_words(self, job: JobConfig) -> list[str]:
        return self.words(job)[1:]  # names are calls

    def drawn_with(self, job: JobConfig, asked: PreviewRequest, files: Sequence[Path], weight: float) -> PreviewRequest:
        """The words of the job, and their saved steps, are called as the files are, in the negative prompt too; those
        that are in neither follow the prompt."""
        called = {word.casefold(): path.stem for word, path in zip(self.words(job), files, strict=True)}
        longest = "|".join(map(re.escape, sorted(called, key=len, reverse=True)))
        pattern = re.compile(rf"(?<!\w)({longest})(?:{SAVED_ENDS})?(?!\w)", re.IGNORECASE)
        found = {word.casefold() for text in (asked.prompt, asked.negative_prompt) for word in pattern.findall(text)}
        prompt, negative = (
            pattern.sub(lambda word: called[word[1].casefold()], text) for text in (asked.prompt, asked.negative_prompt)
        )
        others = [stem for word, stem in called.items() if word not in found]
        return replace(asked, prompt=" ".join(filter(None, [prompt, *others])), negative_prompt=negative)

    def check_family(self, files: Sequence[Path], family: Family) -> None:
        for path in files:
            read_embedding(path, family)

    def card_words(self, job: JobConfig) -> list[str]:
        return []

    def check(self, job: JobConfig, host: Host, problems: Problems) -> None:
        words = self.words(job)
        check_words(job, words, self.names_field(job), host, problems)
        if not job.network.continue_from:
            return
        with problems.at():
            if len(words) > 1:
                raise ConfigError("continue.one_embedding", field=CONTINUE, names=Field("embedding.names"))
        with problems.at(CONTINUE):
            rows = read_embedding(Path(job.network.continue_from).expanduser(), host.family())
            count = len(next(iter(rows.values())))
            if count > MAX_VECTORS:
                raise ConfigError("continue.vectors", field=CONTINUE, count=count, most=MAX_VECTORS)

    def why_nothing_to_preserve(self) -> Sentence | None:
        return Sentence("preserve.words_alone")

    def recipe(self, job: JobConfig, model: LoadedModel, outputs: Outputs) -> Recipe:
        return EmbeddingRecipe(job, self.words(job), model)

    def rates_told(self, job: JobConfig, recipe: Recipe, family: Family) -> dict[str, object]:
        return {"ss_learning_rate": float(job.embedding.learning_rate)}


class EmbeddingRecipe(Recipe):
    """Only the rows of the new words learn."""

    trains_text_encoder = True
    network_module = "embedding"

    def __init__(self, job: JobConfig, names: Sequence[str], model: LoadedModel) -> None:
        self._family, found = model.family, {}
        if job.network.continue_from:
            found = {names[0]: read_embedding(Path(job.network.continue_from).expanduser(), model.family)}
        self.words = Words(job, names, model, found)

    def groups(self) -> list[dict[str, Any]]:
        return [self.words.group()]

    def modules(self) -> dict[str, int]:
        return {"embedding": len(self.words.rows)}

    def applied(self) -> contextlib.AbstractContextManager[None]:
        return self.words.applied()

    def bare(self) -> contextlib.AbstractContextManager[None]:
        """Nothing of the model is changed: a caption without the words is told as ever."""
        return contextlib.nullcontext()

    def after_step(self) -> None:
        self.words.after_step()

    def save(self, files: Sequence[Path], facts: dict[str, str], *, overwrite: bool) -> None:
        """Of new files all or none: a part of the words would keep the names from what is written after it."""
        with contextlib.ExitStack() as written:
            for path, rows in zip(files, self.words.rows.values(), strict=True):
                write_embedding(path, rows, facts, self._family, overwrite=overwrite)
                if not overwrite:
                    written.callback(_take_away, path)
            written.pop_all()


def _take_away(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
