"""A run from a checked job to its file: lease, model, data, loop, previews, saving, and what is kept when it fails."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from lib_trainer.config import JobConfig
from lib_trainer.dataset.batches import FixedSize
from lib_trainer.dataset.latents import DiskStore, Encoded, LatentStore, MemoryStore, encode_pictures
from lib_trainer.dataset.scan import Sample, Scan, scan_folder
from lib_trainer.memory import forget_peak, release
from lib_trainer.ports import Host, Lease, LoadedModel, TrainingState
from lib_trainer.refusals import Problems, SaveError, Sentence, TrainerError
from lib_trainer.training import failures
from lib_trainer.training.captions import CachedCaptions, CaptionSource, LiveCaptions
from lib_trainer.training.card import write_card
from lib_trainer.training.checks import NAMES, check_job, output_path, result_path, step_path, with_a_name
from lib_trainer.training.failures import Point, all_finite, explained
from lib_trainer.training.kinds import TRAINING_KINDS
from lib_trainer.training.loop import LoopOptions, train
from lib_trainer.training.memory_need import outlook
from lib_trainer.training.metadata import RunFacts, run_metadata
from lib_trainer.training.optimizers import OPTIMIZERS, LearningRates
from lib_trainer.training.pace import Pace
from lib_trainer.training.pictures import PictureSource
from lib_trainer.training.precision import autocast, resolve_precision
from lib_trainer.training.previews import preview_request
from lib_trainer.training.prior import before_samples, class_samples, wants_class_pictures
from lib_trainer.training.recipes import Recipe, parameters
from lib_trainer.training.results import Settled, check_replaced, discard, is_of_step, settle
from lib_trainer.training.session import Session
from lib_trainer.training.words import CaptionMaker, caption_maker, word_names, word_path
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A job that has passed every check that needs no model."""

    job: JobConfig
    scan: Scan
    output: Path
    captions: CaptionMaker
    before: tuple[Sample, ...] = ()
    warnings: tuple[str, ...] = ()
    """Sentences on what may go wrong, told when the run starts: a reckoning is no refusal."""
    replaced: tuple[Path, ...] = ()
    notes: tuple[str | Sentence, ...] = ()


def prepare(job: JobConfig, host: Host) -> Plan:
    """Check a job against its host and read its folder of pictures. Raises a `TrainerError`; touches no model.

    What is wrong in several places is told at once, as `JobErrors`.
    """
    problems, data = Problems(), job.dataset
    with problems.at():
        check_job(job, host)
    settled, output, captions = Settled(job), Path(), None
    unnamed = [field for field in NAMES if problems.of(field)]
    if not unnamed:
        with problems.at("output.name"):
            settled = settle(job, host)
            output = output_path(settled.job, host)
    job = settled.job if not unnamed else with_a_name(job)  # for what else is to be said
    with problems.at(but=unnamed and NAMES):
        host.check()
        TRAINING_KINDS[job.network.kind].check(job, host)  # may ask the host for tokens and sizes of its model
    with problems.at("dataset.template"):
        captions = caption_maker(job, host)
    with problems.at("dataset.folder"):
        trigger = data.trigger_word or " ".join(word_names(job))  # a new word is caption enough where there is none
        folder = Path(data.folder).expanduser()
        scan = scan_folder(folder, trigger_word=trigger, repeats=data.repeats, lines=data.caption_lines)
    with problems.at("difference.before"):
        before = before_samples(job, scan) if job.network.kind == "difference" and not problems.found else []
    problems.raise_if_any()
    assert captions is not None
    warning, line = (memory.warning(), memory.note()) if (memory := outlook(job, host)) else (None, None)
    warnings, notes = (tuple(filter(None, told)) for told in ([warning], [settled.note, line]))
    return Plan(job, scan, output, captions, tuple(before), warnings, settled.replaced, notes)


def run_plan(plan: Plan, host: Host, control: Control, emit: ev.Listener) -> None:
    """Run to the end, to a stop, or to an error, which is raised after everything has been put back.

    Emits `Finished` at the end. A `TrainerError` carries the file with the last good weights in `kept`. When the host
    gets its device back nothing of the run is alive any more, also after an error.
    """
    for warning in plan.warnings:
        emit(ev.Message(warning, "warning"))
    for skipped in plan.scan.skipped:
        emit(ev.Message(Sentence("run.skipped", path=skipped.path, reason=skipped.reason), "warning"))
    for note in (*plan.notes, *plan.scan.notes):
        emit(ev.Message(note))
    emit(ev.Phase("Waiting for the queue"))
    with host.lease(f"Training {plan.job.output.name}") as lease:
        if control.stopping:
            outcome: ev.Finished | TrainerError = ev.Finished(0, None, stopped=True)
        else:
            outcome = _outcome(plan, host, lease, control, emit)
    if isinstance(outcome, TrainerError):
        raise outcome
    emit(outcome)


def _outcome(plan: Plan, host: Host, lease: Lease, control: Control, emit: ev.Listener) -> ev.Finished | TrainerError:
    """How a run ends. An error comes back instead of being raised: its traceback holds this frame, which holds all."""
    run: Run | None = None
    try:
        run = Run(plan, host, host.model(), lease, control, emit)
        return run.execute()
    except Exception as error:
        point: Point = "loading" if run is None else run.point
        step = 0 if run is None else run.step
        trace = release(error, host.device())
        failure = explained(error, plan.job, host.device(), point, step)
        if failure is not error:
            failure.trace = trace if run is None else run.trace or trace
            failure.__cause__ = error
        if run is not None:
            failure.kept = run.keep()
        return failure
    finally:
        run = None


class Run:
    """One run inside a lease."""

    def __init__(
        self, plan: Plan, host: Host, model: LoadedModel, lease: Lease, control: Control, emit: ev.Listener
    ) -> None:
        self.plan, self.job, self.output = plan, plan.job, plan.output
        self.host, self.model, self.lease, self.control, self.emit = host, model, lease, control, emit
        self.dtype = resolve_precision(self.job.training.precision, model.device)
        self.step = self.epoch = 0
        self.replaced = list(plan.replaced)
        self.pace = Pace()
        self.trace = ""
        """Of the error that ended the steps, as text: a log that kept the traceback would keep all tensors."""
        self.cover: Image.Image | None = None
        self.last_saved: tuple[int, Path] | None = None
        self.point: Point = "setup"
        self.recipe: Recipe
        self.facts: RunFacts

    def execute(self) -> ev.Finished:
        """Prepare, train, save. Whatever is raised, the model is its host's again."""
        check_replaced(self.plan.replaced, self.model)
        self.point = "class pictures"
        samples = [*self.plan.scan.samples, *self.plan.before, *self._class_pictures()]
        self.point = "setup"
        self.recipe = TRAINING_KINDS[self.job.network.kind].make(self.job, self.host, self.model)
        state = TrainingState(
            self.dtype,
            self.job.training.gradient_checkpointing,
            self.recipe.trains_text_encoder,
            frozenset(self.recipe.replaces),
            eight_bits=self.job.training.weights == "fp8",
        )
        with Session(self.model, self.recipe, state) as session, self._freed():
            self._learn(samples, session)
        if self.step == 0:
            return ev.Finished(0, None, stopped=True)
        self._save(self.output, final=True)
        result = result_path(self.output, self.job)
        self._tell_host(result)
        self._finish()
        return ev.Finished(self.step, result, stopped=self.step < self.facts.total_steps)

    def _learn(self, samples: Sequence[Sample], session: Session) -> None:
        """Everything that happens while the model is held for training."""
        self.point = "encoding"
        encoded = self._encode_pictures(samples)
        source = PictureSource(self.job, encoded, self.plan.captions, self.model.latent_scale)
        self.point = "captions"
        captions = self._captions(source)
        if not self.stopping():
            self.point = "setup"
            session.train(text_encoder=isinstance(captions, LiveCaptions))
            self._train(source, captions, session)

    @contextlib.contextmanager
    def _freed(self) -> Iterator[None]:
        """After an error the step's graph, gradients and optimizer go before the model is put back: the device may be
        full, and putting back must find what it needs."""
        try:
            yield
        except Exception as error:
            for parameter in parameters(self.recipe):
                parameter.grad = None
            self.trace = release(error, self.model.device)
            raise

    def stopping(self) -> bool:
        """A host may take its Interrupt back (the WebUI does so with its next task): once seen, it holds."""
        if (reason := self.lease.interrupted) and not self.control.stopping:
            self.control.stop()
            self.emit(ev.Message(reason))
        return self.control.stopping

    def _class_pictures(self) -> list[Sample]:
        if not wants_class_pictures(self.job):
            return []
        phase = self._phase("Drawing class pictures")
        return class_samples(self.job, self.host, self.model, phase, self.stopping, self._warn)

    def _warn(self, text: str | Sentence) -> None:
        self.emit(ev.Message(text, "warning"))

    def _tell_host(self, path: Path) -> None:
        """A list that cannot be read anew is a warning: the file is there."""
        try:
            self.host.added(path)
        except Exception as error:
            logger.warning("The host could not take up %s\n%s", path, release(error, self.model.device))
            self.emit(ev.Message(f"{path.name} is saved, but its list was not read anew ({error}).", "warning"))

    def _encode_pictures(self, samples: Sequence[Sample]) -> Encoded:
        data = self.job.dataset
        fingerprint = self.model.vae_fingerprint()
        if data.cache == "disk" and not fingerprint:
            self.emit(ev.Message("Another extension has changed the VAE: encoded pictures are not kept on disk."))
        kept = data.cache == "disk" and fingerprint
        store: LatentStore = DiskStore(self.host.cache_folder()) if kept else MemoryStore()
        encoded = encode_pictures(
            samples,
            FixedSize(data.width, data.height),
            self.model.encode_images,
            fingerprint,
            store,
            self._phase("Caching latents"),
            self.stopping,
        )
        for skipped in encoded.skipped:
            self.emit(ev.Message(Sentence("run.skipped", path=skipped.path, reason=skipped.reason), "warning"))
        return encoded

    def _captions(self, source: PictureSource) -> CaptionSource:
        live = LiveCaptions(self.model, self.job.training.clip_skip, self.job.training.max_tokens)
        if self.recipe.trains_text_encoder or source.captions.varies:
            return live
        cached = CachedCaptions(live)
        sizes = source.encoded.sizes
        pairs = [(caption, size) for index, size in enumerate(sizes) for caption in source.captions_of(index)]
        with autocast(self.model.device, self.dtype):
            cached.fill(pairs, self._phase("Caching captions"), self.stopping)
        return cached

    def _train(self, source: PictureSource, captions: CaptionSource, session: Session) -> None:
        job, total = self.job, source.total_steps()
        kind = TRAINING_KINDS[job.network.kind]
        precision = str(self.dtype).removeprefix("torch.")
        self.facts = RunFacts(
            job, self.model, self.plan.scan, source.encoded, total, source.batches_per_epoch(), precision, self.recipe
        )
        optimizer = OPTIMIZERS[job.optimizer.name](self.recipe.groups(), job.optimizer)
        forget_peak(self.model.device)
        self.emit(ev.Started(total, sum(p.numel() for p in parameters(self.recipe)), self.recipe.modules()))
        own_devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(own_devices):  # a recipe's dropouts seed torch's own generator
            train(
                self.model,
                captions,
                source.steps(self.recipe),
                optimizer,
                LearningRates(optimizer, job.optimizer, total, source.base_steps()),
                LoopOptions(total, self.dtype, job.optimizer.max_gradient_norm, job.training.seed + 1, kind.rates),
                lambda done: self._after_step(done, session),
                self.stopping,
            )

    def _after_step(self, done: ev.StepDone, session: Session) -> None:
        self.step, self.epoch, self.point = done.step, done.epoch, "step"
        if done.applied:
            self.recipe.after_step()
        self.emit(done)
        if told := self.pace.told(done.seconds, self.model.device):
            lower = failures.what_to_lower(self.job, "step", self.model.device)
            self.emit(ev.Message(f"{told}: if another program uses the device, end it; otherwise {lower}.", "warning"))
        self.lease.progress(done.step, done.total_steps, f"loss {done.loss:.4f}")
        last = done.step == done.total_steps
        every, save_every = self.job.preview.every, self.job.output.save_every
        due = bool(self.job.preview.prompt and every and (done.step % every == 0 or last))
        if (due or self.control.take_sample()) and not self.stopping():
            self._preview(session)
        if not last and (self.control.take_save() or (save_every and done.step % save_every == 0)):
            self._save_between()

    def _save_between(self) -> None:
        """A full disk or memory must not cost what is still to be learned: the run goes on, and its end saves again."""
        try:
            self._save(step_path(self.output, self.step), final=False)
        except Exception as error:
            if not (isinstance(error, SaveError) or failures.short_of_memory(error)):
                raise
            failure = explained(error, self.job, self.model.device, "saving", self.step)
            logger.warning("%s\n%s", failure, release(error, self.model.device))
            self.emit(ev.Message(f"Step {self.step} was not saved. {failure}", "warning"))
        self.point = "step"

    def _preview(self, session: Session) -> None:
        """A preview that fails is a warning: hours of training are worth more than a picture."""
        request = preview_request(self.job)
        image: Image.Image | None = None
        failed = ""
        self.point = "preview"
        try:
            with session.generating():
                try:
                    image = self.host.preview(request)
                except Exception as error:
                    failed = self._preview_failed(error)
        except Exception as error:  # no room to hold the model as its host draws with it, or on the way back
            if not failures.short_of_memory(error):
                raise
            failed = self._preview_failed(error)
            session.resume()
        forget_peak(self.model.device)  # what a run is said to need is what its steps need
        if failed:
            self.emit(ev.Message(failed, "warning"))
        if image is not None:
            self.cover = image
            self.emit(ev.PreviewMade(self.step, image, request.prompt))
        self.point = "step"

    def _preview_failed(self, error: Exception) -> str:
        told: object = error
        if failures.short_of_memory(error):
            told = failures.out_of_memory(error, self.job, self.model.device, "preview", self.step)
        logger.warning("The preview failed\n%s", release(error, self.model.device))
        return f"The preview of step {self.step} failed: {told}"

    def _save(self, path: Path, *, final: bool) -> None:
        self.point = "saving"
        self._write(path, final=final)
        result = result_path(path, self.job)
        self.last_saved = (self.step, result)
        if final:
            names = word_names(self.job) if self.job.network.kind == "embedding" else []
            for one in [word_path(path, name, self.job) for name in names] or [path]:
                write_card(one, self.job, self.model.family, self.cover)
        self.emit(ev.Saved(self.step, result, final))

    def _write(self, path: Path, *, final: bool) -> None:
        """What is to be replaced is moved away when its successor is there, and not before."""
        due = [old for old in self.replaced if final or is_of_step(old, self.step)]
        discard(due)
        self.replaced = [old for old in self.replaced if old not in due]
        self.recipe.save(path, self._facts(), overwrite=False)

    def _facts(self) -> dict[str, str]:
        return run_metadata(self.facts, step=self.step, epoch=self.epoch, cover=self.cover)

    def _finish(self) -> None:
        """What a kind leaves beside its file. The file is there, so a failure is a warning; a further Stop skips it."""
        self.point, before = "difference", self.control.stops
        try:
            self.recipe.finish(self._facts(), self._phase, lambda: self.control.stops > before)
        except Exception as error:
            failure = explained(error, self.job, self.model.device, self.point, self.step)
            logger.warning("%s\n%s", failure, release(error, self.model.device))
            self.emit(ev.Message(f"The LoRA of the difference is not there: {failure}", "warning"))

    def keep(self) -> Path | None:
        """After a failure: the file with the newest good weights, written now if there is none of this step.

        Also after a file could not be written: its name may be taken now, and this one is another.
        """
        written = None if self.last_saved is None else self.last_saved[1]
        if self.step and (self.last_saved is None or self.last_saved[0] != self.step):
            try:
                if all_finite(self.recipe):
                    path = step_path(self.output, self.step)
                    self._write(path, final=False)
                    written = result_path(path, self.job)
            except Exception as error:
                logger.warning("Step %d could not be kept\n%s", self.step, release(error, self.model.device))
        if written is not None:
            self._tell_host(written)
        return written

    def _phase(self, name: str) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            self.emit(ev.Phase(name, done, total))
            self.lease.progress(0, 0, f"{name} {done}/{total}")

        return progress
