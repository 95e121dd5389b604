"""Checkpoints merged into one, tensor by tensor: what is asked for is checked, then streamed.

Weights are of models' tensors alone. `position_ids` count 0, 1, 2 …; other whole numbers, marker tensors and what else
a file holds are the first model's; a running average (EMA) would no longer be one and is left out. The VAE is one of
the models' or a file's, and blended only where that is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from lib_trainer import __version__
from lib_trainer.families.detect import FIRST, channels_of
from lib_trainer.families.family import INPAINTING, VAE_PREFIX, Family
from lib_trainer.networks.formats.checkpoint_file import is_weight
from lib_trainer.networks.formats.description import carry_description
from lib_trainer.networks.formats.mapped import Stored
from lib_trainer.options.toml import read_toml
from lib_trainer.options.values import made
from lib_trainer.refusals import ConfigError, Count, Field, ModelError, Sentence, few
from lib_trainer.toolbox.clean_names import EMA, POSITIONS
from lib_trainer.toolbox.desk import Done, Prepared
from lib_trainer.toolbox.facts import Facts, check_alike
from lib_trainer.toolbox.merge_settings import STEP_FIELDS, MergeSettings
from lib_trainer.toolbox.modes import MODES, Choices, Looked, Mode, Rows, Spread, Weights, spread_of
from lib_trainer.toolbox.output import Target, settle, stored_as
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.shares import Shares, block_weights, check_range, part_weights, rules_of
from lib_trainer.toolbox.source import Source, open_source
from lib_trainer.toolbox.streaming import Layout, Tally, blaming, bytes_needed, check_space, write_stream
from lib_trainer.toolbox.vae import vae_file, vae_tensors

EARLIER = "#"
"""`#1` as a model of a chain is the result of its first step."""
MODELS = ("a", "b", "c")
OWN_HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""Metadata that would be wrong in another file."""


@dataclass
class Step:
    """One merge of a chain. `inputs`: files, or earlier steps."""

    mode: Mode
    inputs: list[Source | Step]
    shares: Shares
    weights: tuple[float, ...]
    choices: Choices
    spread: Spread = (0.0, 1.0)
    looked: dict[str, Looked] = field(default_factory=dict)
    known: dict[str, Weights] = field(default_factory=dict)

    def weights_of(self, name: str) -> Weights:
        """Found once for a tensor, which is asked for with each of its rows."""
        if name not in self.known:
            self.known[name] = Weights(*self.shares.of(name), self.weights)
        return self.known[name]

    def same(self, name: str) -> Source | Step | None:
        """The input whose tensor the result's is, if it is one of them exactly."""
        place = self.mode.same(self.weights_of(name))
        return None if place is None else self.inputs[place]

    def read(self, name: str, rows: slice) -> torch.Tensor:
        """Rows of the result in fp32."""
        same = self.same(name)
        if same is not None:
            return _rows(same, name, rows)
        weights = self.weights_of(name)
        if self.mode.looks and name not in self.looked:
            self.looked = {name: self.mode.looks(self.rows(name), weights, self.choices, self.spread)}
        pieces = [_rows(one, name, rows) for one in self.inputs]
        if name == FIRST:
            pieces = [_widened(piece, pieces[0].shape[1]) for piece in pieces]
        return self.mode.compute(pieces, weights, self.choices, self.looked.get(name), name, rows.start or 0)

    def rows(self, name: str) -> Rows:
        shape = shape_in(self.inputs[0], name)
        return Rows(
            name, shape, lambda model, rows: _rows(self.inputs[model], name, rows), len(self.inputs), self.whole
        )

    @property
    def whole(self) -> bool:
        """Whether the tensor has to be computed as a whole, here or before."""
        return self.mode.whole or any(isinstance(one, Step) and one.whole for one in self.inputs)


def shape_in(one: Source | Step, name: str) -> tuple[int, ...]:
    """Of a tensor that `has` holds for: a step that hands an input's on may have others that lack it."""
    return one.tensors[name].shape if isinstance(one, Source) else shape_in(one.same(name) or one.inputs[0], name)


def has(one: Source | Step, name: str) -> bool:
    """Whether a tensor can be computed: every model that the step reads for it has it."""
    if isinstance(one, Source):
        return name in one.tensors
    same = one.same(name)
    return has(same, name) if same is not None else all(has(each, name) for each in one.inputs)


def _rows(one: Source | Step, name: str, rows: slice) -> torch.Tensor:
    if isinstance(one, Step):
        return one.read(name, rows)
    tensor = one.raw(name)
    return (tensor[rows] if tensor.ndim else tensor).to(torch.float32, copy=True)


def _widened(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Rows of the UNet's first weight (O, C, 3, 3), with zeros for the channels that a model does not read."""
    lacking = channels - weight.shape[1]
    return F.pad(weight, (0, 0, 0, 0, 0, lacking)) if lacking else weight


def merged(step: Step, name: str) -> torch.Tensor | Iterator[torch.Tensor]:
    """A tensor of the result: an input's own where it is exactly that, else computed row by row."""
    one: Source | Step | None = step
    while isinstance(one, Step):
        same = one.same(name)
        if same is None:
            break
        one = same
    if isinstance(one, Source):
        return one.raw(name)
    assert isinstance(one, Step)
    return (one.read(name, rows) for rows in one.rows(name))


@dataclass(frozen=True)
class Plan:
    """A merge that was checked. `facts`: of the first model. `taken`: tensors that are taken as they are, from where;
    `notes` on them."""

    settings: MergeSettings
    step: Step
    steps: tuple[Step, ...]
    sources: tuple[Source, ...]
    facts: Facts
    family: Family
    names: tuple[str, ...]
    taken: Mapping[str, Stored]
    layout: Layout
    lines: tuple[Sentence, ...]
    notes: tuple[Sentence, ...]
    recipe: Mapping[str, object]


def prepare(settings: MergeSettings) -> Prepared:
    """Raises `TrainerError` for what cannot be merged or written."""
    plan = planned(settings)
    vae = vae_file(settings.vae)
    files = [source.path for source in plan.sources]
    target = settle(settings.output, settings.existing, [*files, *vae], base=files[0])
    check_space(target, plan.layout)
    size = Count(bytes_needed(plan.layout) >> 20)
    result = Sentence("merge.result", path=target.path, tensors=Count(len(plan.layout)), size=size)
    lines = (*plan.lines, result, *target.notes, *plan.notes)
    return Prepared(lines, lambda progress: _write(plan, target, progress))


def planned(settings: MergeSettings, known: dict[str, Source] | None = None) -> Plan:
    """What is merged and how. Raises `TrainerError` for what cannot be; nothing but headers and single small tensors
    are read. `known`: files that are open already, by the names in the settings; others are added."""
    chain = _chain(settings)
    files = _open_all(chain, known)
    facts = check_alike(list(files.values()), channels=False)
    family = facts[0].family
    assert isinstance(family, Family)  # `check_alike` lets nothing else pass
    steps: list[Step] = []
    for one in chain:
        steps.append(_step(one, steps, files, family))
        _check_channels(steps[-1])
    sources = tuple(files.values())
    names, taken, notes = _divided(settings, steps[-1], sources, family)
    first = sources[0].tensors
    layout = {}
    for name in (*names, *taken):
        stored = taken.get(name) or first.get(name) or next(one.tensors[name] for one in sources if name in one.tensors)
        shape = stored.shape if name in taken else shape_in(steps[-1], name)
        layout[name] = (shape, stored_as(stored.dtype, settings.precision))
    lines = [
        Sentence("merge.model", number=number, path=source.path, family=told.word, prediction=told.prediction)
        for number, (source, told) in enumerate(zip(sources, facts, strict=True), 1)
    ]
    lines += [_told(number, step, one) for number, (step, one) in enumerate(zip(steps, chain, strict=True), 1)]
    recipe = {"type": "sd-webui-trainer", "version": __version__, "steps": [_recipe(one) for one in chain]}
    return Plan(
        settings, steps[-1], tuple(steps), sources, facts[0], family, tuple(names), taken, layout, tuple(lines),
        tuple(notes), recipe | {"vae": settings.vae, "precision": settings.precision},
    )  # fmt: skip


def _told(number: int, step: Step, settings: MergeSettings) -> Sentence:
    models = [_model_names(settings)[place] for place in range(len(step.inputs))]
    names = [name if name.startswith(EARLIER) else Path(name).name for name in models]
    label, weight, second = step.mode.label, step.shares.alpha, step.shares.beta
    if not step.mode.beta:
        return Sentence("merge.step", number=number, mode=label, models=names, weight=weight)
    return Sentence("merge.step_two", number=number, mode=label, models=names, weight=weight, second=second)


def _recipe(settings: MergeSettings) -> dict[str, object]:
    """What was asked for, without what has its default, and files by their names."""
    told: dict[str, object] = {}
    default = MergeSettings()
    for name in STEP_FIELDS:
        value = getattr(settings, name)
        if value != getattr(default, name) or name in ("mode", "weight"):
            told[name] = value
    for name in MODELS:
        if name in told and not str(told[name]).startswith(EARLIER):
            told[name] = Path(str(told[name])).name
    if settings.more:
        told["more"] = [Path(path).name for path in settings.more]
    return told


def _chain(settings: MergeSettings) -> list[MergeSettings]:
    """The steps: of the chain's file, or the settings themselves."""
    if not settings.chain.strip():
        return [settings]
    if settings.a or settings.b or settings.c:
        raise ConfigError("merge.chain_and_models", field="chain")
    path = Path(settings.chain.strip().strip('"')).expanduser()
    data = read_toml(path, str(path))
    steps = data.get("step")
    if set(data) != {"step"} or not isinstance(steps, list) or not all(isinstance(one, dict) for one in steps):
        raise ConfigError("merge.no_chain", field="chain", path=path)
    chain = []
    for number, step in enumerate(steps, 1):
        unknown = sorted(set(step) - set(STEP_FIELDS))
        if unknown:
            raise ConfigError("merge.unknown_in_chain", field="chain", path=path, number=number, name=unknown[0])
        values: dict[str, Any] = {name: _value(name, value) for name, value in step.items()}
        for name in MODELS:
            values[name] = _beside(str(values.get(name, "")), path.parent)
        values["more"] = tuple(_beside(one, path.parent) for one in values.get("more", ()))
        chain.append(made(MergeSettings, values))
    return chain


def _value(name: str, value: object) -> object:
    if name == "more" and isinstance(value, list):
        return tuple(value)
    if isinstance(value, int) and not isinstance(value, bool) and name != "seed":
        return float(value)
    return value


def _beside(name: str, folder: Path) -> str:
    """Paths in a chain's file are meant from its own folder."""
    return name if not name or name.startswith(EARLIER) else str(folder.absolute() / Path(name).expanduser())


def _model_names(settings: MergeSettings) -> list[str]:
    given = [getattr(settings, name).strip().strip('"') for name in MODELS]
    while given and not given[-1]:
        given.pop()
    return [*given, *settings.more]


def _open_all(chain: Sequence[MergeSettings], known: dict[str, Source] | None) -> dict[str, Source]:
    """Every file of a chain once, in the order in which it is named. Raises `ConfigError` where a mode lacks one."""
    files: dict[str, Source] = {}
    known = {} if known is None else known
    for number, settings in enumerate(chain, 1):
        mode, given = MODES[settings.mode], _model_names(settings)
        for place, letter in enumerate(MODELS[: mode.models[0]]):
            if place >= len(given) or not given[place]:
                raise ConfigError("merge.missing_model", field=letter, letter=letter.upper(), mode=mode.label)
        if mode.models[1] and len(given) > mode.models[1]:
            extra = (*MODELS, "more")[min(mode.models[1], len(MODELS))]
            raise ConfigError("merge.too_many", field=extra, mode=mode.label, count=mode.models[1])
        for name in given:
            earlier = name.removeprefix(EARLIER)
            if earlier == name:
                files[name] = known[name] = known.get(name) or open_source(Path(name))
            elif not earlier.isdigit() or not 0 < int(earlier) < number:
                raise ConfigError("merge.no_step", field="chain", name=name, number=number)
    return files


def _step(settings: MergeSettings, before: Sequence[Step], files: Mapping[str, Source], family: Family) -> Step:
    inputs: list[Source | Step] = []
    for name in _model_names(settings):
        inputs.append(files[name] if name in files else before[int(name.removeprefix(EARLIER)) - 1])
    shares = Shares(
        family, settings.weight, settings.second,
        block_weights(settings.blocks, "blocks", family.unet),
        block_weights(settings.second_blocks, "second_blocks", family.unet),
        part_weights(settings.parts, "parts", family), rules_of(settings.rules, "rules"),
    )  # fmt: skip
    choices = Choices(settings.seed, settings.dropped, settings.kept)
    return Step(MODES[settings.mode], inputs, shares, _own_shares(settings, len(inputs)), choices)


def _check_channels(step: Step) -> None:
    """Raise `ModelError` where UNets read different numbers of channels.

    A + w(B − C) may be, with A one that inpaints and two that do not: what only A reads is A's.
    """
    own = [_channels(one) for one in step.inputs]
    if 0 in own or len(set(own)) == 1:
        return
    if step.mode is MODES["add_difference"] and own == [INPAINTING, own[1], own[1]] and own[1] < INPAINTING:
        return
    place = next(place for place, count in enumerate(own) if count != own[0])
    raise ModelError(
        "toolbox.two_channels",
        path=_file_of(step.inputs[place]),
        other=_file_of(step.inputs[0]),
        one=own[place],
        another=own[0],
    )


def _file_of(one: Source | Step) -> Path:
    return one.path if isinstance(one, Source) else _file_of(one.inputs[0])


def _channels(one: Source | Step) -> int:
    return channels_of(one.shapes) if isinstance(one, Source) else _channels(one.inputs[0])


def _own_shares(settings: MergeSettings, models: int) -> tuple[float, ...]:
    """Of each model in an average: equal ones, where none are given."""
    if not settings.shares.strip():
        return (1 / models,) * models
    try:
        found = tuple(float(piece) for piece in settings.shares.split(","))
    except ValueError:
        found = ()
    if len(found) != models:
        raise ConfigError("merge.shares", field="shares", shares=settings.shares, count=models)
    check_range(found, "shares", settings.shares)
    return found


def _divided(
    settings: MergeSettings, step: Step, sources: Sequence[Source], family: Family
) -> tuple[list[str], dict[str, Stored], list[Sentence]]:
    """Names that are merged, tensors that are taken as they are, and what the user is to know of both."""
    vae = vae_tensors(settings.vae, sources)
    merged_names: list[str] = []
    taken: dict[str, Stored] = dict(vae or {})
    averages, lacking = 0, list[str]()
    every = dict.fromkeys(name for source in sources for name in source.tensors)
    for name in every:
        own = next(source.tensors[name] for source in sources if name in source.tensors)
        if name.startswith(EMA):
            averages += 1
        elif name.endswith(POSITIONS):
            if name in sources[0].tensors:
                taken[name] = counted(own)
        elif vae is not None and name.startswith(VAE_PREFIX):
            continue
        elif not is_weight(name) or not own.dtype.is_floating_point:
            if name in sources[0].tensors:
                taken[name] = own
        elif has(step, name):
            merged_names.append(name)
        else:
            lacking.append(name)
            taken[name] = own
    _check_parts(step, sources, family, merged_names)
    notes = []
    if averages:
        notes.append(Sentence("merge.average_left_out", count=Count(averages)))
    if lacking:
        notes.append(Sentence("merge.lacking", names=few(lacking), count=Count(len(lacking))))
    return merged_names, taken, notes


def counted(positions: Stored) -> Stored:
    """`position_ids` as they should be: 0, 1, 2 …, of as many tokens as before."""
    count = positions.shape[-1] if positions.shape else 1
    return Stored((1, count), torch.int64, lambda: torch.arange(count)[None])


def _check_parts(step: Step, sources: Sequence[Source], family: Family, merged_names: Sequence[str]) -> None:
    """Raise `ModelError` where a whole part has to be merged and a model is without it."""
    parts = {family.part_of(name) for name in merged_names}
    for part in family.parts:
        holders = [source for source in sources if any(family.part_of(name) == part for name in source.tensors)]
        if part not in parts and holders and len(holders) < len(sources):
            lacks = next(source for source in sources if source not in holders)
            raise ModelError("merge.without_part", path=lacks.path, part=part, parts=Field("parts"))


def survey(plan: Plan, progress: Progress) -> None:
    """What some modes have to know of all tensors before the first is merged."""
    for number, step in enumerate(plan.steps, 1):
        if step.mode.surveys is not None:
            step.spread = _surveyed(step, number, plan, progress)


def made_of(plan: Plan, name: str) -> torch.Tensor | Iterator[torch.Tensor]:
    """A tensor of the result, not rounded yet; maybe in pieces, one behind the other."""
    stored = plan.taken.get(name)
    return stored.load() if stored is not None else merged(plan.step, name)


def _write(plan: Plan, target: Target, progress: Progress) -> Done:
    survey(plan, progress)
    tally = Tally()
    progress.begin(Sentence("phase.merging"), bytes_needed(plan.layout), "bytes")

    def closing() -> dict[str, str]:
        return {"sd_merge_recipe": json.dumps({**plan.recipe, "clamped": tally.clamped}, ensure_ascii=False)}

    room = 2 * len(json.dumps(plan.recipe).encode()) + 256
    with blaming(plan.sources):
        path = write_stream(
            target,
            plan.layout,
            lambda name: made_of(plan, name),
            _metadata(plan),
            progress,
            closing=closing,
            room=room,
            tally=tally,
        )
    carry_description(plan.sources[0].path, path)
    return Done(Sentence("merge.done", path=path), path, (*target.notes, *plan.notes, *rounded(tally)))


def _surveyed(step: Step, number: int, plan: Plan, progress: Progress) -> Spread:
    """How alike the models' tensors are, over all that is merged."""
    assert step.mode.surveys is not None
    names = [name for name in plan.names if all(has(one, name) for one in step.inputs)]
    progress.begin(Sentence("phase.comparing", number=number), len(names), "tensors")
    found = []
    for name in names:
        found.append(step.mode.surveys(step.rows(name)))
        progress.advance(1)
    return spread_of(found)


def rounded(tally: Tally) -> tuple[Sentence, ...]:
    """What is said of numbers that were beyond the range."""
    if not tally.clamped:
        return ()
    return (Sentence("toolbox.clamped", count=Count(tally.clamped), names=few(tally.names)),)


def _metadata(plan: Plan) -> dict[str, str]:
    """What the first model says of itself, and what the others bring of earlier merges."""
    first = plan.sources[0].metadata
    told = {name: value for name, value in first.items() if name not in OWN_HASHES}
    told["modelspec.merged_from"] = ", ".join(source.path.name for source in plan.sources)
    earlier: dict[str, object] = {}
    for source in plan.sources:
        for name in ("sd_merge_recipe", "sd_merge_models"):
            if name in source.metadata:
                earlier.setdefault(source.path.name, {})[name] = source.metadata[name]  # type: ignore[index]
    told.pop("sd_merge_models", None)
    if earlier:
        told["sd_merge_models"] = json.dumps(earlier, ensure_ascii=False)
    return told
