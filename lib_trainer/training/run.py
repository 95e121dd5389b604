"""A run from a plan to its file: lease, model, loop, previews, saving, and what is kept when it fails."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from lib_trainer.dataset.scan import Sample
from lib_trainer.kinds.outputs import Outputs
from lib_trainer.kinds.recipe import Recipe, parameters
from lib_trainer.memory import forget_peak, release
from lib_trainer.ports import Host, Lease, TrainingState
from lib_trainer.refusals import SaveError, Sentence, TrainerError
from lib_trainer.training import failures
from lib_trainer.training.advice import advice
from lib_trainer.training.ahead import ahead
from lib_trainer.training.card import write_card
from lib_trainer.training.failures import Point, all_finite, explained
from lib_trainer.training.graphs import graphs_for
from lib_trainer.training.loop import train
from lib_trainer.training.metadata import run_metadata
from lib_trainer.training.optimizers import forget_state
from lib_trainer.training.place import Place, Progress
from lib_trainer.training.plan import Plan
from lib_trainer.training.precision import resolve_precision
from lib_trainer.training.preparation import Preparation, Prepared
from lib_trainer.training.previewing import Previewing
from lib_trainer.training.results import check_replaced, making_way, takes_the_place_of
from lib_trainer.training.session import Session
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control

logger = logging.getLogger(__name__)


def run_plan(
    plan: Plan,
    host: Host,
    control: Control,
    emit: ev.Listener,
    make: Callable[[Plan, Place], Run] | None = None,
    *,
    title: str = "",
) -> None:
    """Run to the end, to a stop, or to an error, which is raised after everything has been put back. `make`: what is
    to run where it is no training, and its `title` in the host's queue.

    Emits `Finished` at the end. A `TrainerError` carries the file with the last good weights in `kept`. When the host
    gets its device back nothing of the run is alive any more, also after an error.
    """
    for warning in plan.warnings:
        emit(ev.Message(warning, "warning"))
    for skipped in plan.scan.skipped:
        emit(ev.Message(Sentence("run.skipped", path=skipped.path, reason=skipped.reason), "warning"))
    for caution in plan.cautions:
        emit(ev.Message(caution, "warning"))
    for note in plan.notes:
        emit(ev.Message(note))
    for told in plan.scan.notes:
        emit(ev.Message(told))
    emit(ev.Phase(Sentence("phase.queue")))
    with host.lease(title or f"Training {plan.job.output.name}", trains=True) as lease:
        if control.stopping:
            outcome: ev.Finished | TrainerError = ev.Finished(0, None, stopped=True)
        else:
            outcome = _outcome(plan, host, lease, control, emit, make or Run)
    if isinstance(outcome, TrainerError):
        try:
            raise outcome
        finally:
            del outcome  # its traceback holds this frame, and with it the host
    emit(outcome)


def _outcome(
    plan: Plan, host: Host, lease: Lease, control: Control, emit: ev.Listener, make: Callable[[Plan, Place], Run]
) -> ev.Finished | TrainerError:
    """How a run ends. An error comes back instead of being raised: its traceback holds this frame, which holds all."""
    run: Run | None = None
    try:
        run = make(plan, Place(host, host.model(), lease, control, emit))
        return run.execute()
    except Exception as error:
        point: Point = "loading" if run is None else run.progress.point
        step = 0 if run is None else run.step
        trace = release(error, host.device())
        failure = explained(error, plan.job, plan.kind, host.device(), point, step)
        if failure is not error:
            failure.trace = trace if run is None else run.progress.trace or trace
            failure.__cause__ = error
        if run is not None:
            failure.kept = run.keep()
        return failure
    finally:
        run = None


class Run:
    """One run inside a lease. `prepared` is there when the steps may begin."""

    def __init__(self, plan: Plan, place: Place) -> None:
        self.plan, self.place = plan, place
        self.progress = Progress(list(plan.replaced))
        self.previewing = Previewing(plan, place, self.progress)
        self.prepared: Prepared | None = None

    @property
    def step(self) -> int:
        """Steps that are done."""
        return 0 if self.prepared is None else self.prepared.state.step

    def execute(self) -> ev.Finished:
        """Prepare, train, save. Whatever is raised, the model is its host's again."""
        plan = self.plan
        check_replaced(plan.replaced, self.place.model)
        with self.ready() as session:
            if self.prepared is not None:
                self._train(self.prepared, session)
        if self.prepared is None or self.step == 0:
            return ev.Finished(0, None, stopped=True)
        self._save(self.prepared, plan.outputs, final=True)
        self.place.take_up(plan.outputs.result)
        if self.progress.best is not None:
            self.place.take_up(plan.outputs.best.result)
        self._finish(self.prepared)
        done_all = self.step == self.prepared.facts.total_steps
        stopped = not (done_all or self.progress.enough)
        return ev.Finished(self.step, plan.outputs.result, stopped, self._told(), self._notes(self.prepared))

    @contextlib.contextmanager
    def ready(self) -> Iterator[Session]:
        """While this holds, the model is the run's, and `prepared` is there unless the run was stopped meanwhile."""
        plan, job, model = self.plan, self.plan.job, self.place.model
        preparation = Preparation(plan, self.place, self.progress)
        self.progress.point = "class pictures"
        samples = [*plan.scan.samples, *plan.before, *self.class_pictures(preparation)]
        self.progress.point = "setup"
        recipe = plan.kind.recipe(job, model, plan.outputs)
        state = TrainingState(
            resolve_precision(job.training.precision, model.device),
            job.training.gradient_checkpointing,
            recipe.trains_text_encoder,
            frozenset(recipe.replaces),
            eight_bits=job.training.weights == "fp8",
            unet_waits=plan.unet_waits,
        )
        graphs = graphs_for(job, recipe, model.device)
        with self.progress.leaving, Session(model, recipe, state, graphs) as session, self._freed(recipe):
            self.prepared = preparation.prepared(samples, recipe, session, state.dtype)
            yield session

    def class_pictures(self, preparation: Preparation) -> list[Sample]:
        """Those that the run shows beside the others."""
        return preparation.class_pictures()

    @contextlib.contextmanager
    def _freed(self, recipe: Recipe) -> Iterator[None]:
        """The optimizer's state goes before the model is put back, after an error the step's graph and gradients too:
        the device may be full, and putting back must find what it needs."""
        try:
            yield
        except Exception as error:
            self._forget_optimizer()
            for parameter in parameters(recipe):
                parameter.grad = None
            self.progress.trace = release(error, self.place.model.device)
            raise
        self._forget_optimizer()

    def _forget_optimizer(self) -> None:
        """Beside the weights it is the largest thing that a run has, and once the weights are what is to be saved,
        nothing needs it."""
        if self.prepared is not None:
            state = self.prepared.state
            try:
                state.settle()
            except RuntimeError as error:  # the device's: what the last step has left can be kept all the same
                logger.warning("No average was taken\n%s", release(error, self.place.model.device))
            forget_state(state.optimizer)

    def _train(self, prepared: Prepared, session: Session) -> None:
        job, model, recipe = self.plan.job, self.place.model, prepared.recipe
        forget_peak(model.device)
        trained = sum(parameter.numel() for parameter in parameters(recipe))
        self.place.emit(ev.Started(prepared.options.total_steps, trained, recipe.modules()))
        own_devices = [model.device] if model.device.type == "cuda" else []
        own_random = torch.random.fork_rng(own_devices)  # a recipe's dropouts seed torch's own generator
        with own_random, ahead(prepared.source.steps(prepared.state.step + 1)) as steps:
            if not self.step:
                self._measure(prepared)
                if job.preview.at_start and job.preview.prompt and not self.place.stopping():
                    self.previewing.draw(session, self.step)
            train(
                model,
                prepared.captions,
                steps,
                prepared.state,
                prepared.rates,
                replace(prepared.options, graphs=session.graphs),
                lambda done: self._after_step(done, prepared, session),
                lambda: self.progress.enough or self.place.stopping(),
            )

    def _measure(self, prepared: Prepared, *, epoch_ends: bool = False, last: bool = False) -> None:
        """The held-out loss of what would be saved now, and what it decides. Without room for it the run goes on."""
        measuring, state, own = prepared.measuring, prepared.state, self.plan.job.validation
        if measuring is None or state.failing or not measuring.due(self.step, epoch_ends=epoch_ends, last=last):
            return
        try:
            with state.as_saved():
                dtype = prepared.options.dtype
                point = measuring.point(self.step, self.place.model, state.objective, dtype, self.place.stopping)
        except Exception as error:
            if not failures.short_of_memory(error):
                raise
            failure = self._explained(error, "measuring")
            logger.warning("%s\n%s", failure, release(error, self.place.model.device))
            self.place.warn(Sentence("run.no_room_to_measure", step=self.step, reason=failure))
            return
        if point is None:
            return
        if not math.isfinite(point.held_out):  # the training's own loss says what is wrong, if it is so there too
            self.place.warn(Sentence("run.not_measured", step=self.step))
            return
        best = state.course.put(point)
        self.place.emit(ev.Measured(point.step, point.held_out, point.trained, best))
        if best and own.keep_best:
            self._save_between(prepared, self.plan.outputs.best)
        if own.patience and state.course.since_best >= own.patience and not last:
            self.progress.enough = True

    def _notes(self, prepared: Prepared) -> tuple[Sentence, ...]:
        """What the held-out loss says of the run."""
        said = advice(prepared.state.course, self.plan.job, self.plan.kind)
        return () if said is None else (said,)

    def _told(self) -> Sentence | str:
        """How a run ended that has not done all of its steps and was not stopped."""
        best = self.prepared.state.course.best if self.prepared else None
        if not self.progress.enough or best is None:
            return ""
        told = Sentence("run.enough", step=self.step, best=best.step)
        kept = self.progress.best
        return told if kept in (None, best.step) else Sentence("run.enough_older", told=told, kept=kept)

    def _after_step(self, done: ev.StepDone, prepared: Prepared, session: Session) -> None:
        job, control, device = self.plan.job, self.place.control, self.place.model.device
        self.progress.point = "step"
        self.place.emit(done)
        if told := self.progress.pace.told(done.seconds, device):
            lower = failures.what_to_lower(job, self.plan.kind, "step", device)
            self.place.warn(Sentence("run.crawls", what=told, lower=lower))
        if session.graphs is not None and (reason := session.graphs.take_failure()):
            self.place.say(Sentence("run.not_recorded", reason=reason))
        self.place.lease.progress(done.step, done.total_steps, f"loss {done.loss:.4f}")
        self._measure(prepared, epoch_ends=done.epoch_ends, last=done.step == done.total_steps)
        last = done.step == done.total_steps or self.progress.enough
        every, save_every = job.preview.every, job.output.save_every
        due = bool(job.preview.prompt and every and (done.step % every == 0 or last))
        if (due or control.take_sample()) and not self.place.stopping():
            with prepared.state.as_saved():
                self.previewing.draw(session, self.step)
        if not last and (control.take_save() or (save_every and done.step % save_every == 0)):
            self._save_between(prepared, self.plan.outputs.of_step(self.step))

    def _save_between(self, prepared: Prepared, outputs: Outputs) -> None:
        """A full disk or memory must not cost what is still to be learned: the run goes on, and its end saves again."""
        try:
            with prepared.state.as_saved():
                self._save(prepared, outputs, final=False)
        except Exception as error:
            if not (isinstance(error, SaveError) or failures.short_of_memory(error)):
                raise
            failure = self._explained(error, "saving")
            logger.warning("%s\n%s", failure, release(error, self.place.model.device))
            self.place.warn(Sentence("run.not_saved", step=self.step, reason=failure))
        self.progress.point = "step"

    def _explained(self, error: Exception, point: Point) -> TrainerError:
        return explained(error, self.plan.job, self.plan.kind, self.place.model.device, point, self.step)

    def _save(self, prepared: Prepared, outputs: Outputs, *, final: bool) -> None:
        self.progress.point = "saving"
        if not all_finite(prepared.recipe):  # the loop looks at gradients; what their update makes is looked at here
            raise failures.not_finite(self.step, prepared.options.rate_fields)
        self._write(prepared, outputs, final=final)
        self.progress.saved = (self.step, outputs.result)
        if final:
            words = self.plan.kind.card_words(self.plan.job)
            best = self.plan.outputs.best.results if self.progress.best is not None else ()
            for path in (*outputs.results, *best):
                write_card(path, words, self.place.model.family, self.progress.cover)
        self.place.emit(ev.Saved(self.step, outputs.result, final))

    def _write(self, prepared: Prepared, outputs: Outputs, *, final: bool) -> None:
        """What is to be replaced is moved away for its successor alone, and comes back where that is not written."""
        due = [old for old in self.progress.replaced if final or takes_the_place_of(outputs, old)]
        best = outputs == self.plan.outputs.best
        with making_way(due):
            if best and not any(os.path.lexists(path) for path in outputs.results):
                self.progress.best_begun = True  # what of them is there later is this run's, also if it breaks off now
            again = best and self.progress.best_begun
            lacking = prepared.recipe.save(outputs.results, self._metadata(prepared, outputs), overwrite=again)
        if lacking is not None:
            self.place.warn(lacking)
        self.progress.replaced = [old for old in self.progress.replaced if old not in due]
        if best:
            self.progress.best = self.step

    def _metadata(self, prepared: Prepared, outputs: Outputs) -> dict[str, str]:
        """The name is the file's own, as the WebUI finds a LoRA by that too: a step's must not answer to the end's."""
        state, plan = prepared.state, self.plan
        told = run_metadata(prepared.facts, step=state.step, epoch=state.epoch, cover=self.progress.cover)
        ending = outputs.result.stem.removeprefix(plan.outputs.result.stem)
        return told | {"ss_output_name": f"{plan.job.output.name}{ending}"}

    def _finish(self, prepared: Prepared) -> None:
        """What a kind leaves beside its file. The file is there, so a failure is a warning; a further Stop skips it."""
        self.progress.point, before = "finishing", self.place.control.stops
        try:
            prepared.recipe.finish(
                self._metadata(prepared, self.plan.outputs), self.place.phase, lambda: self.place.control.stops > before
            )
        except Exception as error:
            failure = self._explained(error, self.progress.point)
            logger.warning("%s\n%s", failure, release(error, self.place.model.device))
            self.place.warn(Sentence("run.no_difference", reason=failure))

    def keep(self) -> Path | None:
        """After a failure: the file with the newest good weights, written now if there is none of this step.

        Also after a file could not be written: its name may be taken now, and this one is another.
        """
        saved, prepared = self.progress.saved, self.prepared
        written = None if saved is None else saved[1]
        if prepared is not None and self.step and (saved is None or saved[0] != self.step):
            try:
                if all_finite(prepared.recipe):
                    outputs = self.plan.outputs.of_step(self.step)
                    self._write(prepared, outputs, final=False)
                    written = outputs.result
            except Exception as error:
                logger.warning("Step %d could not be kept\n%s", self.step, release(error, self.place.model.device))
        if written is not None:
            self.place.take_up(written)
        return written
