"""The kinds of training in one visible registry: how each is made, what is checked before, and where its file goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib_trainer.config import JobConfig
from lib_trainer.ports import Host, LoadedModel
from lib_trainer.training.kind_checks import (
    check_adapters,
    check_checkpoint,
    check_difference,
    check_embedding,
    check_hypernetwork,
    check_pivotal,
    difference_path,
)
from lib_trainer.training.recipes import Recipe
from lib_trainer.training.recipes.adapters import AdapterRecipe
from lib_trainer.training.recipes.checkpoint import CheckpointRecipe
from lib_trainer.training.recipes.difference import DifferenceRecipe
from lib_trainer.training.recipes.hypernetwork import HypernetworkRecipe
from lib_trainer.training.recipes.words import EmbeddingRecipe, PivotalRecipe


@dataclass(frozen=True)
class TrainingKind:
    """`check` raises a `TrainerError` before any model is touched; `call` is what a prompt says of a file's name.

    `rates` are the options that hold its learning rates.
    """

    make: Callable[[JobConfig, Host, LoadedModel], Recipe]
    check: Callable[[JobConfig, Host], None]
    folder: Callable[[Host], Path]
    call: str = "<lora:{}:1>"
    ending: Callable[[JobConfig], str] = lambda job: ".safetensors"
    rates: str = "optimizer.unet_lr, optimizer.text_encoder_lr"


def _adapters(job: JobConfig, host: Host, model: LoadedModel) -> Recipe:
    return AdapterRecipe(job, model)


def _lora_folder(host: Host) -> Path:
    return host.lora_folder()


TRAINING_KINDS: dict[str, TrainingKind] = {
    "lora": TrainingKind(_adapters, check_adapters, _lora_folder),
    "locon": TrainingKind(_adapters, check_adapters, _lora_folder),
    "loha": TrainingKind(_adapters, check_adapters, _lora_folder),
    "lokr": TrainingKind(_adapters, check_adapters, _lora_folder),
    "pivotal": TrainingKind(lambda job, host, model: PivotalRecipe(job, model), check_pivotal, _lora_folder),
    "difference": TrainingKind(lambda job, host, model: DifferenceRecipe(job, model), check_difference, _lora_folder),
    "embedding": TrainingKind(
        lambda job, host, model: EmbeddingRecipe(job, model),
        check_embedding,
        lambda host: host.embedding_folder(),
        call="{}",
        ending=lambda job: f".{job.embedding.format}",
        rates="embedding.learning_rate",
    ),
    "hypernetwork": TrainingKind(
        lambda job, host, model: HypernetworkRecipe(job, model),
        check_hypernetwork,
        lambda host: host.hypernetwork_folder(),
        call="<hypernet:{}:1>",
        ending=lambda job: ".pt",
        rates="hypernetwork.learning_rate",
    ),
    "checkpoint": TrainingKind(
        lambda job, host, model: CheckpointRecipe(job, model, difference_path(job, host)),
        check_checkpoint,
        lambda host: host.checkpoint_folder(),
        call="",
        rates="finetune.unet_lr, finetune.text_encoder_lr",
    ),
}


def prompt_for(host: Host, path: Path) -> str:
    """What calls a file in a prompt of this host; empty where it would not be found."""
    for kind in TRAINING_KINDS.values():
        if kind.folder(host).resolve() in path.resolve().parents:
            return kind.call.format(path.stem)
    return ""
