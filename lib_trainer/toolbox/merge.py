"""Checkpoints merged into one, tensor by tensor: what is asked for is checked, then streamed.

Weights are of models' tensors alone. `position_ids` count 0, 1, 2 …; other whole numbers, marker tensors and what else
a file holds are the first model's; a running average (EMA) would no longer be one and is left out. The VAE is one of
the models' or a file's, and blended only where that is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from lib_trainer import __version__
from lib_trainer.families.family import VAE_PREFIX, Family
from lib_trainer.networks.formats.checkpoint_file import is_weight
from lib_trainer.networks.formats.mapped import Stored
from lib_trainer.refusals import Count, Field, ModelError, Sentence, few
from lib_trainer.toolbox.alone import alone
from lib_trainer.toolbox.clean_names import EMA, POSITIONS
from lib_trainer.toolbox.desk import Done, Prepared
from lib_trainer.toolbox.facts import Facts, check_alike
from lib_trainer.toolbox.merge_chain import chain_of, open_all, recipe_of, steps_of, told_of
from lib_trainer.toolbox.merge_settings import MergeSettings
from lib_trainer.toolbox.merge_steps import Step, has, merged, shape_in
from lib_trainer.toolbox.modes import Spread, spread_of
from lib_trainer.toolbox.output import Target, describe_result, settle, stored_as
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.source import Source
from lib_trainer.toolbox.streaming import Layout, Tally, blaming, bytes_needed, check_space, write_stream
from lib_trainer.toolbox.vae import vae_file, vae_tensors

OWN_HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""Metadata that would be wrong in another file."""


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
    chain = chain_of(settings)
    files = open_all(chain, known)
    facts = check_alike(list(files.values()), channels=False)
    family = facts[0].family
    assert isinstance(family, Family)  # `check_alike` lets nothing else pass
    steps = steps_of(chain, files, family)
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
    lines += [told_of(number, step, one) for number, (step, one) in enumerate(zip(steps, chain, strict=True), 1)]
    recipe = {"type": "sd-webui-trainer", "version": __version__, "steps": [recipe_of(one) for one in chain]}
    return Plan(
        settings, steps[-1], tuple(steps), sources, facts[0], family, tuple(names), taken, layout, tuple(lines),
        tuple(notes), recipe | {"vae": settings.vae, "precision": settings.precision},
    )  # fmt: skip


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
    if vae == {} and any(name.startswith(VAE_PREFIX) for name in every):
        notes.append(Sentence("merge.without_vae", vae=Field("vae", "--vae")))
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
    """A tensor of the result, not rounded yet; maybe in pieces, one behind the other, each in the memory of the one
    before."""
    stored = plan.taken.get(name)
    return stored.load() if stored is not None else merged(plan.step, name)


def _write(plan: Plan, target: Target, progress: Progress) -> Done:
    survey(plan, progress)
    tally = Tally()
    progress.begin(Sentence("phase.merging"), bytes_needed(plan.layout), "bytes")

    def closing() -> dict[str, str]:
        return {"sd_merge_recipe": json.dumps({**plan.recipe, "clamped": tally.clamped}, ensure_ascii=False)}

    room = 2 * len(json.dumps(plan.recipe).encode()) + 256
    with alone(), blaming(plan.sources):
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
    describe_result(progress, plan.sources[0].path, path)
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
