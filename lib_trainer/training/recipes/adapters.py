"""Recipes whose result is a network of adapters: LoRA, LoCon, LoHa, LoKr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lib_trainer.config import JobConfig
from lib_trainer.families.family import Family
from lib_trainer.networks.adapters import Adapter, AdapterSpec, Dropouts
from lib_trainer.networks.blocks import learns, parse_blocks
from lib_trainer.networks.formats.lora_file import BUNDLED, read_lora, write_lora
from lib_trainer.networks.lora import LoraNetwork, unmatched_keys
from lib_trainer.ports import AdaptableModule, LoadedModel, Part
from lib_trainer.refusals import ModelError
from lib_trainer.training.optimizers import ELEMENTWISE
from lib_trainer.training.precision import DTYPES
from lib_trainer.training.recipes import Recipe

Planned = list[tuple[AdaptableModule, AdapterSpec]]
ADAPTER_KINDS: dict[str, Literal["lora", "loha", "lokr"]] = {"loha": "loha", "lokr": "lokr"}
"""Kinds of training whose adapters are not plain LoRA."""

WITH_CONVOLUTIONS = ("locon", "loha", "lokr")
WHAT_LEARNS = "let the learning rates, blocks.preset, blocks.rates and blocks.ranks leave some"


class AdapterRecipe(Recipe):
    """Fresh adapters for a job, or those of a file. Parts and blocks whose learning rate is 0 get none."""

    def __init__(self, job: JobConfig, model: LoadedModel) -> None:
        self._job, self._dtype = job, DTYPES[job.output.precision]
        self.networks = make_networks(job, model)
        self.network = self.networks.trained
        self.trains_text_encoder = any(adapter.part != "unet" for adapter in self.network)
        plain = job.network.kind in ("lora", "difference") and not job.network.dora  # sd-scripts has DoRA by LyCORIS
        self.network_module = "networks.lora" if plain else "lycoris.kohya"
        self._seeds = DropoutSeeds(job)
        self._groups = rate_groups(job, self.network, model.family)

    def groups(self) -> list[dict[str, Any]]:
        return self._groups

    def modules(self) -> dict[str, int]:
        return {str(part): count for part, count in self.network.parts().items()}

    def applied(self) -> AbstractContextManager[None]:
        return self.networks.applied()

    def before_step(self, step: int, *, base: bool) -> None:
        self._seeds.set(step)

    def save(self, path: Path, facts: dict[str, str], *, overwrite: bool) -> None:
        write_lora(path, self.networks.tensors(self._dtype), facts, overwrite=overwrite)


@dataclass(frozen=True)
class Networks:
    """`trained` learns. `held` is the rest of the file that a run goes on from: it is applied and stays what it was.

    `kept` are that rest's tensors as they were read, and those of embeddings that the file brings along.
    """

    trained: LoraNetwork
    held: LoraNetwork
    kept: dict[str, torch.Tensor]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        with self.held.applied(), self.trained.applied():
            yield

    def tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The whole file; what was trained in `dtype`."""
        return self.kept | self.trained.tensors(dtype)


class DropoutSeeds:
    """Dropouts draw from torch's own generator, which a preview may have set: each step has a seed of its own."""

    def __init__(self, job: JobConfig) -> None:
        self._seed, self._drops = job.training.seed, bool(dropouts_of(job))

    def set(self, step: int) -> None:
        if self._drops:
            torch.manual_seed((self._seed << 24) + step)


def rate_groups(job: JobConfig, network: LoraNetwork, family: Family) -> list[dict[str, Any]]:
    """A group for each part, and for each factor that its blocks have. Called once: the network is made flat."""
    factors = parse_blocks(job.blocks.rates, "blocks.rates", family.unet)
    rates = family.rates(job.optimizer.unet_lr, job.optimizer.text_encoder_lr)
    whole = job.optimizer.name in ELEMENTWISE
    sorted_out: dict[tuple[Part, float], list[Adapter]] = {}
    for adapter in network:
        sorted_out.setdefault((adapter.part, factors.get(adapter.block, 1.0)), []).append(adapter)
    return [
        {
            "params": network.flatten(own, whole=whole),
            "lr": rates[part] * factor,
            "name": part if factor == 1 else f"{part} ×{factor:g}",
        }
        for (part, factor), own in sorted(sorted_out.items(), key=lambda item: (item[0][0] != "unet", *item[0]))
    ]


def make_networks(job: JobConfig, model: LoadedModel) -> Networks:
    """The network of a job. Raises `ModelError` if the file to continue from does not fit the model."""
    modules, family = model.adaptable_modules(), model.family
    if not job.network.continue_from:
        planned = plan_adapters(job, modules, family)
        fresh = LoraNetwork.build(planned, torch.Generator().manual_seed(job.training.seed))
        return Networks(fresh, LoraNetwork([]), {})
    path = Path(job.network.continue_from).expanduser()
    whole = read_lora(path).tensors
    tensors = {name: tensor for name, tensor in whole.items() if not name.startswith(BUNDLED)}
    try:
        trained = LoraNetwork.from_tensors([one for one in modules if learns_in(job, one, family)], tensors)
        held = LoraNetwork.from_tensors([one for one in modules if not learns_in(job, one, family)], tensors)
    except ValueError as error:
        raise ModelError(f"{path} does not fit this checkpoint ({error}): choose a file made for it.") from error
    strange = unmatched_keys(modules, tensors)
    if strange or not len(trained) + len(held):
        what = strange[0] if strange else "any module"
        raise ModelError(f"{path} and this checkpoint do not share {what}: choose a file made for {family.word}.")
    if not len(trained):
        raise ModelError(f"{path} has no layer that is to learn: {WHAT_LEARNS}.")
    for adapter in trained:
        adapter.dropouts = dropouts_of(job)
    held.requires_grad_(False)
    learning = {adapter.key for adapter in trained}
    kept = {name: tensor.clone() for name, tensor in whole.items() if name.partition(".")[0] not in learning}
    return Networks(trained, held, kept)


def learns_in(job: JobConfig, target: AdaptableModule, family: Family) -> bool:
    """Whether a job trains what stands beside this layer: rates of parts and blocks, and the preset, decide."""
    factor = parse_blocks(job.blocks.rates, "blocks.rates", family.unet).get(target.block, 1.0)
    rate = family.rates(job.optimizer.unet_lr, job.optimizer.text_encoder_lr)[target.part]
    return bool(rate and factor and learns(job.blocks.preset, target.block, family.unet))


def plan_adapters(job: JobConfig, modules: Sequence[AdaptableModule], family: Family) -> Planned:
    """Which modules get an adapter, and of what kind and rank."""
    network = job.network
    ranks = parse_blocks(job.blocks.ranks, "blocks.ranks", family.unet)
    convolutions = network.kind in WITH_CONVOLUTIONS and network.conv_rank > 0
    planned: Planned = []
    for target in modules:
        if not learns_in(job, target, family) or (target.group == "convolution" and not convolutions):
            continue
        spatial = isinstance(target.module, nn.Conv2d) and target.module.kernel_size != (1, 1)
        rank, alpha = (network.conv_rank, network.conv_alpha) if spatial else (network.rank, network.alpha)
        own = ranks.get(target.block)
        if own is not None:  # a block's own rank keeps the scale that the job has asked for
            rank, alpha = int(own), alpha * own / rank
        if rank:
            planned.append((target, _spec(job, rank, alpha or rank)))
    if not planned:
        raise ModelError(f"No layer is left to learn: {WHAT_LEARNS}.")
    return planned


def dropouts_of(job: JobConfig) -> Dropouts:
    return Dropouts(job.network.dropout, job.network.rank_dropout, job.network.module_dropout)


def _spec(job: JobConfig, rank: int, alpha: float) -> AdapterSpec:
    network = job.network
    return AdapterSpec(
        kind=ADAPTER_KINDS.get(network.kind, "lora"),
        rank=rank,
        alpha=alpha,
        factor=network.factor or -1,
        both=network.decompose_both,
        dora=network.dora,
        rank_stabilised=network.rank_stabilised,
        dropouts=dropouts_of(job),
    )
