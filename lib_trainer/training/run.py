"""A run from a checked job to its file: lease, model, data, loop, previews, saving, and what is kept when it fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from lib_trainer import events as ev
from lib_trainer.config import JobConfig
from lib_trainer.dataset.batches import FixedSize
from lib_trainer.dataset.latents import DiskStore, Encoded, LatentStore, MemoryStore, encode_pictures
from lib_trainer.dataset.scan import Sample, Scan, scan_folder
from lib_trainer.errors import MemoryExhausted, Problems, SaveError, TrainerError
from lib_trainer.memory import is_out_of_memory
from lib_trainer.ports import Host, Lease, LoadedModel, PreviewRequest, TrainingState
from lib_trainer.training.captions import CachedCaptions, CaptionSource, LiveCaptions
from lib_trainer.training.card import write_card
from lib_trainer.training.checks import NAMES, check_job, output_path, result_path, step_path, with_a_name
from lib_trainer.training.failures import UnexpectedError, what_to_lower
from lib_trainer.training.kinds import TRAINING_KINDS
from lib_trainer.training.loop import LoopOptions, train
from lib_trainer.training.memory_need import memory_warning
from lib_trainer.training.metadata import RunFacts, run_metadata
from lib_trainer.training.optimizers import OPTIMIZERS, LearningRates
from lib_trainer.training.pictures import PictureSource
from lib_trainer.training.precision import autocast, resolve_precision
from lib_trainer.training.prior import before_samples, class_samples, wants_class_pictures
from lib_trainer.training.recipes import Recipe, parameters
from lib_trainer.training.results import Settled, check_replaced, discard, is_of_step, settle
from lib_trainer.training.session import Session
from lib_trainer.training.words import CaptionMaker, caption_maker, word_names, word_path

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
    notes: tuple[str, ...] = ()


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
    warning = memory_warning(job, host)
    warnings, notes = ((one,) if one else () for one in (warning, settled.note))
    return Plan(job, scan, output, captions, tuple(before), warnings, settled.replaced, notes)


def run_plan(plan: Plan, host: Host, control: ev.Control, emit: ev.Listener) -> None:
    """Run to the end, to a stop, or to an error, which is raised after everything has been put back.

    Emits `Finished` at the end. A `TrainerError` carries the file with the last good weights in `kept`.
    """
    for warning in plan.warnings:
        emit(ev.Message(warning, "warning"))
    for skipped in plan.scan.skipped:
        emit(ev.Message(f"Skipped {skipped.path}: {skipped.reason}", "warning"))
    for note in (*plan.notes, *plan.scan.notes):
        emit(ev.Message(note))
    emit(ev.Phase("Waiting for the queue"))
    with host.lease(f"Training {plan.job.output.name}") as lease:
        if control.stopping:
            result = ev.Finished(0, None, stopped=True)
        else:
            result = Run(plan, host, host.model(), lease, control, emit).execute()
    emit(result)


class Run:
    """One run inside a lease."""

    def __init__(
        self, plan: Plan, host: Host, model: LoadedModel, lease: Lease, control: ev.Control, emit: ev.Listener
    ) -> None:
        self.plan, self.job, self.output = plan, plan.job, plan.output
        self.host, self.model, self.lease, self.control, self.emit = host, model, lease, control, emit
        self.dtype = resolve_precision(self.job.training.precision, model.device)
        self.step = self.epoch = 0
        self.replaced = list(plan.replaced)
        self.cover: Image.Image | None = None
        self.last_saved: tuple[int, Path] | None = None
        self.recipe: Recipe
        self.facts: RunFacts

    def execute(self) -> ev.Finished:
        """Prepare, train, save. Whatever is raised, the model is its host's again and the weights so far are kept."""
        try:
            check_replaced(self.plan.replaced, self.model)
            samples = [*self.plan.scan.samples, *self.plan.before, *self._class_pictures()]
            self.recipe = TRAINING_KINDS[self.job.network.kind].make(self.job, self.host, self.model)
            state = TrainingState(
                self.dtype,
                self.job.training.gradient_checkpointing,
                self.recipe.trains_text_encoder,
                eight_bits=self.job.training.weights == "fp8",
            )
            with Session(self.model, self.recipe, state) as session:
                encoded = self._encode_pictures(samples)
                source = PictureSource(self.job, encoded, self.plan.captions, self.model.latent_scale)
                captions = self._captions(source)
                if not self.stopping():
                    session.train(text_encoder=isinstance(captions, LiveCaptions))
                    self._train(source, captions, session)
            if self.step == 0:
                return ev.Finished(0, None, stopped=True)
            self._save(self.output, final=True)
            result = result_path(self.output, self.job)
            self._tell_host(result)
            return ev.Finished(self.step, result, stopped=self.step < self.facts.total_steps)
        except Exception as error:
            failure = self._explain(error)
            failure.kept = self._keep()
            if failure.kept is not None:
                self._tell_host(failure.kept)
            if failure is error:
                raise
            raise failure from error

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

    def _warn(self, text: str) -> None:
        self.emit(ev.Message(text, "warning"))

    def _tell_host(self, path: Path) -> None:
        """A list that cannot be read anew is a warning: the file is there."""
        try:
            self.host.added(path)
        except Exception as error:
            logger.warning("The host could not take up %s", path, exc_info=True)
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
            self.emit(ev.Message(f"Skipped {skipped.path}: {skipped.reason}", "warning"))
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
            job,
            self.model,
            self.plan.scan,
            source.encoded,
            total,
            source.batches_per_epoch(),
            precision,
            self.recipe,
        )
        optimizer = OPTIMIZERS[job.optimizer.name](self.recipe.groups(), job.optimizer)
        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.model.device)
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
        self.step, self.epoch = done.step, done.epoch
        if done.applied:
            self.recipe.after_step()
        self.emit(done)
        self.lease.progress(done.step, done.total_steps, f"loss {done.loss:.4f}")
        last = done.step == done.total_steps
        every, save_every = self.job.preview.every, self.job.output.save_every
        due = bool(self.job.preview.prompt and every and (done.step % every == 0 or last))
        if (due or self.control.take_sample()) and not self.stopping():
            self._preview(session)
        if not last and (self.control.take_save() or (save_every and done.step % save_every == 0)):
            self._save_between()

    def _save_between(self) -> None:
        """A full disk must not cost what is still to be learned: the run goes on, and its end saves again."""
        try:
            self._save(step_path(self.output, self.step), final=False)
        except SaveError as error:
            logger.warning("%s", error)
            self.emit(ev.Message(str(error), "warning"))

    def _preview(self, session: Session) -> None:
        """A preview that fails is a warning: hours of training are worth more than a picture."""
        preview, data = self.job.preview, self.job.dataset
        request = PreviewRequest(
            prompt=preview.prompt or data.trigger_word or " ".join(word_names(self.job)),
            negative_prompt=preview.negative_prompt,
            width=preview.width or data.width,
            height=preview.height or data.height,
            steps=preview.steps,
            cfg_scale=preview.cfg_scale,
            sampler=preview.sampler,
            seed=preview.seed,
            clip_skip=self.job.training.clip_skip,
        )
        image: Image.Image | None = None
        with session.generating():
            try:
                image = self.host.preview(request)
            except Exception as error:
                logger.warning("The preview failed", exc_info=True)
                self.emit(ev.Message(f"The preview of step {self.step} failed: {error}", "warning"))
        if image is not None:
            self.cover = image
            self.emit(ev.PreviewMade(self.step, image, request.prompt))

    def _save(self, path: Path, *, final: bool) -> None:
        facts = run_metadata(self.facts, step=self.step, epoch=self.epoch, cover=self.cover)
        self._write(path, facts, final=final)
        result = result_path(path, self.job)
        self.last_saved = (self.step, result)
        if final:
            names = word_names(self.job) if self.job.network.kind == "embedding" else []
            for one in [word_path(path, name, self.job) for name in names] or [path]:
                write_card(one, self.job, self.model.family, self.cover)
        self.emit(ev.Saved(self.step, result, final))

    def _write(self, path: Path, facts: dict[str, str], *, final: bool) -> None:
        """What is to be replaced is moved away when its successor is there, and not before."""
        due = [old for old in self.replaced if final or is_of_step(old, self.step)]
        discard(due)
        self.replaced = [old for old in self.replaced if old not in due]
        self.recipe.save(path, facts, overwrite=False)

    def _keep(self) -> Path | None:
        """After a failure: the file with the newest good weights, written now if there is none of this step.

        Also after a file could not be written: its name may be taken now, and this one is another.
        """
        written = None if self.last_saved is None else self.last_saved[1]
        if self.step == 0 or (self.last_saved is not None and self.last_saved[0] == self.step):
            return written
        if not _all_finite(self.recipe):
            return written
        try:
            path = step_path(self.output, self.step)
            facts = run_metadata(self.facts, step=self.step, epoch=self.epoch, cover=self.cover)
            self._write(path, facts, final=False)
        except Exception:
            logger.warning("The weights of step %d could not be kept", self.step, exc_info=True)
            return written
        return result_path(path, self.job)

    def _explain(self, error: Exception) -> TrainerError:
        if not is_out_of_memory(error):
            return error if isinstance(error, TrainerError) else UnexpectedError(f"{type(error).__name__}: {error}")
        where = f"at step {self.step + 1}" if self.step else "before the first step was done"
        return MemoryExhausted(
            f"The {self.model.device.type} ran out of memory {where}: lower {what_to_lower(self.job)}."
        )

    def _phase(self, name: str) -> _PhaseProgress:
        return _PhaseProgress(self, name)


@dataclass(frozen=True)
class _PhaseProgress:
    run: Run
    name: str

    def __call__(self, done: int, total: int) -> None:
        self.run.emit(ev.Phase(self.name, done, total))
        self.run.lease.progress(0, 0, f"{self.name} {done}/{total}")


def _all_finite(recipe: Recipe) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in parameters(recipe))
