"""New words: rows of the text encoder's input that learn, and what is checked of their names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lib_trainer.config import JobConfig
from lib_trainer.families.family import Family, Part
from lib_trainer.ports import Host, LoadedModel, Rows, TokenTable
from lib_trainer.refusals import ConfigError, Field, ModelError, Problems
from lib_trainer.training.optimizers import known

BRACKETS = "()[]\\"
"""Signs of the WebUI's prompts (modules/prompt_parser.py)."""


def words_of(job: JobConfig) -> list[str]:
    """The names of the embeddings that a job trains, in order."""
    return [name.strip() for name in job.embedding.names.split(",") if name.strip()] or [job.output.name]


def initial_texts(job: JobConfig, names: Sequence[str]) -> list[str]:
    """The text that each embedding starts from; empty: random vectors. Raises `ConfigError` for too many."""
    text = job.embedding.initial_text
    texts = [part.strip() for part in text.split(";")] if len(names) > 1 else [text.strip()]
    if len(texts) > len(names):
        raise ConfigError("words.texts", field="embedding.initial_text", texts=len(texts), names=len(names))
    return texts + [""] * (len(names) - len(texts))


def check_words(job: JobConfig, names: Sequence[str], field: str, host: Host, problems: Problems) -> None:
    """Names (which the option `field` gives), vectors and initial texts of embeddings."""
    with problems.at():
        if job.embedding.learning_rate == 0:
            raise ConfigError("words.rate", field="embedding.learning_rate")
    for name in names:
        with problems.at():
            _check_name(name, field, host)
    with problems.at():
        for name, text in zip(names, initial_texts(job, names), strict=True):
            count = host.token_count(text) if text else 0
            if count > job.embedding.vectors and not job.network.continue_from:
                raise ConfigError(
                    "words.long_text",
                    field="embedding.initial_text",
                    name=name,
                    count=count,
                    count_of_vectors=job.embedding.vectors,
                    vectors=Field("embedding.vectors"),
                )


def _check_name(name: str, field: str, host: Host) -> None:
    if host.token_count(name) == 1:
        raise ConfigError("words.known", field=field, name=name)
    if not (name[0].isalnum() and name[-1].isalnum()):
        raise ConfigError("words.sign", field=field, name=name)
    brackets = sorted(set(name) & set(BRACKETS))
    if brackets:
        raise ConfigError("words.brackets", field=field, name=name, brackets=" ".join(brackets))


def numbers_of_words(job: JobConfig, width: int) -> int:
    """How many numbers learn; `width` of them in a vector."""
    return len(words_of(job)) * job.embedding.vectors * width


def check_widths(rows: Rows, table: TokenTable, family: Family) -> None:
    """Raise `ModelError` unless rows of a file fit the vocabulary."""
    for part, own in rows.items():
        if own.shape[1] != table.widths[part]:
            raise ModelError("words.width", there=own.shape[1], here=table.widths[part], family=family.word)


class Words:
    """The rows of one or several new words: the only part of the vocabulary that gets gradients."""

    def __init__(self, job: JobConfig, names: Sequence[str], model: LoadedModel, found: Mapping[str, Rows]) -> None:
        """`found` are rows from the file to continue from; other words start from their text, or at random."""
        self._table, self._decay = model.tokens(), 0.0 if known(job.optimizer).averages else job.embedding.norm_decay
        self._norm, self._rate = self._table.usual_norm(), job.embedding.learning_rate
        generator = torch.Generator().manual_seed(job.training.seed + 3)
        self.rows: dict[str, dict[Part, nn.Parameter]] = {}
        for name, text in zip(names, initial_texts(job, names), strict=True):
            rows = found.get(name)
            if rows is None:
                rows = self._start(text, job.embedding.vectors, generator)
            check_widths(rows, self._table, model.family)
            self.rows[name] = {part: nn.Parameter(own.to(model.device, copy=True)) for part, own in rows.items()}

    def _start(self, text: str, count: int, generator: torch.Generator) -> Rows:
        """A text's rows, repeated from the first where there are more vectors; else random ones of the usual length."""
        if text:
            known = self._table.rows(text)
            return {part: rows[torch.arange(count) % len(rows)] for part, rows in known.items()}
        start: dict[Part, torch.Tensor] = {}
        for part, width in self._table.widths.items():
            drawn = torch.randn(count, width, generator=generator)
            start[part] = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True) * self._norm[part]
        return start

    @property
    def table(self) -> TokenTable:
        return self._table

    def group(self) -> dict[str, Any]:
        """Decoupled weight decay would pull towards 0 and not towards the vocabulary's norm."""
        learned = [own for rows in self.rows.values() for own in rows.values()]
        return {"params": learned, "lr": self._rate, "name": "embedding", "weight_decay": 0.0}

    def after_step(self) -> None:
        """‖v‖ moves by the job's share towards the vocabulary's usual norm."""
        if self._decay:
            with torch.no_grad():
                for part, rows in (pair for word in self.rows.values() for pair in word.items()):
                    norm = rows.norm(dim=1, keepdim=True).clamp_min(1e-8)
                    rows.mul_(1 + self._decay * (self._norm[part] - norm) / norm)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        with self._table.extended(self.rows):
            yield
