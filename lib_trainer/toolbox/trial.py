"""Merges and LoRAs tried on the loaded model: written into its weights, drawn with, put back. No file is written but a
grid's picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import msgspec
import torch
from PIL import Image

from lib_trainer.families.family import VAE_PREFIX, Family
from lib_trainer.grids import write_painted
from lib_trainer.lettering import said
from lib_trainer.ports import Exchange, Host, Lease, LoadedModel, PreviewRequest
from lib_trainer.refusals import ConfigError, Count, Field, ModelError, Sentence
from lib_trainer.toolbox import inject
from lib_trainer.toolbox.desk import Done, Prepared, ToolDesk
from lib_trainer.toolbox.layers import Layer
from lib_trainer.toolbox.lora_options import RepairSettings
from lib_trainer.toolbox.merge import Plan, made_of, planned, survey
from lib_trainer.toolbox.merge_settings import MergeSettings
from lib_trainer.toolbox.opened import OpenLora, open_lora
from lib_trainer.toolbox.progress import Progress, StopAsked
from lib_trainer.toolbox.source import Source, open_source
from lib_trainer.toolbox.streaming import Tally, blaming, sound
from lib_trainer.toolbox.strengths import Strength, parse_meant
from lib_trainer.toolbox.trial_settings import BlockGridSettings, GridSettings, PictureSettings
from lib_trainer.work.job import new_id

TEXT = "text encoders"
"""What stands for them among the blocks of a grid."""
NOT_DRAWN = ("text", "text_from", "others", "rank", "keep")
"""Options of a repaired file that a grid of its blocks does not show."""


@dataclass(frozen=True)
class Weights:
    """Weights of a model by the names of a checkpoint's tensors; `made` gives one, already rounded as in a file."""

    names: frozenset[str]
    made: Callable[[str], torch.Tensor]
    begin: Callable[[Progress], None] = lambda progress: None


# -- a merge ------------------------------------------------------------------------------------------------------


def prepare_try(settings: MergeSettings, host: Host) -> Prepared:
    """The merge in the loaded model until it is put back. Raises `TrainerError` for what cannot be done."""
    plan = planned(settings)
    _check_loaded(host, plan)
    told = Sentence("trial.on", models=tuple(source.path.name for source in plan.sources))
    lines = (*plan.lines, Sentence("trial.will", model=host.describe()), *plan.notes, *_vae_note(settings))

    def work(progress: Progress) -> Done:
        with host.lease(str(told)) as lease:
            model = host.model()
            exchange = host.exchange(told)
            try:
                write_into(model, exchange, _of_merge(plan), progress, lease)
            except BaseException:
                exchange.put_back()
                raise
        return Done(told, None, (*plan.notes, *_vae_note(settings)))

    return Prepared(lines, work)


def prepare_put_back(host: Host) -> Prepared:
    """Raises `ConfigError` where nothing is tried."""
    if host.exchanged is None:
        raise ConfigError("trial.nothing_tried")

    def work(progress: Progress) -> Done:
        with host.lease(str(Sentence("trial.putting_back"))):  # which does it
            pass
        return Done(Sentence("trial.put_back"))

    return Prepared((Sentence("trial.putting_back"),), work)


def end_trial(desk: ToolDesk, host: Host) -> None:
    """Put back what is tried, in this thread. A job that is at work on the model is left alone: a grid puts back what
    it has tried itself, and a training has done so before it began."""
    if host.exchanged is not None and not desk.on_model:
        prepare_put_back(host).work(Progress())


def prepare_grid(settings: MergeSettings, asked: GridSettings, host: Host) -> Prepared:
    """Pictures of merges, a column for each weight and a row for each list of blocks."""
    _check_pictures(asked)
    if settings.chain.strip():
        raise ConfigError("trial.chain", field="chain")
    if settings.mode == "average":
        raise ConfigError("trial.average", field="mode")
    weights = _numbers(asked.weights) or [settings.weight]
    rows = [line.strip() for line in asked.rows.splitlines() if line.strip()] or [settings.blocks]
    opened: dict[str, Source] = {}
    plans: list[list[Plan]] = []
    for row in rows:
        one = [msgspec.structs.replace(settings, blocks=row, weight=weight) for weight in weights]
        plans.append([planned(each, opened) for each in one])
    _check_loaded(host, plans[0][0])
    cells = [[_of_merge(plan) for plan in row] for row in plans]
    columns = [f"{weight:g}" for weight in weights]
    told = tuple(source.path.name for source in plans[0][0].sources)
    shown = rows if len(rows) > 1 or rows[0] else [""]
    return _grid(host, asked, _Cells(columns, shown, cells), Sentence("trial.grid_of", models=told))


def _numbers(text: str) -> list[float]:
    try:
        return [float(piece) for piece in text.replace(",", " ").split()]
    except ValueError:
        raise ConfigError("trial.weights", field="weights", text=text) from None


def _of_merge(plan: Plan) -> Weights:
    """The UNet and the text encoders; the VAE stays the loaded one."""
    names = frozenset(name for name in plan.layout if not name.startswith(VAE_PREFIX))

    def made(name: str) -> torch.Tensor:
        shape, dtype = plan.layout[name]
        with blaming(plan.sources):
            pieces = made_of(plan, name)
            flat = pieces.reshape(-1) if isinstance(pieces, torch.Tensor) else _joined(pieces, math.prod(shape))
            return sound(name, flat, dtype, Tally()).to(dtype).reshape(shape)

    return Weights(names, made, lambda progress: survey(plan, progress))


def _joined(pieces: Iterator[torch.Tensor], count: int) -> torch.Tensor:
    whole, place = torch.empty(count), 0
    for piece in pieces:
        whole[place : place + piece.numel()] = piece.reshape(-1)
        place += piece.numel()
    return whole


def _vae_note(settings: MergeSettings) -> tuple[Sentence, ...]:
    return () if settings.vae.strip().lower() in ("", "a") else (Sentence("trial.vae"),)


def _check_loaded(host: Host, plan: Plan) -> None:
    """Raise `ModelError` where a merge is for another model than the loaded one."""
    host.check()
    if host.family() is not plan.family:
        raise ModelError("trial.other_family", one=plan.family.word, another=host.family().word)
    said = host.predicts()
    if plan.facts.prediction not in (None, said.prediction):
        raise ModelError("trial.other_prediction", one=plan.facts.prediction, another=said.prediction)


# -- a LoRA, block by block ---------------------------------------------------------------------------------------


def prepare_block_grid(settings: RepairSettings, asked: BlockGridSettings, host: Host) -> Prepared:
    """Pictures with each block of a LoRA switched off, or alone, beside the whole and the model without it."""
    _check_pictures(asked)
    if not settings.lora.strip():
        raise ConfigError("adapter_file.no_file", field="lora")
    host.check()
    family = host.family()
    meant = parse_meant(settings.lora, "lora")
    if settings.blocks.strip():
        meant = replace(meant, blocks=settings.blocks)
    lora = open_lora(meant.path, family)
    if lora.family is not family:
        raise ModelError("trial.other_family", one=lora.family.word, another=family.word)
    whole = meant.strength(family, "blocks" if settings.blocks.strip() else "lora")
    blocks = _blocks_of(lora, family)
    columns = {"both": ("off", "alone"), "off": ("off",), "alone": ("alone",)}[asked.shown]
    headings = {"off": said(Sentence("drawn.off")), "alone": said(Sentence("drawn.alone"))}

    def cells(model: LoadedModel) -> list[list[Weights]]:
        if model.file is None:
            raise ModelError("trial.no_file")
        source = open_source(model.file)
        every = frozenset(inject.plan(source, [inject.Taken(lora, Strength())]).changes)

        def of(strength: Strength) -> Weights:
            injection = inject.plan(source, [inject.Taken(lora, strength)])
            return Weights(every, lambda name: _rounded(source, name, inject.made(injection, name)))

        rows = [[of(_only(whole, blocks, one, column)) for column in columns] for one in blocks]
        beside = [of(whole), of(Strength(0, 0))]
        return [beside, *rows] if len(columns) == 2 else [*([one] for one in beside), *rows]

    beside = Sentence("drawn.with_and_without"), Sentence("drawn.with"), Sentence("drawn.without")
    above = [said(one) for one in (beside[:1] if len(columns) == 2 else beside[1:])]
    told = Sentence("trial.blocks_of", lora=lora.path.name)
    return _grid(
        host, asked, _Cells([headings[one] for one in columns], [*above, *blocks], cells), told, _without(settings)
    )


def _without(settings: RepairSettings) -> tuple[Sentence, ...]:
    """What the file would be made with, and the pictures are not."""
    usual = RepairSettings()
    idle = [name for name in NOT_DRAWN if getattr(settings, name) != getattr(usual, name)]
    return (Sentence("trial.alone", options=tuple(Field(name) for name in idle)),) if idle else ()


def _rounded(source: Source, name: str, numbers: torch.Tensor) -> torch.Tensor:
    dtype = source.tensors[name].dtype
    with blaming([source]):
        return sound(name, numbers.reshape(-1), dtype, Tally()).to(dtype).reshape(numbers.shape)


def _blocks_of(lora: OpenLora, family: Family) -> list[str]:
    """The blocks that a LoRA changes, in order, the text encoders as one."""
    held = {_block_of(layer) for layer in lora.modules}
    return [one for one in (TEXT, *family.unet.blocks) if one in held]


def _block_of(layer: Layer) -> str:
    return layer.block if layer.part == "unet" else TEXT


def _only(whole: Strength, blocks: Sequence[str], one: str, column: str) -> Strength:
    """The strengths with one block switched off, or alone."""
    kept = {block: whole.blocks.get(block, 1.0) for block in blocks if (block == one) == (column == "alone")}
    text = whole.text if (one == TEXT) == (column == "alone") else 0.0
    return Strength(text, whole.unet, {**whole.blocks, **dict.fromkeys(blocks, 0.0), **kept}, whole.base)


# -- writing and drawing ------------------------------------------------------------------------------------------


def write_into(model: LoadedModel, exchange: Exchange, weights: Weights, progress: Progress, lease: Lease) -> None:
    """Put weights into the loaded model. Raises `ModelError` where none is of it, and what writing raises."""
    weights.begin(progress)
    own = sorted(
        (one for one in model.own_parameters() if one.place.name in weights.names), key=lambda one: one.place.name
    )
    if not own:
        raise ModelError("trial.nothing_alike")
    progress.begin(Sentence("phase.trying"), len(own), "tensors")
    for name, places in groupby(own, key=lambda one: one.place.name):
        tensor = weights.made(name)
        for one in places:
            exchange.write(one, one.place.read(tensor))
            progress.advance(1)
        if lease.interrupted:
            raise StopAsked


@dataclass(frozen=True)
class _Cells:
    """What a grid shows. `weights`: by row and column, or what makes them of the loaded model."""

    columns: Sequence[str]
    rows: Sequence[str]
    weights: Sequence[Sequence[Weights]] | Callable[[LoadedModel], Sequence[Sequence[Weights]]]

    @property
    def count(self) -> int:
        return len(self.columns) * len(self.rows)


def _grid(
    host: Host, asked: PictureSettings, cells: _Cells, told: Sentence, notes: tuple[Sentence, ...] = ()
) -> Prepared:
    path = host.cache_folder().parent / "grids" / f"{new_id()}.png"
    lines = (told, Sentence("trial.pictures", count=Count(cells.count), path=path), *notes)

    def work(progress: Progress) -> Done:
        with host.lease(str(told)) as lease:
            model = host.model()
            weights = cells.weights(model) if callable(cells.weights) else cells.weights
            exchange = host.exchange(told)
            drawn: list[list[Image.Image | None]] = []
            try:
                for row in weights:
                    drawn.append([])
                    for one in row:
                        write_into(model, exchange, one, progress, lease)
                        done = sum(map(len, drawn))
                        progress.begin(Sentence("phase.drawing"), cells.count, "pictures")
                        progress.advance(done)
                        lease.progress(done, cells.count, str(told))
                        drawn[-1].append(host.preview(request_of(asked)))
                        if lease.interrupted:  # the host has cut that picture short
                            raise StopAsked
            finally:
                exchange.put_back()
        write_painted(path, cells.columns, cells.rows, drawn)
        return Done(Sentence("trial.grid", path=path), path, notes)

    return Prepared(lines, work)


def request_of(asked: PictureSettings) -> PreviewRequest:
    return PreviewRequest(
        asked.prompt, asked.negative_prompt, asked.width, asked.height, asked.steps, asked.cfg_scale, asked.sampler,
        asked.picture_seed,
    )  # fmt: skip


def _check_pictures(asked: PictureSettings) -> None:
    if not asked.prompt.strip():
        raise ConfigError("trial.no_prompt", field="prompt")
    for name in ("width", "height"):
        if getattr(asked, name) % 8:
            raise ConfigError("trial.size", field=name, size=getattr(asked, name))
