"""Embeddings alone, and a LoRA with its embedding in one file (pivotal tuning)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib_trainer.config import JobConfig
from lib_trainer.networks.formats.embedding_file import read_embedding, write_embedding
from lib_trainer.networks.formats.lora_file import bundled, read_lora, write_lora
from lib_trainer.ports import LoadedModel, TokenTable
from lib_trainer.refusals import ModelError
from lib_trainer.training.precision import DTYPES
from lib_trainer.training.recipes import Recipe
from lib_trainer.training.recipes.adapters import AdapterRecipe
from lib_trainer.training.words import initial_texts, word_names, word_path


class Words:
    """The rows of one or several new words: the only part of the vocabulary that gets gradients."""

    def __init__(self, job: JobConfig, model: LoadedModel, found: dict[str, torch.Tensor]) -> None:
        """`found` are rows from the file to continue from; other words start from their text, or at random."""
        self._table, self._decay = model.tokens(), job.embedding.norm_decay
        self._norm, self._rate = self._table.usual_norm(), job.embedding.learning_rate
        generator = torch.Generator().manual_seed(job.training.seed + 3)
        self.rows: dict[str, nn.Parameter] = {}
        for name, text in zip(word_names(job), initial_texts(job), strict=True):
            rows = found.get(name)
            if rows is None:
                rows = self._start(text, job.embedding.vectors, generator)
            elif rows.shape[1] != self._table.width:
                raise ModelError(
                    f"The embedding to continue from has vectors of {rows.shape[1]} numbers and this checkpoint's have "
                    f"{self._table.width}: choose one made for {model.family.word}."
                )
            self.rows[name] = nn.Parameter(rows.to(model.device, copy=True))

    def _start(self, text: str, count: int, generator: torch.Generator) -> torch.Tensor:
        """A text's rows, repeated from the first where there are more vectors; else random ones of the usual length."""
        if text:
            known = self._table.rows(text)
            chosen: torch.Tensor = known[torch.arange(count) % len(known)]
            return chosen
        drawn = torch.randn(count, self._table.width, generator=generator)
        unit: torch.Tensor = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
        return unit * self._norm

    @property
    def table(self) -> TokenTable:
        return self._table

    def group(self) -> dict[str, Any]:
        """Decoupled weight decay would pull towards 0 and not towards the vocabulary's norm."""
        return {"params": list(self.rows.values()), "lr": self._rate, "name": "embedding", "weight_decay": 0.0}

    def after_step(self) -> None:
        """‖v‖ moves by the job's share towards the vocabulary's usual norm."""
        if self._decay:
            with torch.no_grad():
                for rows in self.rows.values():
                    norm = rows.norm(dim=1, keepdim=True).clamp_min(1e-8)
                    rows.mul_(1 + self._decay * (self._norm - norm) / norm)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        with self._table.extended(self.rows):
            yield


class EmbeddingRecipe(Recipe):
    """Textual Inversion (Gal et al. 2022, arXiv:2208.01618): a few vectors of the text encoder's input."""

    trains_text_encoder = True
    network_module = "embedding"

    def __init__(self, job: JobConfig, model: LoadedModel) -> None:
        self._job = job
        found = {}
        if job.network.continue_from:
            found = {word_names(job)[0]: read_embedding(Path(job.network.continue_from).expanduser(), model.family)}
        self.words = Words(job, model, found)

    def groups(self) -> list[dict[str, Any]]:
        return [self.words.group()]

    def modules(self) -> dict[str, int]:
        return {"embedding": len(self.words.rows)}

    def applied(self) -> contextlib.AbstractContextManager[None]:
        return self.words.applied()

    def after_step(self) -> None:
        self.words.after_step()

    def save(self, path: Path, facts: dict[str, str], *, overwrite: bool) -> None:
        for name, rows in self.words.rows.items():
            write_embedding(word_path(path, name, self._job), rows, facts, overwrite=overwrite)


class PivotalRecipe(Recipe):
    """A LoRA and the words it is called by, trained together and kept in one file."""

    trains_text_encoder = True
    network_module = "networks.lora"

    def __init__(self, job: JobConfig, model: LoadedModel) -> None:
        self._dtype = DTYPES[job.output.precision]
        self.adapters = AdapterRecipe(job, model)
        found = {}
        if job.network.continue_from:
            found = read_lora(Path(job.network.continue_from).expanduser()).embeddings()
        self.words = Words(job, model, found)

    def groups(self) -> list[dict[str, Any]]:
        return [*self.adapters.groups(), self.words.group()]

    def modules(self) -> dict[str, int]:
        return {**self.adapters.modules(), "embedding": len(self.words.rows)}

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        with self.adapters.applied(), self.words.applied():
            yield

    def before_step(self, step: int, *, base: bool) -> None:
        self.adapters.before_step(step, base=base)

    def after_step(self) -> None:
        self.words.after_step()

    def save(self, path: Path, facts: dict[str, str], *, overwrite: bool) -> None:
        tensors = self.adapters.networks.tensors(self._dtype) | bundled(self.words.rows, self._dtype)
        write_lora(path, tensors, facts, overwrite=overwrite)
