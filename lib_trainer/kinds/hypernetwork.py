"""Hypernetworks: small networks in front of the attentions' keys and values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from lib_trainer.config import JobConfig
from lib_trainer.families.family import Family
from lib_trainer.kinds.adapters import DropoutSeeds
from lib_trainer.kinds.base import CONTINUE, Kind
from lib_trainer.kinds.memory import Batch, KindMemory
from lib_trainer.kinds.outputs import Outputs
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.networks.formats.hypernetwork_file import read_hypernetwork, write_hypernetwork
from lib_trainer.networks.hypernetwork import Hypernetwork, Structure, attention_sizes
from lib_trainer.ports import Host, LoadedModel
from lib_trainer.refusals import ConfigError, Field, ModelError, Problems, Sentence
from lib_trainer.training.memory_table import FULL, Table, Work
from lib_trainer.training.optimizers import Shapes

STRUCTURE = "hypernetwork.layer_structure"
MEASURED = Structure(activation="swish")
"""That tables of memory are made at."""


class HypernetworkMemory(KindMemory):
    """By the structure of the networks, whose widths are multiples of what the attentions read."""

    def learned(self, job: JobConfig, table: Table) -> dict[str, int]:
        return {"unet": sum(math.prod(shape) for shape, _ in self._shapes(job, table))}

    def groups(self, job: JobConfig, table: Table) -> Sequence[Shapes]:
        return [self._shapes(job, table)]

    def _shapes(self, job: JobConfig, table: Table) -> Shapes:
        sizes = parse_sizes(job.hypernetwork.sizes) or table.attention_sizes
        with torch.device("meta"):
            network = Hypernetwork(parse_structure(job), sizes)
        return [(parameter.shape, 1) for parameter in network.parameters()]

    def activations(self, job: JobConfig, table: Table, work: Work, dtype: torch.dtype, batch: Batch) -> float:
        """They read what attentions see of the picture, and of its caption."""
        own, measured = (kept_widths(one, dtype.itemsize) for one in (parse_structure(job), MEASURED))
        return (own - measured) * (work.wide * batch.cells + work.told * batch.chunks) + work.text * batch.chunks

    def least_share(self, job: JobConfig, work: Work, *, again: bool = False) -> float:
        """Each gradient arrives by itself, and stays."""
        return 0.0 if again else 1.0

    def to_lower(self, job: JobConfig, device: torch.device) -> list[Sentence]:
        return [Sentence("lower.option", option=Field(STRUCTURE), now=job.hypernetwork.layer_structure)]


KEEP_RESULT = frozenset({"linear", "relu", "tanh", "sigmoid"})
"""Activations that need nothing for their backward pass but what they give, which the next layer keeps."""


def kept_widths(structure: Structure, width: int) -> float:
    """Numbers that a step keeps of inner layers for each that the network is given: what the next layer is given, what
    an activation is given, and what a norm is, in fp32. `width`: bytes of a number."""
    last, norm = len(structure.layers) - 1, FULL / width if structure.layer_norm else 0
    activated = structure.activation not in KEEP_RESULT
    found = 0.0
    for place, wide in enumerate(structure.layers[1:], 1):
        inner = place < last
        found += wide * (inner + (activated and (inner or structure.activate_output)) + norm)
    return found


class HypernetworkKind(Kind):
    """The text encoder is not trained."""

    name, call, endings = "hypernetwork", "<hypernet:{}:{}>", (".pt",)
    rates = ("hypernetwork.learning_rate",)
    memory = HypernetworkMemory("hypernetwork")

    def folder(self, host: Host) -> Path:
        return host.hypernetwork_folder()

    def ending(self, job: JobConfig) -> str:
        return ".pt"

    def check_family(self, files: Sequence[Path], family: Family) -> None:
        if not family.hypernetworks:
            raise ConfigError("hypernetwork.family", field="network.kind", family=family.word)

    def check(self, job: JobConfig, host: Host, problems: Problems) -> None:
        with problems.at():
            if not host.family().hypernetworks:
                raise ConfigError("hypernetwork.family", field="network.kind", family=host.family().word)
        with problems.at():
            if job.hypernetwork.learning_rate == 0:
                raise ConfigError("hypernetwork.rate", field="hypernetwork.learning_rate")
        with problems.at():
            parse_structure(job)
        with problems.at():
            parse_sizes(job.hypernetwork.sizes)
        if job.network.continue_from:
            with problems.at(CONTINUE):
                read_hypernetwork(Path(job.network.continue_from).expanduser())

    def recipe(self, job: JobConfig, model: LoadedModel, outputs: Outputs) -> Recipe:
        return HypernetworkRecipe(job, model)

    def rates_told(self, job: JobConfig, recipe: Recipe, family: Family) -> dict[str, object]:
        return {"ss_learning_rate": float(job.hypernetwork.learning_rate)}


class HypernetworkRecipe(Recipe):
    """A pair of networks for each width of what the attentions read."""

    trains_text_encoder = False
    network_module = "hypernetwork"

    def __init__(self, job: JobConfig, model: LoadedModel) -> None:
        self._rate = job.hypernetwork.learning_rate
        self._targets = model.adaptable_modules()
        known = attention_sizes(self._targets)
        if job.network.continue_from:
            path = Path(job.network.continue_from).expanduser()
            self.network = read_hypernetwork(path)
            if not set(self.network.sizes) & set(known):
                word = model.family.word
                raise ModelError("hypernetwork.other_sizes", path=path, known=known, family=word)
        else:
            wanted = parse_sizes(job.hypernetwork.sizes) or known
            strange = sorted(set(wanted) - set(known))
            if strange:
                raise ConfigError("hypernetwork.no_size", field="hypernetwork.sizes", size=strange[0], known=known)
            self.network = Hypernetwork(parse_structure(job), wanted)
            self.network.reset(torch.Generator().manual_seed(job.training.seed))
        self.network.to(model.device)
        self.draws = any(self.network.structure.dropouts)
        self._seeds = DropoutSeeds(job, drops=self.draws)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": self._rate, "name": "hypernetwork"}]

    def modules(self) -> dict[str, int]:
        return {"hypernetwork": 2 * len(self.network.sizes)}

    def applied(self) -> AbstractContextManager[None]:
        return self.network.applied(self._targets)

    def bare(self) -> AbstractContextManager[None]:
        return self.network.off()

    def before_step(self, step: int, *, base: bool) -> None:
        self._seeds.set(step)

    def save(self, files: Sequence[Path], facts: dict[str, str], *, overwrite: bool) -> None:
        write_hypernetwork(files[0], self.network, facts, overwrite=overwrite)


def parse_structure(job: JobConfig) -> Structure:
    """The structure that a job asks for. Raises `ConfigError` naming the field."""
    hyper = job.hypernetwork
    layers = _numbers(hyper.layer_structure, STRUCTURE)
    if len(layers) < 2 or layers[0] != 1 or layers[-1] != 1:
        raise ConfigError("hypernetwork.ends", field=STRUCTURE, structure=hyper.layer_structure)
    if min(layers) <= 0 or max(layers) > 32:
        raise ConfigError("hypernetwork.widths", field=STRUCTURE, structure=hyper.layer_structure)
    dropouts = _numbers(hyper.dropout_structure, "hypernetwork.dropout_structure")
    if dropouts and (
        len(dropouts) != len(layers) or dropouts[0] or dropouts[-1] or not all(0 <= one < 1 for one in dropouts)
    ):
        raise ConfigError(
            "hypernetwork.dropouts",
            field="hypernetwork.dropout_structure",
            structure=hyper.dropout_structure,
            count=len(layers),
        )
    return Structure(layers, hyper.activation, hyper.initialisation, hyper.layer_norm, hyper.activate_output, dropouts)


def parse_sizes(text: str) -> list[int]:
    """Whole numbers. Raises `ConfigError` naming the field."""
    sizes = _numbers(text, "hypernetwork.sizes")
    if not all(size.is_integer() and size > 0 for size in sizes):
        raise ConfigError("hypernetwork.sizes", field="hypernetwork.sizes", text=text)
    return sorted({int(size) for size in sizes})


def _numbers(text: str, field: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.replace("[", "").replace("]", "").split(",") if part.strip())
    except ValueError:
        raise ConfigError("hypernetwork.numbers", field=field, text=text) from None
