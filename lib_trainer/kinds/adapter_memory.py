"""How much of a model's table learns in adapters, and what a step keeps between their thin products."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import nn

from lib_trainer.config import JobConfig
from lib_trainer.config.fields import option_of
from lib_trainer.families.family import Family
from lib_trainer.kinds.adapter_options import Planned, adapter_rates, dropouts_of, lora_plus
from lib_trainer.kinds.block_memory import Blocks, added, given, largest_blocks, made, place_of
from lib_trainer.kinds.memory import Batch, Changes, KindMemory, kept_in
from lib_trainer.networks.adapters import AdapterSpec
from lib_trainer.networks.lora import make_adapter
from lib_trainer.ports import AdaptableModule
from lib_trainer.refusals import Field, Sentence
from lib_trainer.training.memory_table import Layer, Table, Work
from lib_trainer.training.optimizers import Shapes, known

Plan = Callable[[JobConfig, Sequence[AdaptableModule], Family], Planned]
"""Which of the modules of a model of a family get an adapter in a job, and of what kind and rank."""
RANK, TEXT_RATE, SECOND_RATE = "network.rank", "optimizer.text_encoder_lr", "optimizer.text_encoder_2_lr"


@dataclass(frozen=True)
class Costs:
    """`measured`: what tables of memory call the kind without DoRA. `rank_keeps`: a step keeps what is between the thin
    products. `rank_costs`: a smaller rank needs less memory. `networks`: how many there are, of which one learns at a
    time."""

    measured: str
    rank_keeps: bool = True
    rank_costs: bool = True
    networks: int = 1


class AdapterMemory(KindMemory):
    """Of networks of adapters. `plan` is their kind's."""

    def __init__(self, plan: Plan, costs: Costs) -> None:
        super().__init__(costs.measured)
        self._plan, self._costs = plan, costs
        self.learning_share = 1 / costs.networks

    def learned(self, job: JobConfig, table: Table) -> dict[str, int]:
        found: dict[str, int] = {}
        for target, spec, layer in self._planned(job, table):
            own = self._costs.networks * layer.count * _numbers_of(target.module, spec)
            found[target.part] = found.get(target.part, 0) + own
        return found

    def groups(self, job: JobConfig, table: Table) -> Sequence[Shapes]:
        """As `LoraNetwork.flatten` gives them: one buffer for a part, where the optimizer takes one."""
        if self._lies_flat(job) and known(job.optimizer).whole and lora_plus(job) == 1:
            return super().groups(job, table)
        found: dict[str, Shapes] = {}
        for one, spec, layer in self._planned(job, table):
            own = [(shape, self._costs.networks * layer.count) for shape in _shapes_of(one.module, spec)]
            found[one.part] = [*found.get(one.part, []), *own]
        return list(found.values())

    def _lies_flat(self, job: JobConfig) -> bool:
        """See `Adapter.can_be_flat`."""
        return not job.network.dora and not dropouts_of(job)

    def trains_text_encoder(self, job: JobConfig, family: Family) -> bool:
        return any(rate for part, rate in adapter_rates(job, family).items() if part != "unet")

    def measured_as(self, job: JobConfig) -> str:
        """Where no layer of the UNet learns, a step goes through it as an embedding's does."""
        if not job.optimizer.unet_lr:
            return "embedding"
        return super().measured_as(job) + ("+dora" if job.network.dora else "")

    def activations(self, job: JobConfig, table: Table, work: Work, dtype: torch.dtype, batch: Batch) -> float:
        """Ranks other than those that were measured keep more, or less, between the thin products. Layers that do not
        learn keep what they are given for none, and blocks keep nothing that no gradient goes back through. Dropouts
        act on what is between the products, or else on what a layer is given."""
        if not job.optimizer.unet_lr:
            return 0.0
        usual = msgspec.structs.replace(
            job,
            network=msgspec.structs.replace(job.network, rank=32, conv_rank=8),
            blocks=msgspec.structs.replace(job.blocks, ranks="", rates="", preset="all"),
        )
        recomputed = job.training.gradient_checkpointing
        blocks = largest_blocks(table) if recomputed else None
        inputs, asked = self._given(job, table, blocks), self._costs.networks * self._hidden(job, table, blocks)
        all_given, measured = self._given(usual, table, blocks), self._hidden(usual, table, blocks)
        kept = kept_in(dtype, recomputed=recomputed)
        frozen = table.steps[f"embedding {kept}"].cell
        own = work.cell - frozen - dtype.itemsize * measured
        less = own * (inputs / all_given - 1) + (0 if recomputed else frozen * (self._passed(job, table) - 1))
        if job.network.dropout and self._costs.rank_keeps:
            less += asked * batch.mask
        elif job.network.dropout:  # kept instead of what a layer is given
            whole = (table.steps[f"loha {kept}"].cell - frozen) / all_given
            less += inputs * (batch.mask + dtype.itemsize - whole)
        return batch.cells * (less + dtype.itemsize * (asked - measured))

    def keeping(self, job: JobConfig, table: Table) -> Collection[Layer]:
        return {layer for _, _, layer in self._planned(job, table)}

    def beside(self, job: JobConfig, table: Table, dtype: torch.dtype) -> float:
        """Copies, in the run's precision, of networks that do not learn and act."""
        others = (1 - self.learning_share) * sum(self.learned(job, table).values())
        return dtype.itemsize * others if self._lies_flat(job) else 0.0

    def least_share(self, job: JobConfig, work: Work, *, again: bool = False) -> float:
        """Gradients of all adapters that lie side by side are joined, and widened; of others each arrives by itself."""
        if self._lies_flat(job):
            return max(work.least, 2.0)
        return 0.0 if again else 1.0

    def to_lower(self, job: JobConfig, device: torch.device) -> list[Sentence]:
        found = [Sentence("lower.option", option=Field(RANK), now=job.network.rank)]
        rates = [path for path in (TEXT_RATE, SECOND_RATE) if option_of(job, path) > 0]
        return found + [Sentence("lower.to_zero", option=Field(path)) for path in rates]

    def mild_remedies(self, job: JobConfig) -> Iterator[Changes]:
        rates = {path: 0.0 for path in (TEXT_RATE, SECOND_RATE) if option_of(job, path) > 0}
        if rates and job.optimizer.unet_lr:
            yield [rates]

    def hard_remedies(self, job: JobConfig) -> Iterator[Changes]:
        rank = job.network.rank
        if self._costs.rank_costs and rank > 8:
            yield [{RANK: smaller} for smaller in (rank // 2, 8) if smaller >= 8]

    def _given(self, job: JobConfig, table: Table, blocks: Blocks) -> float:
        """Numbers that layers with an adapter are given, for each cell of a latent."""
        return added(((one, given(one)) for _, _, one in self._planned(job, table)), blocks)

    def _hidden(self, job: JobConfig, table: Table, blocks: Blocks) -> float:
        """Numbers between the two thin products, for each cell of a latent, where a step keeps them."""
        if not self._costs.rank_keeps:
            return 0.0
        return added(((one, spec.rank) for _, spec, one in self._planned(job, table)), blocks)

    def _passed(self, job: JobConfig, table: Table) -> float:
        """Of what the UNet's layers make, the share of the blocks that gradients go back through: all of it to reach a
        text encoder, else down to the first block that learns."""
        if self.trains_text_encoder(job, table.family):
            return 1.0
        first = min(place_of(one.block) for _, _, one in self._planned(job, table) if one.part == "unet")
        sizes = made(table)
        return sum(size for block, size in sizes.items() if place_of(block) >= first) / sum(sizes.values())

    def _planned(self, job: JobConfig, table: Table) -> list[tuple[AdaptableModule, AdapterSpec, Layer]]:
        modules, layers = _modules(tuple(table.layers))
        return [(one, spec, layers[one.key]) for one, spec in self._plan(job, modules, table.family)]


@functools.lru_cache(maxsize=8)
def _modules(layers: tuple[Layer, ...]) -> tuple[Sequence[AdaptableModule], Mapping[str, Layer]]:
    """The layers as an adapter's plan wants them, without contents."""
    keyed = {f"layer_{index}": layer for index, layer in enumerate(layers)}
    modules = []
    with torch.device("meta"):
        for key, layer in keyed.items():
            kernel, half = layer.kernel, layer.kernel // 2
            module: nn.Module = (
                nn.Conv2d(layer.inner, layer.out, kernel, layer.stride, half)
                if kernel
                else nn.Linear(layer.inner, layer.out)
            )
            modules.append(AdaptableModule(key, module, layer.part, layer.group, layer.block))
    return modules, keyed


def _numbers_of(layer: Any, spec: AdapterSpec) -> int:
    return sum(math.prod(shape) for shape in _shapes_of(layer, spec))


def _shapes_of(layer: Any, spec: AdapterSpec) -> tuple[tuple[int, ...], ...]:
    return _shapes(tuple(layer.weight.shape), layer.stride if isinstance(layer, nn.Conv2d) else None, spec)


@functools.lru_cache(maxsize=4096)
def _shapes(shape: tuple[int, ...], stride: Any, spec: AdapterSpec) -> tuple[tuple[int, ...], ...]:
    with torch.device("meta"):
        layer: nn.Module
        if len(shape) == 4:
            layer = nn.Conv2d(shape[1], shape[0], shape[2], stride)
        else:
            layer = nn.Linear(shape[1], shape[0])
        adapter = make_adapter(AdaptableModule("layer", layer, "unet", "transformer", "middle"), spec)
    return tuple(tuple(parameter.shape) for parameter in adapter.parameters())
