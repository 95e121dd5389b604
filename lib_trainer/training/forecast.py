"""What a job will need at its peak, of the device's memory and of the computer's, reckoned from tables.

    weights        as they are held in each phase of a run (`host/weights.py`)
    what learns    fp32; its gradients; the optimizer's state; a running average
    activations    what a step keeps for its backward pass and makes on the way, from the family's table

A table holds a model's layers and, for each kind of step, numbers that were measured on tensors without contents
(`bench/memory.py` makes it; docs/memory.md sets forecasts beside measured peaks). Nothing is loaded for a forecast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import torch

from lib_trainer.config import JobConfig
from lib_trainer.dataset import masks
from lib_trainer.dataset.buckets import Size
from lib_trainer.dataset.latent_store import MOMENT_CHANNELS
from lib_trainer.kinds.block_memory import frozen_inputs
from lib_trainer.kinds.captions import captions_vary
from lib_trainer.kinds.memory import Batch, kept_in
from lib_trainer.kinds.registry import kind_of
from lib_trainer.training.memory_table import FULL, Table, Weights, Work
from lib_trainer.training.optimizers import known, wants_average
from lib_trainer.training.preview_prompts import sizes as preview_sizes
from lib_trainer.training.sizes import holes_of, largest_size, resolutions_of, variations_of
from lib_trainer.transfer import moves

DRAWING = (("sample", "unet"), ("decode", "vae"))
"""What a picture is drawn by, in a table's words, and by which part."""


@dataclass(frozen=True)
class Fullest:
    """Pictures of one size, in pixels, that pass through the model together. `later`: gradients of others are there
    when they do."""

    size: Size
    pictures: int
    later: bool = False

    @property
    def pixels(self) -> int:
        return self.pictures * self.size[0] * self.size[1]


@dataclass(frozen=True)
class Place:
    """Where a job will run. `dtype` is what it trains in, `held` what the host holds each part in.

    `pictures` is how many are kept encoded in memory, `largest` the size that most pixels of one are trained at, None
    where nobody has looked at them; `chunks` how many pieces of 75 tokens the longest captions have; `fullest`
    what one pass of a step shows at most, None where that is a whole batch of the largest;
    `inpaints` whether the model does, so that pictures are kept with holes. `rests`: the host keeps its model off the
    device and brings one part at a time to draw (--medvram). `unet_waits`: the UNet leaves it while pictures are
    encoded.
    """

    device: torch.device
    dtype: torch.dtype
    held: Mapping[str, torch.dtype]
    pictures: int = 0
    largest: Size | None = None
    chunks: int = 1
    fullest: Fullest | None = None
    inpaints: bool = False
    rests: bool = False
    unet_waits: bool = False

    @property
    def apart(self) -> bool:
        """Whether the device has a memory of its own."""
        return self.device.type not in ("cpu", "mps")

    @property
    def leaves(self) -> bool:
        """Whether weights leave that memory while nobody uses them."""
        return self.apart and moves(self.device)


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
        return max(need.total - need.items.get("encoding", 0) for need in self.phases)

    @property
    def encoding(self) -> int:
        """Bytes while pictures are encoded whole."""
        return next(need.total for need in self.phases if need.phase == "encoding")


def forecast(job: JobConfig, table: Table, place: Place) -> Forecast:
    """The peaks of a run, where it is `foreseen`.

    Raises `ConfigError` or `ModelError` where the job's blocks or structure are not sound.
    """
    phases = tuple(_device_phases(job, table, place))
    return Forecast(phases, Need("all of it", _waiting(job, table, place)), place.apart)


def learned_numbers(job: JobConfig, table: Table) -> dict[str, int]:
    """How many numbers learn, by part; a difference's first network counts as well."""
    return kind_of(job).memory.learned(job, table)


def work_key(job: JobConfig, dtype: torch.dtype) -> str:
    """Under which a table has the step of a job."""
    kept = kept_in(dtype, recomputed=job.training.gradient_checkpointing)
    return f"{kind_of(job).memory.measured_as(job)} {kept}"


def activations(job: JobConfig, table: Table, place: Place) -> int:
    """Bytes at the peak of a step beside weights, what learns and the optimizer's state; new gradients included."""
    memory, dtype = kind_of(job).memory, place.dtype
    size, pictures = place.largest or largest_size(job), job.training.batch_size
    if place.fullest is not None:
        size, pictures = place.fullest.size, min(pictures, place.fullest.pictures)
    mask = 1 if place.apart else dtype.itemsize  # a card's own kernels keep a bit, as a byte
    batch = Batch(pictures * _cells(*size, table), pictures * place.chunks, mask)
    work = _work(job, table, dtype)
    if work is None:
        raise ValueError(f"the table of {table.of} is not about {work_key(job, dtype)}")
    learned = memory.learning_share * FULL * sum(learned_numbers(job, table).values())
    total = work.fixed + work.learned * learned + work.cell * batch.cells
    if memory.trains_text_encoder(job, table.family):
        total += work.text * batch.chunks
    total += memory.activations(job, table, work, dtype, batch)
    if job.training.weights == "fp8":
        total -= dtype.itemsize * batch.cells * _not_kept(job, table)
    least = memory.least_share(job, work, again=_adds(job, place)) * learned
    return int(max(total, least) + memory.beside(job, table, dtype))


def _not_kept(job: JobConfig, table: Table) -> float:
    """Numbers for each cell that a step keeps with wide frozen weights alone, which the table was measured with."""
    memory = kind_of(job).memory
    told, recomputed = memory.trains_text_encoder(job, table.family), job.training.gradient_checkpointing
    return frozen_inputs(table, memory.keeping(job, table), told=told, recomputed=recomputed)


def _adds(job: JobConfig, place: Place) -> bool:
    """Whether a step's gradients are added to those of another term, or of a batch before."""
    later = place.fullest is not None and place.fullest.later
    return later or job.training.gradient_accumulation > 1 or job.preserve.weight > 0


def _cells(width: int, height: int, table: Table) -> int:
    """Of a latent."""
    return (width // table.family.cell) * (height // table.family.cell)


def foreseen(job: JobConfig, table: Table, dtype: torch.dtype) -> bool:
    """Whether the table is about steps of such a job."""
    return _work(job, table, dtype) is not None


def _work(job: JobConfig, table: Table, dtype: torch.dtype) -> Work | None:
    key = work_key(job, dtype)
    if key in table.steps:
        return table.steps[key]
    plain = key.replace("+dora", "")  # what DoRA adds is measured for LoRA's layers
    kind, _, rest = plain.partition(" ")
    names = (f"locon+dora {rest}", f"locon {rest}", f"{kind} {rest}")
    if plain == key or not all(name in table.steps for name in names):
        return None
    one, other, own = (table.steps[name] for name in names)
    return msgspec.structs.replace(own, cell=own.cell + one.cell - other.cell, text=own.text + one.text - other.text)


def _device_phases(job: JobConfig, table: Table, place: Place) -> list[Need]:
    learned = FULL * sum(learned_numbers(job, table).values())
    optimizer, memory = known(job.optimizer), kind_of(job).memory
    groups = memory.groups(job, table)
    states = int(memory.learning_share * sum(optimizer.state_bytes(shapes) for shapes in groups))
    average = learned if wants_average(job.optimizer) else 0
    kept = {"what learns": learned, "optimizer": states, "EMA": average}
    peak = activations(job, table, place)
    fresh = int(memory.learning_share * learned)
    passing = int(memory.learning_share * optimizer.passing_bytes(groups, place.device))
    before = fresh if _adds(job, place) else 0
    step = {"activations": max(peak, fresh + passing - before), "gradients": before}
    phases = [
        Need(
            "encoding", _weights(job, table, place, "encoding") | kept | {"optimizer": 0} | _encoding(job, table, place)
        ),
        Need("training", _weights(job, table, place, "training") | kept | step),
    ]
    if place.apart and not place.rests:  # as a run finds the card
        phases.append(Need("setup", {"weights": _originals(table, place), "what learns": learned}))
    copied = {"EMA": average + (0 if place.apart else _copied(job, table))}
    if job.preview.prompt and job.preview.every:
        drawing = {"gradients": fresh, "preview": _preview(job, table, place)}
        phases.append(Need("preview", _weights(job, table, place, "preview") | kept | copied | drawing))
    if job.validation.pictures != "none":
        measuring = {"gradients": fresh, "activations": _measuring(job, table, place)}
        phases.append(Need("measuring", _weights(job, table, place, "training") | kept | copied | measuring))
    shared = (
        {} if place.apart else {"pictures": _pictures(job, table, place), "set aside": _set_aside(job, table, place)}
    )
    return [Need(need.phase, dict(need.items) | shared) for need in phases]


def _weights(job: JobConfig, table: Table, place: Place, phase: str) -> dict[str, int]:
    """The model's own weights on the device. A memory that none of them leaves holds originals and converted copies."""
    kind = kind_of(job)
    total, replaced = 0, kind.memory.replaces(job, table.family)
    texts = {encoder.part for encoder in table.family.encoders}
    told = kind.memory.trains_text_encoder(job, table.family) or captions_vary(kind, job)
    for part, weights in table.weights.items():
        host = weights.all * place.held[part].itemsize
        products, others = _in_run(job, weights, place, part)
        converts = (part in texts and (told or phase == "encoding")) or (part == "unet" and phase == "training")
        if part in replaced or phase == "preview":
            converts = False
        if not place.leaves:
            total += host + (products + others if converts else 0)
        elif phase == "preview" and place.rests:  # one part at a time, of which the UNet is the largest
            total = max(total, host)
        elif phase == "encoding" and part == "unet" and (place.rests or place.unet_waits):
            total += host if part in replaced and not place.rests else 0
        elif phase != "training":
            total += _as_held(job, weights, place, part) if converts else host
        elif part == "unet" or (part in texts and told):
            total += 0 if part in replaced else _as_held(job, weights, place, part)
    return {"weights": total}


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
    kind = kind_of(job)
    if not kind.writes_model:
        return 0
    rest = table.weights.keys() - kind.memory.replaces(job, table.family)
    return sum(table.weights[part].all * place.held[part].itemsize for part in rest)


def _pictures(job: JobConfig, table: Table, place: Place) -> int:
    """Means and logarithmic variances, fp32; masks; and each hole with the same of what it leaves."""
    if job.dataset.cache != "memory":
        return 0
    cells = sum(_cells(width, height, table) for width, height in resolutions_of(job))
    channels = MOMENT_CHANNELS + (masks.CHANNELS if job.masks.source != "none" else 0)
    if place.inpaints:
        holes = holes_of(job)
        channels += (1 if holes.masks else holes.count) * (masks.CHANNELS + MOMENT_CHANNELS)
    return place.pictures * len(variations_of(job)) * cells * channels * FULL


def _encoding(job: JobConfig, table: Table, place: Place) -> dict[str, int]:
    cells = _cells(*(place.largest or largest_size(job)), table)
    return {"encoding": _quiet(table, "encode", cells, place.held["vae"])}


def _preview(job: JobConfig, table: Table, place: Place) -> int:
    cell = table.family.cell
    cells = max(math.ceil(width / cell) * math.ceil(height / cell) for width, height in preview_sizes(job))
    drawn, decoded = (_quiet(table, what, cells, place.held[part]) for what, part in DRAWING)
    if place.rests:  # by then the UNet has made room
        unet, vae = (table.weights[part].all * place.held[part].itemsize for _, part in DRAWING)
        decoded -= unet - vae
    return max(drawn, decoded)


def _measuring(job: JobConfig, table: Table, place: Place) -> int:
    """A pass of held-out pictures, and what autocast copies of weights that learn."""
    drawn, of_two = _quiet(table, "sample", _cells(*largest_size(job), table), place.dtype), 2
    parts = kind_of(job).memory.replaces(job, table.family) if place.dtype.itemsize < FULL else ()
    copies = place.dtype.itemsize * sum(table.weights[part].products for part in parts)
    return drawn * job.training.batch_size // of_two + copies


def _copied(job: JobConfig, table: Table) -> int:
    """What has been learned, kept in the computer's memory while its average is in its place (`averaged`)."""
    looks = job.validation.pictures != "none" or (job.preview.prompt and job.preview.every) or job.output.save_every
    return FULL * sum(learned_numbers(job, table).values()) if known(job.optimizer).averages and looks else 0


def _quiet(table: Table, what: str, cells: int, dtype: torch.dtype) -> int:
    work = table.quiet[what]
    return int((work.fixed + work.cell * cells) * dtype.itemsize / FULL)


def _originals(table: Table, place: Place) -> int:
    """The whole model as the host holds it."""
    return sum(weights.all * place.held[part].itemsize for part, weights in table.weights.items())


def _waiting(job: JobConfig, table: Table, place: Place) -> dict[str, int]:
    """What a run keeps in the computer's memory while the device holds something else, and what it writes. No further
    originals of a host that rests its model there, nor where they stay on the device."""
    stay = place.apart and not place.leaves
    originals = 0 if place.rests or stay else _originals(table, place)
    numbers = FULL * sum(learned_numbers(job, table).values())
    file = 0 if kind_of(job).writes_model else numbers
    return {
        "weights": originals + _set_aside(job, table, place),
        "pictures": _pictures(job, table, place),
        "file": file,
        "EMA": _copied(job, table),
    }
