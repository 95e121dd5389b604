"""What a merge is told, as its steps: one, or those of a chain's file, with the files that they read opened once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_trainer.families.detect import channels_of
from lib_trainer.families.family import INPAINTING, Family
from lib_trainer.options.toml import read_toml
from lib_trainer.options.values import made
from lib_trainer.refusals import ConfigError, ModelError, Sentence
from lib_trainer.toolbox.merge_settings import STEP_FIELDS, MergeSettings
from lib_trainer.toolbox.merge_steps import Step
from lib_trainer.toolbox.modes import MODES, Choices
from lib_trainer.toolbox.shares import Shares, block_weights, check_range, part_weights, rules_of
from lib_trainer.toolbox.source import Source, open_source

EARLIER = "#"
"""`#1` as a model of a chain is the result of its first step."""
MODELS = ("a", "b", "c")


def chain_of(settings: MergeSettings) -> list[MergeSettings]:
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


def open_all(chain: Sequence[MergeSettings], known: dict[str, Source] | None) -> dict[str, Source]:
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


def _model_names(settings: MergeSettings) -> list[str]:
    given = [getattr(settings, name).strip().strip('"') for name in MODELS]
    while given and not given[-1]:
        given.pop()
    return [*given, *settings.more]


def steps_of(chain: Sequence[MergeSettings], files: Mapping[str, Source], family: Family) -> list[Step]:
    """Raises `TrainerError` for weights that are none and UNets that do not read the same channels."""
    steps: list[Step] = []
    for one in chain:
        steps.append(_step(one, steps, files, family))
        _check_channels(steps[-1])
    return steps


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


def told_of(number: int, step: Step, settings: MergeSettings) -> Sentence:
    models = [_model_names(settings)[place] for place in range(len(step.inputs))]
    names = [name if name.startswith(EARLIER) else Path(name).name for name in models]
    label, weight, second = step.mode.label, step.shares.alpha, step.shares.beta
    if not step.mode.beta:
        return Sentence("merge.step", number=number, mode=label, models=names, weight=weight)
    return Sentence("merge.step_two", number=number, mode=label, models=names, weight=weight, second=second)


def recipe_of(settings: MergeSettings) -> dict[str, object]:
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
