"""What a job is foreseen to need on its host, whether that is there, and which change would make it fit.

A forecast is no refusal: a picture that is being drawn will be done soon, and what does not fit ends in a sentence of
its own. So a job that seems too large is told what to change, and can be started all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lib_trainer.config import JobConfig, from_values, to_values
from lib_trainer.dataset.buckets import Size
from lib_trainer.kinds.registry import kind_of
from lib_trainer.memory import SHARE, free_bytes, host_free_bytes
from lib_trainer.ports import HeldPart, Host
from lib_trainer.refusals import Decimals, Field, Sentence, both
from lib_trainer.training.captions import TOKENS_PER_CHUNK
from lib_trainer.training.forecast import Forecast, Fullest, Need, Place, forecast, foreseen
from lib_trainer.training.memory_table import Table, table_for
from lib_trainer.training.optimizers import lighter
from lib_trainer.training.precision import resolve_precision
from lib_trainer.training.sizes import largest_size

GIB = 2**30
SMALLEST = 256
"""Pixels: no remedy makes pictures smaller than this."""
ITEMS = {
    "weights": Sentence("memory.weights"),
    "what learns": Sentence("memory.learns"),
    "optimizer": Sentence("memory.optimizer"),
    "EMA": Sentence("memory.average"),
    "activations": Sentence("memory.activations"),
    "gradients": Sentence("memory.gradients"),
    "encoding": Sentence("memory.encoding"),
    "preview": Sentence("memory.preview"),
    "pictures": Sentence("memory.pictures"),
    "set aside": Sentence("memory.set_aside"),
}
"""What the forecast counts, in words."""
SIZED = frozenset({"dataset.width", "dataset.height", "buckets.resolutions"})
"""Options by which pictures are fitted anew."""
SHOWN = 0.05
"""GiB: what is less is not listed."""


@dataclass(frozen=True)
class Remedy:
    """Options that would be changed, and the bytes that the job would need then."""

    changes: Mapping[str, Any]
    total: int

    def told(self) -> Sentence:
        changes = both([_change(path, value) for path, value in self.changes.items()])
        return Sentence("memory.remedy", changes=changes, size=_gib(self.total))


@dataclass(frozen=True)
class Outlook:
    """`room` and `ram_room` are bytes that the run can have: what is free, and what the model already takes there.
    `unet_waits`: pictures would not be encoded whole beside the UNet, so that it leaves the device meanwhile."""

    forecast: Forecast
    device: str
    room: int
    ram_room: int
    remedies: tuple[Remedy, ...] = ()
    unet_waits: bool = False

    @property
    def fits(self) -> bool:
        return self.forecast.needed <= SHARE * self.room

    @property
    def ram_fits(self) -> bool:
        return not self.forecast.apart or self.forecast.ram.total <= SHARE * self.ram_room

    def line(self) -> Sentence:
        """For beside a Start button."""
        need, items = self.forecast.device, _items(self.forecast.device)
        size, room = _gib(need.total), _gib(self.room)
        if not self.forecast.apart:
            return Sentence("memory.line", size=size, room=room, items=items)
        ram, ram_room, device = _gib(self.forecast.ram.total), _gib(self.ram_room), _name(self.device)
        return Sentence(
            "memory.line_of_device", size=size, room=room, device=device, items=items, ram=ram, ram_room=ram_room
        )

    def note(self) -> Sentence:
        return Sentence("memory.note", line=self.line())

    def warning(self) -> Sentence | None:
        """One sentence where the job seems not to fit."""
        if not self.fits:
            size, room, device = _gib(self.forecast.needed), _gib(self.room), _name(self.device)
            remedies = [remedy.told() for remedy in self.remedies]
            if not remedies:
                return Sentence("memory.no_remedy", size=size, room=room, device=device)
            return Sentence("memory.too_much", size=size, room=room, device=device, remedies=_either(remedies))
        if not self.ram_fits:
            return Sentence("memory.too_much_ram", size=_gib(self.forecast.ram.total), room=_gib(self.ram_room))
        return None


@dataclass(frozen=True)
class Looked:
    """What is known of a job's pictures where somebody has looked at them: how many are encoded, the size that most
    pixels of one are trained at, the longest of the captions that are told, and what a step's fullest pass shows."""

    pictures: int = 0
    largest: Size | None = None
    captions: Sequence[str] = ()
    fullest: Fullest | None = None


def outlook(
    job: JobConfig, host: Host, parts: Mapping[str, HeldPart] | None = None, looked: Looked | None = None
) -> Outlook | None:
    """What a job will need here; None for a model or a step that no table is about. Loads nothing and takes no lock.

    `parts` are the host's, where they are known already. Where nobody has `looked` at the pictures, captions are taken
    to be short and pictures as large as they may be. Raises a `TrainerError` for a job that is not sound.
    """
    looked = looked or Looked()
    parts = host.parts() if parts is None else parts
    table = table_for({part: held.numbers for part, held in parts.items()})
    if table is None or table.of != host.family().memory:
        return None
    device = host.device()
    dtype = resolve_precision(job.training.precision, device)
    if not foreseen(job, table, dtype):
        return None
    place = Place(
        device,
        dtype,
        {part: parts[part].dtype if part in parts else torch.float32 for part in table.weights},
        looked.pictures,
        looked.largest,
        _chunks(job, looked.captions, host),
        looked.fullest,
        inpaints=host.inpaints(),
    )
    place = replace(place, rests=place.apart and any(held.rests for held in parts.values()))
    resident = sum(held.on_device for held in parts.values())
    room = free_bytes(device) + resident
    ram_room = host_free_bytes() if place.apart else room
    first = forecast(job, table, place)
    place = replace(place, unet_waits=place.leaves and first.encoding > SHARE * room)
    found = Outlook(forecast(job, table, place), device.type, room, ram_room, unet_waits=place.unet_waits)
    return found if found.fits else replace(found, remedies=tuple(remedies_for(job, table, place, int(SHARE * room))))


def _chunks(job: JobConfig, captions: Sequence[str], host: Host) -> int:
    """Pieces of 75 tokens that the text encoders are shown of the longest caption."""
    most = job.training.max_tokens // TOKENS_PER_CHUNK
    if most == 1 or not captions:
        return 1
    words = len(kind_of(job).words(job)) * job.embedding.vectors if kind_of(job).has_words else 0
    tokens = words + max(map(host.token_count, captions))
    return max(1, min(most, math.ceil(tokens / TOKENS_PER_CHUNK)))


def unknown(job: JobConfig, host: Host, parts: Mapping[str, HeldPart]) -> Sentence | None:
    """For beside a Start button: a model of a family that no table is about, or a step that its table is not about."""
    family = host.family()
    if not parts or not family.memory:
        return Sentence("memory.unknown", family=family.word) if parts else None
    table, device = table_for({part: held.numbers for part, held in parts.items()}), host.device()
    if table is None or foreseen(job, table, resolve_precision(job.training.precision, device)):
        return None
    return Sentence("memory.unknown_step", family=family.word)


def remedies_for(job: JobConfig, table: Table, place: Place, room: int) -> list[Remedy]:
    """Changes that each make the job fit `room` bytes, the least harmful first; at most three.

    Where none is enough alone, as many of them together as it takes; none where that is not enough either.
    """
    alone = []
    steps = list(_possible(job, place))
    for choices in steps:
        found = next((one for one in (_tried(job, c, table, place) for c in choices) if one.total <= room), None)
        if found is not None:
            alone.append(found)
    if alone:
        return alone[:3]
    together: dict[str, Any] = {}
    for choices in steps:
        for change in choices:
            found = _tried(job, {**together, **change}, table, place)
            if found.total <= room:
                return [found]
        together |= choices[-1]
    return []


def _tried(job: JobConfig, changes: Mapping[str, Any], table: Table, place: Place) -> Remedy:
    changed = from_values(to_values(job) | dict(changes))
    if not SIZED.isdisjoint(changes):
        place = replace(place, largest=None, fullest=None)
    return Remedy(changes, forecast(changed, table, place).needed)


def _possible(job: JobConfig, place: Place) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Changes by option, each from the smallest on."""
    training, data, kind = job.training, job.dataset, kind_of(job)
    if not training.gradient_checkpointing:
        yield [{"training.gradient_checkpointing": True}]
    if training.batch_size > 1:
        sizes = sorted({max(1, training.batch_size // divisor) for divisor in (2, 4, 8, 256)}, reverse=True)
        yield [{"training.batch_size": size} for size in sizes]
    if smaller_state := lighter(job.optimizer, place.device):
        yield [{"optimizer.name": smaller_state}]
    if job.training.weights != "fp8" and hasattr(torch, "float8_e4m3fn") and not kind.why_no_fp8(job):
        yield [{"training.weights": "fp8"}]
    yield from kind.memory.mild_remedies(job)
    if job.preview.prompt and job.preview.every:
        yield [{"preview.prompt": ""}]
    if largest_size(job) != (data.width, data.height):
        yield [{"buckets.resolutions": ""}]
    smaller = [
        {"dataset.width": width, "dataset.height": height}
        for share in (0.75, 0.5)
        for width, height in [tuple(max(SMALLEST, int(side * share) // 64 * 64) for side in (data.width, data.height))]
        if width * height < data.width * data.height
    ]
    if smaller:
        yield smaller
    yield from kind.memory.hard_remedies(job)


def _either(sentences: Sequence[Sentence]) -> Sentence:
    """'a, or b, or c'."""
    first, *others = sentences
    return Sentence("list.either", one=first, other=_either(others)) if others else first


def _change(path: str, value: Any) -> Sentence:
    if isinstance(value, bool):
        return Sentence("memory.turn_on" if value else "memory.turn_off", option=Field(path))
    if value == "":
        return Sentence("memory.leave_empty", option=Field(path))
    return Sentence("memory.set", option=Field(path), value=value)


def _gib(size: int) -> Sentence:
    return Sentence("memory.gib", size=Decimals(size / GIB, 1))


def _items(need: Need) -> list[Sentence] | Sentence:
    """The larger items first."""
    shown = sorted(need.items.items(), key=lambda item: -item[1])
    large = [
        Sentence("memory.item", name=ITEMS.get(name, name), size=Decimals(size / GIB, 1))
        for name, size in shown
        if size >= SHOWN * GIB
    ]
    return large or Sentence("memory.next_to_nothing")


def _name(device: str) -> Sentence | str:
    if device == "cpu":
        return Sentence("device.computer")
    return Sentence("device.card") if device in ("cuda", "xpu") else device
