"""Networks of adapters: LoRA, LoCon, LoHa, LoKr."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lib_trainer.config import JobConfig
from lib_trainer.families.detect import lora_of
from lib_trainer.families.family import Family, Part
from lib_trainer.families.names import is_resnet
from lib_trainer.kinds.adapter_memory import AdapterMemory, Costs
from lib_trainer.kinds.adapter_options import Planned, adapter_rates, dropouts_of, largest_norm, learns_in, lora_plus
from lib_trainer.kinds.base import CONTINUE, Kind
from lib_trainer.kinds.outputs import Outputs
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.networks.adapters import Adapter, AdapterSpec, LoraAdapter
from lib_trainer.networks.blocks import parse_blocks
from lib_trainer.networks.formats.lora_file import BUNDLED, LoraFile, read_lora, write_lora
from lib_trainer.networks.lora import LoraNetwork, unmatched_keys
from lib_trainer.ports import AdaptableModule, Host, LoadedModel
from lib_trainer.refusals import ConfigError, Field, ModelError, Problems, Sentence
from lib_trainer.training.optimizers import known
from lib_trainer.training.precision import DTYPES

Algorithm = Literal["lora", "loha", "lokr"]
WHAT_LEARNS = Sentence(
    "network.what_learns", preset=Field("blocks.preset"), rates=Field("blocks.rates"), ranks=Field("blocks.ranks")
)


class AdapterKind(Kind):
    """Adapters beside the model's own layers, in a file for `<lora:name:1>`.

    `algorithm` is the maths of each adapter. `called` is what LyCORIS calls the whole, where a file says it. `goes_on`
    names what a file to continue from may be (see `kind_of_file`).
    """

    architecture, implementation = "/lora", "diffusers"
    memory_type: type[AdapterMemory] = AdapterMemory

    def __init__(
        self,
        name: str,
        algorithm: Algorithm = "lora",
        *,
        called: str = "lora",
        goes_on: Sequence[str] = (),
        module: str = "lycoris.kohya",
        costs: Costs | None = None,
    ) -> None:
        """`module` is sd-scripts' name for it without DoRA. `costs`: where tables of memory call it by its name."""
        self.name, self.algorithm, self._called, self._goes_on = name, algorithm, called, tuple(goes_on) or (name,)
        self._module, self.memory = module, self.memory_type(self.plan, costs or Costs(name))

    def check(self, job: JobConfig, host: Host, problems: Problems) -> None:
        """Rates, blocks, and the file to continue from."""
        family = host.family()
        with problems.at():
            if not any(adapter_rates(job, family).values()):
                raise ConfigError(
                    "rates.none", field="optimizer.unet_lr", text_encoder_lr=Field("optimizer.text_encoder_lr")
                )
        with problems.at():
            if job.network.factor == 0:
                raise ConfigError("network.factor", field="network.factor")
        with problems.at():
            parse_blocks(job.blocks.rates, "blocks.rates", family.unet)
        with problems.at():
            for block, rank in parse_blocks(job.blocks.ranks, "blocks.ranks", family.unet).items():
                if not rank.is_integer():
                    raise ConfigError("blocks.rank", field="blocks.ranks", block=block, rank=rank)
        if job.network.continue_from:
            with problems.at():
                if job.blocks.ranks.strip():
                    raise ConfigError(
                        "blocks.ranks_and_file",
                        field="blocks.ranks",
                        ranks=job.blocks.ranks,
                        continue_from=Field(CONTINUE),
                    )
            with problems.at(CONTINUE):
                self._check_file(job, read_lora(Path(job.network.continue_from).expanduser()), family)

    def _check_file(self, job: JobConfig, file: LoraFile, family: Family) -> None:
        """Raise `ConfigError` for a file of another family or another kind."""
        path, other = job.network.continue_from, lora_of(file.tensors, file.metadata, text_width(file.tensors))
        if other is not None and other is not family:
            raise ConfigError("continue.family", field=CONTINUE, path=path, other=other.word, family=family.word)
        found = kind_of_file(file)
        if found not in self._goes_on:
            raise ConfigError(
                "continue.kind", field=CONTINUE, path=path, found=found, kind=Field("network.kind"), wanted=self.name
            )
        dora = any(name.endswith(".dora_scale") for name in file.tensors)
        if dora != job.network.dora:
            raise ConfigError(
                "continue.dora" if dora else "continue.no_dora", field=CONTINUE, path=path, dora=Field("network.dora")
            )

    def why_no_fp8(self, job: JobConfig) -> Sentence | None:
        return Sentence("weights.dora", dora=Field("network.dora")) if job.network.dora else None

    def recipe(self, job: JobConfig, model: LoadedModel, outputs: Outputs) -> Recipe:
        return AdapterRecipe(self, job, model)

    def module_name(self, job: JobConfig) -> str:
        """sd-scripts has DoRA by LyCORIS."""
        return "lycoris.kohya" if job.network.dora else self._module

    def plan(self, job: JobConfig, modules: Sequence[AdaptableModule], family: Family) -> Planned:
        """Which modules get an adapter, and of what kind and rank. Raises `ModelError` where none is left."""
        network = job.network
        ranks = parse_blocks(job.blocks.ranks, "blocks.ranks", family.unet)
        convolutions = self.has_convolutions and network.conv_rank > 0
        planned: Planned = []
        for target in modules:
            if not learns_in(job, target, family) or (target.group == "convolution" and not convolutions):
                continue
            spatial = isinstance(target.module, nn.Conv2d) and target.module.kernel_size != (1, 1)
            rank, alpha = (network.conv_rank, network.conv_alpha) if spatial else (network.rank, network.alpha)
            own = ranks.get(target.block)
            if own is not None:  # a block's own rank keeps the scale that the job has asked for
                share = own / rank
                rank, alpha = int(own), alpha * (math.sqrt(share) if network.rank_stabilised else share)
            if rank:
                planned.append((target, self._spec(job, rank, alpha or rank)))
        if not planned:
            raise ModelError("network.nothing_learns", options=WHAT_LEARNS)
        return planned

    def _spec(self, job: JobConfig, rank: int, alpha: float) -> AdapterSpec:
        network = job.network
        return AdapterSpec(
            kind=self.algorithm,
            rank=rank,
            alpha=alpha,
            factor=network.factor or -1,
            both=network.decompose_both,
            dora=network.dora,
            rank_stabilised=network.rank_stabilised,
            dropouts=dropouts_of(job),
        )

    def metadata(self, job: JobConfig, recipe: Recipe) -> dict[str, str]:
        told = {"ss_network_module": recipe.network_module, "ss_network_args": json.dumps(self._arguments(job))}
        return told | ({"ss_scale_weight_norms": str(largest_norm(job))} if largest_norm(job) else {})

    def _arguments(self, job: JobConfig) -> dict[str, str]:
        """What LyCORIS calls the options that the tensors do not tell.

        Of rs-LoRA they tell all: alpha is stored so that alpha / rank is the scale, and naming it would scale twice.
        """
        network, blocks = job.network, job.blocks
        values: dict[str, object] = {"algo": self._called}
        if "network.factor" in self.options and not network.continue_from:
            values |= {"factor": network.factor, "decompose_both": network.decompose_both}
        if network.dora:
            values["dora_wd"] = True
        for name in ("dropout", "rank_dropout", "module_dropout"):
            if getattr(network, name):
                values[name] = getattr(network, name)
        if blocks.preset != "all" or blocks.rates.strip():
            values |= {"blocks_preset": blocks.preset, "blocks_rates": blocks.rates}
        if lora_plus(job) != 1:
            values["loraplus_lr_ratio"] = lora_plus(job)
        if self.has_words:
            values["embedding_lr"] = job.embedding.learning_rate
        if network.continue_from:
            values["continued_from"] = Path(network.continue_from).name
        return {name: str(value) for name, value in values.items()}

    def rates_told(self, job: JobConfig, recipe: Recipe, family: Family) -> dict[str, object]:
        return rates_by_part(adapter_rates(job, family), recipe)


READERS = ("_attn2_to_k.lora_down.weight", "_attn2_to_k.hada_w1_b")
"""Tensors of a file whose second dimension is the width of the text."""


def text_width(tensors: Mapping[str, torch.Tensor]) -> int:
    """How wide the text is that a file's cross-attentions read; 0 where none tells."""
    return next((tensor.shape[1] for name, tensor in tensors.items() if name.endswith(READERS)), 0)


def kind_of_file(file: LoraFile) -> str:
    """lora, locon, loha or lokr, by the names and shapes of a file's tensors."""
    if any(".hada_" in name for name in file.tensors):
        return "loha"
    if any(".lokr_" in name for name in file.tensors):
        return "lokr"
    return "locon" if any(is_resnet(name) for name in file.tensors) else "lora"


def rates_by_part(rates: Mapping[Part, float], recipe: Recipe) -> dict[str, object]:
    """Of a kind that trains the UNet and the text encoders, each at a rate of its own: a number for all of these, or
    where they differ one for each."""
    trained = recipe.modules()
    told = {part: rate if trained.get(part) else None for part, rate in rates.items()}
    texts = [told[part] for part in told if part != "unet"]
    of_texts = texts[0] if len(set(texts)) == 1 else [rate or 0.0 for rate in texts]
    first = next((rate for rate in told.values() if rate), None)
    return {"ss_learning_rate": first, "ss_unet_lr": told["unet"], "ss_text_encoder_lr": of_texts}


class AdapterRecipe(Recipe):
    """Fresh adapters for a job, or those of a file. Parts and blocks whose learning rate is 0 get none."""

    def __init__(self, kind: AdapterKind, job: JobConfig, model: LoadedModel) -> None:
        self._job, self._dtype = job, DTYPES[job.output.precision]
        self.networks = make_networks(kind, job, model)
        self.network = self.networks.trained
        self.trains_text_encoder = any(adapter.part != "unet" for adapter in self.network)
        self.network_module = kind.module_name(job)
        self.draws = bool(dropouts_of(job))
        self._seeds = DropoutSeeds(job, drops=self.draws)
        self._groups = rate_groups(job, self.network, model.family)

    def groups(self) -> list[dict[str, Any]]:
        return self._groups

    def modules(self) -> dict[str, int]:
        return {str(part): count for part, count in self.network.parts().items()}

    def applied(self) -> AbstractContextManager[None]:
        return self.networks.applied()

    def bare(self) -> AbstractContextManager[None]:
        return self.network.off()

    def before_step(self, step: int, *, base: bool) -> None:
        self._seeds.set(step)

    def bound(self) -> None:
        self.network.bound(largest_norm(self._job))

    def save(self, files: Sequence[Path], facts: dict[str, str], *, overwrite: bool) -> None:
        write_lora(files[0], self.networks.tensors(self._dtype), facts, overwrite=overwrite)


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

    def __init__(self, job: JobConfig, *, drops: bool) -> None:
        self._seed, self._drops = job.training.seed, drops

    def set(self, step: int) -> None:
        if self._drops:
            torch.manual_seed((self._seed << 24) + step)


def rate_groups(job: JobConfig, network: LoraNetwork, family: Family) -> list[dict[str, Any]]:
    """A group for each part, and for each factor that its blocks have. Called once: the network is made flat."""
    factors = parse_blocks(job.blocks.rates, "blocks.rates", family.unet)
    rates = adapter_rates(job, family)
    ratio = lora_plus(job)
    share = job.optimizer.text_encoder_share if job.optimizer.text_encoder_lr else 1.0
    whole = known(job.optimizer).whole and ratio == 1
    sorted_out: dict[tuple[Part, float], list[Adapter]] = {}
    for adapter in network:
        sorted_out.setdefault((adapter.part, factors.get(adapter.block, 1.0)), []).append(adapter)
    groups: list[dict[str, Any]] = []
    for (part, factor), own in sorted(sorted_out.items(), key=lambda item: (item[0][0] != "unet", *item[0])):
        learned = network.flatten(own, whole=whole)
        shared = {"until": 1.0 if part == "unet" else share}
        named = part if factor == 1 else f"{part} ×{factor:g}"
        second = {id(adapter.up) for adapter in own if isinstance(adapter, LoraAdapter)} if ratio != 1 else set()
        first = [parameter for parameter in learned if id(parameter) not in second]
        groups.append({"params": first, "lr": rates[part] * factor, "name": named, **shared})
        if second:
            faster = [parameter for parameter in learned if id(parameter) in second]
            groups.append({"params": faster, "lr": rates[part] * factor * ratio, "name": f"{named} B", **shared})
    return groups


def make_networks(kind: AdapterKind, job: JobConfig, model: LoadedModel) -> Networks:
    """The network of a job, on the device that it is trained on. Raises `ModelError` if the file to continue from does
    not fit the model."""
    modules, family = model.adaptable_modules(), model.family
    if not job.network.continue_from:
        planned = kind.plan(job, modules, family)
        fresh = LoraNetwork.build(planned, torch.Generator().manual_seed(job.training.seed))
        return Networks(fresh.to(model.device), LoraNetwork([]), {})
    path = Path(job.network.continue_from).expanduser()
    whole = read_lora(path).tensors
    tensors = {name: tensor for name, tensor in whole.items() if not name.startswith(BUNDLED)}
    try:
        trained = LoraNetwork.from_tensors([one for one in modules if learns_in(job, one, family)], tensors)
        held = LoraNetwork.from_tensors([one for one in modules if not learns_in(job, one, family)], tensors)
    except ValueError as error:
        raise ModelError("continue.misfit", path=path, reason=error) from error
    strange = unmatched_keys(modules, tensors)
    if strange or not len(trained) + len(held):
        what = strange[0] if strange else Sentence("continue.any_module")
        raise ModelError("continue.nothing_shared", path=path, what=what, family=family.word)
    if not len(trained):
        raise ModelError("continue.nothing_learns", path=path, options=WHAT_LEARNS)
    for adapter in trained:
        adapter.dropouts = dropouts_of(job)
    held.to(model.device).requires_grad_(False)
    learning = {adapter.key for adapter in trained}
    kept = {name: tensor.clone() for name, tensor in whole.items() if name.partition(".")[0] not in learning}
    return Networks(trained.to(model.device), held, kept)
