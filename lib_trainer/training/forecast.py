"""What a job will need at its peak, of the device's memory and of the computer's, reckoned from tables.

    weights        as they are held in each phase of a run (`host/weights.py`)
    what learns    fp32; its gradients; the optimizer's state; a running average
    activations    what a step keeps for its backward pass and makes on the way, from the family's table

A table holds a model's layers and, for each kind of step, numbers that were measured on tensors without contents
(`bench/memory.py` makes it; docs/memory.md sets forecasts beside measured peaks). Nothing is loaded for a forecast.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from lib_trainer.config import JobConfig
from lib_trainer.config.base import ADAPTERS
from lib_trainer.families.family import Family
from lib_trainer.families.known import DEFAULT, FAMILIES
from lib_trainer.networks.adapters import AdapterSpec
from lib_trainer.networks.hypernetwork import Hypernetwork
from lib_trainer.networks.lora import make_adapter
from lib_trainer.ports import AdaptableModule, Group, Part
from lib_trainer.training.recipes.adapters import dropouts_of, plan_adapters
from lib_trainer.training.recipes.hypernetwork import parse_sizes, parse_structure
from lib_trainer.training.words import TEMPLATE_KINDS, WORD_KINDS, word_names

FLAT = ("lora", "locon", "pivotal", "difference")  # their adapters lie in one buffer
TABLES = Path(__file__).with_name("memory_tables")
FULL = 4
"""Bytes of a fp32 number."""
STATES = {"AdamW": 8.0, "AdamW8bit": 2.06}
"""Bytes of an optimizer's state for each number: two moments; in 8 bits with a fp32 scale for every 256 numbers."""


class Layer(msgspec.Struct, frozen=True):
    """Layers that are alike: `kernel` 0 is a Linear; `share` is how many vectors one gives for each latent cell."""

    part: Part
    group: Group
    block: str
    inner: int
    out: int
    kernel: int
    stride: int
    share: float
    count: int = 1


class Weights(msgspec.Struct, frozen=True):
    """Numbers of a part: in Linear and convolution layers, and in all others."""

    products: int
    others: int

    @property
    def all(self) -> int:
        return self.products + self.others


class Work(msgspec.Struct, frozen=True):
    """Bytes that a step takes at its peak: `fixed`; for each byte that learns; for each cell of the batch's latents; of
    a text encoder that learns for each chunk of a caption; of a hypernetwork for each cell and width; and `least`
    for each byte that learns, where gradients alone decide."""

    fixed: float = 0.0
    learned: float = 0.0
    cell: float = 0.0
    text: float = 0.0
    wide: float = 0.0
    least: float = 0.0


class Table(msgspec.Struct, frozen=True):
    """A family's model as far as memory is concerned. `steps` is by `work_key`, `quiet` by what is done: encode, decode
    (by cells, of one picture) and sample (of two, for guidance), all in fp32."""

    layers: list[Layer]
    weights: dict[str, Weights]
    attention_sizes: list[int]
    text_width: int
    steps: dict[str, Work]
    quiet: dict[str, Work]
    of: str = DEFAULT.memory

    @property
    def family(self) -> Family:
        return next(family for family in FAMILIES if family.memory == self.of)


@functools.cache
def tables() -> Mapping[str, Table]:
    """By the name of their file."""
    return {path.stem: read_table(path) for path in sorted(TABLES.glob("*.json"))}


def read_table(path: Path) -> Table:
    return msgspec.json.decode(path.read_bytes(), type=Table)


def table_for(counts: Mapping[str, int]) -> Table | None:
    """The table of the model that has so many numbers in each part; None for one that is not known."""
    for table in tables().values():
        sizes = {part: weights.all for part, weights in table.weights.items()}
        if "unet" in counts and all(abs(count - sizes.get(part, 0)) < 0.01 * count for part, count in counts.items()):
            return table
    return None


@dataclass(frozen=True)
class Place:
    """Where a job will run. `dtype` is what it trains in, `held` what the host holds each part in.

    `pictures` is how many are kept encoded in memory; `chunks` how many pieces of 75 tokens the longest captions have.
    """

    device: torch.device
    dtype: torch.dtype
    held: Mapping[str, torch.dtype]
    pictures: int = 0
    chunks: int = 1

    @property
    def apart(self) -> bool:
        """Whether the device has a memory of its own."""
        return self.device.type not in ("cpu", "mps")


@dataclass(frozen=True)
class Need:
    """Bytes by what they are for, at the phase of a run that needs most."""

    phase: str
    items: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.items.values())


@dataclass(frozen=True)
class Forecast:
    """Peaks. `phases` are of the device; where it has no memory of its own (`apart`), `ram` is no further need."""

    phases: tuple[Need, ...]
    ram: Need
    apart: bool

    @property
    def device(self) -> Need:
        return max(self.phases, key=lambda need: need.total)

    @property
    def needed(self) -> int:
        """Bytes without which the run cannot be: pictures can be encoded in bands where they find less room."""
        return max(need.total for need in self.phases if need.phase != "encoding")


def forecast(job: JobConfig, table: Table, place: Place) -> Forecast:
    """The peaks of a run. Raises `ConfigError` or `ModelError` where the job's blocks or structure are not sound."""
    phases = tuple(_device_phases(job, table, place))
    return Forecast(phases, Need("all of it", _waiting(job, table, place)), place.apart)


def learned_numbers(job: JobConfig, table: Table) -> dict[str, int]:
    """How many numbers learn, by part; a difference's first network counts as well."""
    kind = job.network.kind
    found: dict[str, int] = {}
    if kind in ADAPTERS:
        for target, spec, count in _planned(job, table):
            found[target.part] = found.get(target.part, 0) + count * _numbers_of(target.module, spec)
        if kind == "difference":
            found = {part: 2 * numbers for part, numbers in found.items()}
    elif kind == "checkpoint":
        rates = table.family.rates(job.finetune.unet_lr, job.finetune.text_encoder_lr)
        found = {part: table.weights[part].all for part, rate in rates.items() if rate > 0}
    elif kind == "hypernetwork":
        sizes = parse_sizes(job.hypernetwork.sizes) or table.attention_sizes
        with torch.device("meta"):
            network = Hypernetwork(parse_structure(job), sizes)
        found = {"unet": sum(parameter.numel() for parameter in network.parameters())}
    if kind in WORD_KINDS:
        found["words"] = len(word_names(job)) * job.embedding.vectors * table.text_width
    return found


def trains_text_encoder(job: JobConfig) -> bool:
    if job.network.kind in WORD_KINDS:
        return True
    if job.network.kind == "checkpoint":
        return job.finetune.text_encoder_lr > 0
    return job.network.kind in ADAPTERS and job.optimizer.text_encoder_lr > 0


def work_key(job: JobConfig, dtype: torch.dtype) -> str:
    """Under which a table has the step of a job."""
    kind = {"pivotal": "lora", "difference": "lora"}.get(job.network.kind, job.network.kind)
    dora = "+dora" if kind in ADAPTERS and job.network.dora else ""
    memory = "recomputed" if job.training.gradient_checkpointing else "kept"
    return f"{kind}{dora} {'full' if dtype is torch.float32 else 'half'} {memory}"


def activations(job: JobConfig, table: Table, dtype: torch.dtype, chunks: int = 1) -> int:
    """Bytes at the peak of a step beside weights, what learns and the optimizer's state; new gradients included."""
    training, data = job.training, job.dataset
    cells = training.batch_size * _cells(data.width, data.height, table)
    work = _work(job, table, dtype)
    learned = FULL * sum(learned_numbers(job, table).values())
    total = work.fixed + work.learned * learned + work.cell * cells
    if trains_text_encoder(job):
        total += work.text * training.batch_size * chunks
    if job.network.kind == "hypernetwork":
        total += work.wide * cells * (sum(parse_structure(job).layers[1:-1]) - 2)
    if job.network.kind in FLAT and not training.gradient_checkpointing:
        total += dtype.itemsize * cells * (_hidden(job, table) - _hidden(_usual(job), table))
    if job.network.kind in FLAT and not job.network.dora and not dropouts_of(job):
        total = max(total, 2 * learned)  # gradients of all adapters, in the run's precision, are joined and widened
    return int(max(total, work.least * learned))


def _cells(width: int, height: int, table: Table) -> int:
    """Of a latent."""
    return (width // table.family.cell) * (height // table.family.cell)


def _work(job: JobConfig, table: Table, dtype: torch.dtype) -> Work:
    key = work_key(job, dtype)
    if key in table.steps:
        return table.steps[key]
    plain = key.replace("+dora", "")  # what DoRA adds is measured for LoRA's layers
    kind, _, rest = plain.partition(" ")
    one, other, own = (table.steps[name] for name in (f"locon+dora {rest}", f"locon {rest}", f"{kind} {rest}"))
    return msgspec.structs.replace(own, cell=own.cell + one.cell - other.cell, text=own.text + one.text - other.text)


def _usual(job: JobConfig) -> JobConfig:
    """The job at the ranks that the table was measured at."""
    defaults = msgspec.structs.replace(job.network, rank=32, conv_rank=8)
    usual = msgspec.structs.replace(job.blocks, ranks="", rates="", preset="all")
    kind = "locon" if job.network.kind == "locon" else "lora"
    return msgspec.structs.replace(job, network=msgspec.structs.replace(defaults, kind=kind), blocks=usual)


def _hidden(job: JobConfig, table: Table) -> float:
    """Numbers between the two thin products, for each cell of a latent."""
    own = sum(spec.rank * count * share for _, spec, count, share in _planned_shares(job, table))
    return own * (2 if job.network.kind == "difference" else 1)


def _planned(job: JobConfig, table: Table) -> list[tuple[AdaptableModule, AdapterSpec, int]]:
    return [(target, spec, count) for target, spec, count, _ in _planned_shares(job, table)]


def _planned_shares(job: JobConfig, table: Table) -> list[tuple[AdaptableModule, AdapterSpec, int, float]]:
    modules, layers = _modules(tuple(table.layers))
    return [
        (one, spec, layers[one.key].count, layers[one.key].share)
        for one, spec in plan_adapters(job, modules, table.family)
    ]


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
    return _count(tuple(layer.weight.shape), layer.stride if isinstance(layer, nn.Conv2d) else None, spec)


@functools.lru_cache(maxsize=4096)
def _count(shape: tuple[int, ...], stride: Any, spec: AdapterSpec) -> int:
    with torch.device("meta"):
        layer: nn.Module
        if len(shape) == 4:
            layer = nn.Conv2d(shape[1], shape[0], shape[2], stride)
        else:
            layer = nn.Linear(shape[1], shape[0])
        adapter = make_adapter(AdaptableModule("layer", layer, "unet", "transformer", "middle"), spec)
    return sum(parameter.numel() for parameter in adapter.parameters())


def _device_phases(job: JobConfig, table: Table, place: Place) -> list[Need]:
    numbers = learned_numbers(job, table)
    learned = FULL * sum(numbers.values())
    states = int(STATES[job.optimizer.name] * learned / FULL)
    average = learned if job.network.kind == "checkpoint" and job.finetune.ema else 0
    kept = {"what learns": learned, "optimizer": states, "EMA": average}
    peak = activations(job, table, place.dtype, place.chunks)
    fresh = learned // 2 if job.network.kind == "difference" else learned
    before = fresh if job.training.gradient_accumulation > 1 else 0
    step = {"activations": max(peak, fresh), "gradients": before}
    phases = [
        Need(
            "encoding", _weights(job, table, place, "encoding") | kept | {"optimizer": 0} | _encoding(job, table, place)
        ),
        Need("training", _weights(job, table, place, "training") | kept | step),
    ]
    if job.preview.prompt and job.preview.every:
        drawing = {"gradients": fresh, "preview": _preview(job, table, place)}
        phases.append(Need("preview", _weights(job, table, place, "preview") | kept | drawing))
    shared = (
        {} if place.apart else {"pictures": _pictures(job, table, place), "set aside": _set_aside(job, table, place)}
    )
    return [Need(need.phase, dict(need.items) | shared) for need in phases]


def _weights(job: JobConfig, table: Table, place: Place, phase: str) -> dict[str, int]:
    """The model's own weights on the device. A memory that is all there is holds originals and converted copies."""
    total, replaced = 0, _replaced(job, table)
    texts = {encoder.part for encoder in table.family.encoders}
    for part, weights in table.weights.items():
        host = weights.all * place.held[part].itemsize
        products, others = _in_run(job, weights, place, part)
        converts = part in texts or (part == "unet" and phase == "training")
        if part in replaced or phase == "preview":
            converts = False
        if not place.apart:
            total += host + (products + others if converts else 0)
        elif phase != "training":
            total += _as_held(job, weights, place, part) if converts else host
        elif part == "unet" or (part in texts and (trains_text_encoder(job) or varies(job))):
            total += 0 if part in replaced else _as_held(job, weights, place, part)
    return {"weights": total}


def _replaced(job: JobConfig, table: Table) -> set[str]:
    if job.network.kind != "checkpoint":
        return set()
    rates = table.family.rates(job.finetune.unet_lr, job.finetune.text_encoder_lr)
    return {part for part, rate in rates.items() if rate > 0}


def _width(job: JobConfig, place: Place, part: str) -> int:
    """Bytes of a number of the frozen products in a run."""
    return 1 if part == "unet" and job.training.weights == "fp8" else place.dtype.itemsize


def _as_held(job: JobConfig, weights: Weights, place: Place, part: str) -> int:
    """Bytes of a part in a run: products in its precision, norms and embeddings in at least fp32."""
    return weights.products * _width(job, place, part) + weights.others * max(FULL, place.held[part].itemsize)


def _in_run(job: JobConfig, weights: Weights, place: Place, part: str) -> tuple[int, int]:
    """Bytes of what is converted for a run: of products, and of all other numbers."""
    host = place.held[part]
    width = _width(job, place, part)
    products = 0 if host is place.dtype and host.itemsize == width else weights.products * width
    return products, weights.others * FULL if host.itemsize < FULL else 0


def _set_aside(job: JobConfig, table: Table, place: Place) -> int:
    """For a whole checkpoint: what is not trained, as it will be written."""
    if job.network.kind != "checkpoint":
        return 0
    rest = table.weights.keys() - _replaced(job, table)
    return sum(table.weights[part].all * place.held[part].itemsize for part in rest)


def _pictures(job: JobConfig, table: Table, place: Place) -> int:
    """Means and logarithmic variances, fp32."""
    cells = _cells(job.dataset.width, job.dataset.height, table)
    return place.pictures * cells * 8 * FULL if job.dataset.cache == "memory" else 0


def _encoding(job: JobConfig, table: Table, place: Place) -> dict[str, int]:
    cells = _cells(job.dataset.width, job.dataset.height, table)
    return {"encoding": _quiet(table, "encode", cells, place.held["vae"])}


def _preview(job: JobConfig, table: Table, place: Place) -> int:
    width, height = job.preview.width or job.dataset.width, job.preview.height or job.dataset.height
    cells = math.ceil(width / table.family.cell) * math.ceil(height / table.family.cell)
    drawn = _quiet(table, "sample", cells, place.held["unet"])
    return max(drawn, _quiet(table, "decode", cells, place.held["vae"]))


def _quiet(table: Table, what: str, cells: int, dtype: torch.dtype) -> int:
    work = table.quiet[what]
    return int((work.fixed + work.cell * cells) * dtype.itemsize / FULL)


def _waiting(job: JobConfig, table: Table, place: Place) -> dict[str, int]:
    """What a run keeps in the computer's memory while the device holds something else, and what it writes."""
    originals = sum(weights.all * place.held[part].itemsize for part, weights in table.weights.items())
    numbers = FULL * sum(learned_numbers(job, table).values())
    file = 0 if job.network.kind == "checkpoint" else numbers
    return {
        "weights": originals + _set_aside(job, table, place),
        "pictures": _pictures(job, table, place),
        "file": file,
    }


def varies(job: JobConfig) -> bool:
    """Whether captions are drawn anew in each step, so that the text encoder is needed throughout."""
    return bool(job.dataset.template) and job.network.kind in TEMPLATE_KINDS
