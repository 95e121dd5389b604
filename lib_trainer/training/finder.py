"""A search for the learning rate: several short runs from the same start, judged at fixed points, and nothing kept.

The usual range test, which raises the rate step by step and looks at the loss of the steps, names rates that are far
too high for attention models (transformers' issue 16013) and hangs on the seed: in diffusion the loss of a step is
mostly a matter of the timestep that was drawn. Here every rate has runs of its own, all of them see the same pictures,
noise and timesteps in the same order, and what they came to is measured at the same points before and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from lib_trainer.config import JobConfig
from lib_trainer.config.fields import option_of
from lib_trainer.dataset.scan import Sample
from lib_trainer.kinds.recipe import parameters
from lib_trainer.kinds.registry import kind_of
from lib_trainer.ports import Host
from lib_trainer.refusals import ConfigError, Field, NumericalError, Sentence
from lib_trainer.training.ahead import ahead
from lib_trainer.training.checks import SECOND_RATES, check_names, with_a_name
from lib_trainer.training.loop import train
from lib_trainer.training.objective import Objective
from lib_trainer.training.optimizers import called, finds_rate, forget_state, make_optimizer
from lib_trainer.training.order import Order, Shown
from lib_trainer.training.pictures import PictureSource
from lib_trainer.training.plan import Plan, prepare
from lib_trainer.training.prediction import schedule_of
from lib_trainer.training.preparation import Preparation, Prepared
from lib_trainer.training.prior import class_samples_there
from lib_trainer.training.probe import Probe, make_probe
from lib_trainer.training.rate_answer import (
    WIDEST,
    Pictures,
    Range,
    Short,
    Tried,
    best_factor,
    range_of,
    rate_text,
    tried,
    two_digits,
)
from lib_trainer.training.run import Run, run_plan
from lib_trainer.training.scaling import loss_scaler
from lib_trainer.training.schedules import LearningRates, warmup_steps
from lib_trainer.training.state import TrainState
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from lib_trainer.work.meter import Meter

PAIRS = 48
"""Of points at which runs are judged."""
HELD_SHARE, HELD_MOST, ENOUGH = 0.25, 24, 8
"""Of the pictures, how many are held back to judge by; of fewer than `ENOUGH` none are."""
STEP = math.sqrt(10)
"""Between two rates that are tried."""
FIRST = tuple(STEP**place for place in range(-4, 5))
"""Factors on the rates of the job that are tried in the first round."""
MOST = 16
"""Rates that the first round tries at most."""
SEEDS = 2
"""Runs of the second round at each rate."""
LEAST = 4
"""Steps of a run."""
SHORTEST, LONGEST, SHARE = 24, 80, 25
"""Steps of a run of the second round: the job's over `SHARE`, within bounds; in the first round a third of that."""


@dataclass(frozen=True)
class Report:
    """What is known by now. `rates` are those of the job by option, all above 0, and the first one is what people look
    at; `whole` is how many steps the job has. At the end there is a `range`, or `unknown` says why there is none."""

    rates: Mapping[str, float]
    whole: int
    tried: tuple[Tried, ...] = ()
    range: Range | None = None
    unknown: Sentence | None = None
    notes: tuple[Sentence, ...] = ()

    def at(self, factor: float) -> dict[str, float]:
        """The rates times a factor, in two digits."""
        return {path: two_digits(rate * factor) for path, rate in self.rates.items()}


class Search(Run):
    """The same preparations as for a run, then many short ones, and nothing is written."""

    def execute(self) -> ev.Finished:
        """Emits a `Report` after each short run. Whatever is raised, the model is its host's again."""
        report: Report | None = None
        with self.ready():
            if self.prepared is not None:
                report = self._searched(ShortRuns(self, self.prepared))
        if report is None:
            return ev.Finished(stopped=True)
        self.place.emit(ev.Found(report))
        return ev.Finished(told=told(report), notes=report.notes)

    def keep(self) -> None:
        """Nothing of it is worth keeping."""

    def class_pictures(self, preparation: Preparation) -> list[Sample]:
        """Those that are there: a search draws none."""
        plan, place = self.plan, self.place
        if not plan.class_pictures:
            return []
        found = class_samples_there(plan.job, place.host, place.model, place.warn)
        if not found:
            place.warn(Sentence("finder.no_class_pictures"))
        return found

    def _searched(self, short: ShortRuns) -> Report | None:
        """None if it was stopped."""
        rates = rates_of(self.plan)
        longest = 1 / max(rates.values())
        notes = () if short.held else (Sentence("finder.none_held", least=ENOUGH),)
        first = min(short.steps, max(LEAST, short.steps // 3))
        rounds = _Rounds(self, short, Report(rates, short.whole, notes=notes))
        rounds.go(Sentence("phase.rates_first"), [one for one in FIRST if one <= longest], first, seeds=1)
        while not rounds.stopped and (further := rounds.beyond(first, longest)):
            rounds.go(Sentence("phase.rates_further"), further, first, seeds=1)
        best = None if rounds.stopped else best_factor(rounds.tried(first))
        if best is not None:
            around = [factor for factor in near(best.factor) if factor <= longest]
            rounds.go(Sentence("phase.rates_second"), around, short.steps, seeds=SEEDS)
        return None if rounds.stopped else rounds.answered()


class _Rounds:
    """The runs so far, and the report on them."""

    def __init__(self, run: Search, short: ShortRuns, report: Report) -> None:
        self._run, self._short, self.report = run, short, report
        self._runs: list[Short] = []
        self.stopped = False

    def go(self, name: Sentence, factors: Sequence[float], steps: int, *, seeds: int) -> None:
        meter, place = Meter(), self._run.place
        same = [self._as_before(factor) for factor in factors]
        ran = {(one.factor, one.steps, one.seed) for one in self._runs}  # of a job of a few steps all are as long
        wanted = [(factor, seed) for seed in range(seeds) for factor in same if (factor, steps, seed) not in ran]
        for done, (factor, seed) in enumerate(wanted):
            place.emit(meter.phase(name, done, len(wanted), "runs"))
            place.lease.progress(done, len(wanted), str(name))
            found = self._short.run(factor, steps, seed, self._run.place.stopping)
            if found is None:
                self.stopped = True
                return
            self._runs.append(found)
            self.report = replace(self.report, tried=tuple(tried(self._runs, self._short.pictures)))
            place.emit(ev.Found(self.report))
        place.emit(meter.phase(name, len(wanted), len(wanted), "runs"))

    def _as_before(self, factor: float) -> float:
        """A factor as it was tried, where rounding alone makes it another."""
        return next((one.factor for one in self._runs if math.isclose(one.factor, factor)), factor)

    def tried(self, steps: int) -> list[Tried]:
        return [one for one in self.report.tried if one.steps == steps]

    def beyond(self, steps: int, longest: float) -> list[float]:
        """Factors beyond those that were tried, where the best one lies at an end; none after some decades."""
        found = self.tried(steps)
        best, lowest, highest = best_factor(found), found[0].factor, found[-1].factor
        if best is None or len(found) > MOST:
            return []
        if best.factor == highest:
            return [factor for factor in (highest * STEP, highest * STEP**2) if factor <= longest]
        return [lowest / STEP**2, lowest / STEP] if best.factor == lowest else []

    def answered(self) -> Report:
        pictures, whole = self._short.pictures, self._short.whole
        steps = max(one.steps for one in self._runs)
        found = self.tried(steps)
        best = best_factor(found)
        if best is None:
            return self._unknown(Sentence("finder.nothing_seen", steps=steps))
        option, rate = next(iter(self.report.rates.items()))
        there = rate_text(two_digits(rate * best.factor))
        if best.factor == found[0].factor:
            return self._unknown(Sentence("finder.at_the_bottom", option=Field(option), rate=there))
        if best.factor == found[-1].factor:
            return self._unknown(Sentence("finder.at_the_top", option=Field(option), rate=there))
        runs = [one for one in self._runs if one.steps == steps]
        between = range_of(runs, pictures, whole, self._short.job.training.seed)
        if math.log10(between.high / between.low) > WIDEST:
            low, high = (rate_text(two_digits(rate * one)) for one in (between.low, between.high))
            return self._unknown(Sentence("finder.too_wide", low=low, high=high, option=Field(option)))
        return replace(self.report, range=between)

    def _unknown(self, reason: Sentence) -> Report:
        return replace(self.report, unknown=reason)


class ShortRuns:
    """Runs of a job from the same start. What they learn is taken back by the next one."""

    def __init__(self, run: Run, prepared: Prepared) -> None:
        self._run, self._prepared = run, prepared
        self._model, self.job = run.place.model, run.plan.job
        self._recipe = prepared.state.recipe
        self._dtype = prepared.options.dtype
        self._start = [one.detach().to("cpu", copy=True) for one in parameters(self._recipe)]
        samples = prepared.source.encoded.samples
        self.held = [] if "before" in {one.role for one in samples} else held_back(samples, self.job.training.seed)
        learned = [index for index, one in enumerate(samples) if one.role == "learn"]
        self.probe = make_probe(
            prepared.source,
            self.held or learned,
            PAIRS,
            self._objective(),
            self.job.noise,
            self.job.training.batch_size,
        )
        self.whole = prepared.facts.total_steps
        self.steps = min(self.whole, LONGEST, max(SHORTEST, self.whole // SHARE))
        self.pictures = _pictures(samples, self.probe)
        self._before = self._answers()
        self._losses = self.probe.losses(self._before)

    def _answers(self) -> list[torch.Tensor]:
        return self.probe.answers(self._model, self._prepared.captions, self._dtype)

    def _objective(self) -> Objective:
        job = self.job
        return Objective(schedule_of(self._model.schedule, job), job.noise, job.loss, job.masks)

    def restore(self) -> None:
        """What learns is what it was before the first run."""
        self._recipe.load_state_dict({"parameters": self._start})
        for parameter in parameters(self._recipe):
            parameter.requires_grad_(True)
            parameter.grad = None

    def run(self, factor: float, steps: int, seed: int, stopping: Callable[[], bool]) -> Short | None:
        """One of them with `factor` on all rates; None if it was stopped. One whose numbers overflow is `lost`."""
        self.restore()
        job = shortened(self.job, steps, self.whole, seed)
        source = self._source(job)
        groups = [{**group, "lr": group["lr"] * factor} for group in self._recipe.groups()]
        optimizer = make_optimizer(groups, job.optimizer)
        state = TrainState(
            self._recipe,
            optimizer,
            loss_scaler(self._model.device, self._dtype),
            torch.Generator().manual_seed((job.training.seed + 1) % 2**32),
            self._objective(),
        )
        self._run.prepared = replace(self._prepared, state=state)
        rates = LearningRates(optimizer, job.optimizer, steps, source.order.base_steps())
        options = replace(self._prepared.options, total_steps=steps)
        own_devices = [self._model.device] if self._model.device.type == "cuda" else []
        captions = self._prepared.captions
        try:
            with torch.random.fork_rng(own_devices), ahead(source.steps()) as drawn:
                train(self._model, captions, drawn, state, rates, options, lambda done: None, stopping)
            if stopping():
                return None
            with state.as_saved():
                after = self._answers()
        except NumericalError:
            return Short(factor, steps, seed, None)
        finally:
            forget_state(optimizer)  # what is paged is freed by nothing else
        gains = (self._losses - self.probe.losses(after)) / self._losses.mean()
        return Short(factor, steps, seed, gains if bool(gains.isfinite().all()) else None, _moved(self._before, after))

    def _source(self, job: JobConfig) -> PictureSource:
        """As the job shows its pictures, but for those that are held back."""
        source, held = self._prepared.source, set(self.held)
        shown = (
            Shown(one.role, 0, one.target) if index in held else one for index, one in enumerate(source.order.pictures)
        )
        return replace(source, order=Order(job, source.order.kind, tuple(shown)))


def held_back(samples: Sequence[Sample], seed: int) -> list[int]:
    """Indices of the pictures to judge by, a share of each folder's; none where there are few pictures.

    A picture that is trained at several sizes is held back at all of them.
    """
    folders: dict[Path, list[Path]] = {}
    for path, folder in {one.path: one.path.parent for one in samples if one.role == "learn"}.items():
        folders.setdefault(folder, []).append(path)
    count = sum(len(own) for own in folders.values())
    if count < ENOUGH:
        return []
    share, generator = min(HELD_SHARE, HELD_MOST / count), torch.Generator().manual_seed((seed + 5) % 2**32)
    chosen: set[Path] = set()
    for own in folders.values():
        wanted = min(max(1, round(share * len(own))), len(own) - 1)
        chosen |= {own[index] for index in torch.randperm(len(own), generator=generator)[:wanted].tolist()}
    return [index for index, one in enumerate(samples) if one.path in chosen and one.role == "learn"]


def shortened(job: JobConfig, steps: int, whole: int, seed: int) -> JobConfig:
    """The job as a run of a few steps: what is said in steps becomes a share."""
    rise = warmup_steps(job.optimizer, whole) / whole
    return msgspec.structs.replace(
        job,
        training=msgspec.structs.replace(job.training, max_steps=steps, seed=(job.training.seed + seed) % 2**32),
        optimizer=msgspec.structs.replace(job.optimizer, warmup=rise),
        difference=msgspec.structs.replace(job.difference, base_steps=0),
    )


def prepare_search(job: JobConfig, host: Host) -> Plan:
    """The plan of a job whose rate is searched. It needs no name, and what it would write plays no part.

    Raises a `TrainerError` where the job cannot run, or its optimizer has no rate of its own to find.
    """
    if finds_rate(job.optimizer):
        raise ConfigError("finder.finds_itself", field="optimizer.name", optimizer=called(job.optimizer))
    try:
        check_names(job, kind_of(job))
    except ConfigError:
        job = with_a_name(job)
    job = msgspec.structs.replace(
        job,
        output=msgspec.structs.replace(job.output, folder="", existing="number"),
        dataset=msgspec.structs.replace(job.dataset, cache="memory"),
        optimizer=msgspec.structs.replace(job.optimizer, ema=False),  # an average of a few steps is their start
    )
    plan = prepare(job, host)
    return replace(plan, notes=tuple(one for one in plan.notes if one.code != "name.numbered"))


def search(plan: Plan, host: Host, control: Control, emit: ev.Listener) -> None:
    """Look for the rate of a plan, to the end or to a stop; the last `Found` is the answer. Raises a `TrainerError`."""
    run_plan(plan, host, control, emit, Search, title="Finding a learning rate")


def rates_of(plan: Plan) -> dict[str, float]:
    """The learning rates of a job by option, those that are above 0."""
    paths = dict.fromkeys((*plan.kind.all_rates, *(path for path in SECOND_RATES if path in plan.kind.options)))
    return {path: rate for path in paths if (rate := float(option_of(plan.job, path))) > 0}


def near(factor: float) -> list[float]:
    """What is tried in the second round."""
    return [factor * STEP**place for place in range(-2, 3)]


def told(report: Report) -> Sentence:
    """The report in a sentence."""
    if report.range is None:
        assert report.unknown is not None
        return Sentence("finder.unknown", reason=report.unknown)
    (option, rate), found = next(iter(report.rates.items())), report.range
    low, middle, high = (rate_text(two_digits(rate * one)) for one in (found.low, found.middle, found.high))
    return Sentence("finder.found", option=Field(option), low=low, middle=middle, high=high, sure=f"{found.sure:.0%}")


def _pictures(samples: Sequence[Sample], probe: Probe) -> Pictures:
    """A picture that is trained at several sizes is one."""
    paths = list(dict.fromkeys(one.path for one in samples))
    folders = list(dict.fromkeys(path.parent for path in paths))
    own = [samples[index].path for index in probe.pictures]
    return Pictures(
        torch.tensor([paths.index(path) for path in own]), torch.tensor([folders.index(path.parent) for path in own])
    )


def _moved(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """By which share of their size answers have changed."""
    change = sum(float((new - old).square().sum()) for old, new in zip(before, after, strict=True))
    return math.sqrt(change / max(sum(float(old.square().sum()) for old in before), 1e-30))
