"""From the pictures of a plan to a run whose steps may begin: what is encoded, and what learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lib_trainer.dataset.encoded import Encoded
from lib_trainer.dataset.encoding import encode_pictures
from lib_trainer.dataset.latent_cache import reading
from lib_trainer.dataset.latent_store import DiskStore, LatentStore, MemoryStore
from lib_trainer.dataset.scan import Sample, listed
from lib_trainer.dataset.variations import ALONE, Variations
from lib_trainer.kinds.recipe import Recipe, parameters
from lib_trainer.refusals import DatasetError, Sentence
from lib_trainer.training.average import Average
from lib_trainer.training.captions import CachedCaptions, CaptionSource, LiveCaptions
from lib_trainer.training.course import Course
from lib_trainer.training.loop import LoopOptions
from lib_trainer.training.measuring import Measuring, make_measuring, measured_captions, measured_pictures
from lib_trainer.training.metadata import RunFacts
from lib_trainer.training.objective import Objective
from lib_trainer.training.optimizers import make_optimizer, wants_average
from lib_trainer.training.order import Order, Shown
from lib_trainer.training.pictures import PictureSource
from lib_trainer.training.place import Place, Progress
from lib_trainer.training.plan import Plan
from lib_trainer.training.precision import autocast
from lib_trainer.training.prediction import schedule_of
from lib_trainer.training.preservation import Keeper
from lib_trainer.training.prior import class_samples
from lib_trainer.training.scaling import loss_scaler
from lib_trainer.training.schedules import LearningRates
from lib_trainer.training.session import Session
from lib_trainer.training.sizes import holes_of, variations_of
from lib_trainer.training.state import TrainState


@dataclass(frozen=True)
class Prepared:
    """A run whose steps may begin."""

    facts: RunFacts
    source: PictureSource
    captions: CaptionSource
    state: TrainState
    rates: LearningRates
    options: LoopOptions
    measuring: Measuring | None = None

    @property
    def recipe(self) -> Recipe:
        return self.state.recipe


@dataclass(frozen=True)
class Preparation:
    """What stands between a plan and its first step."""

    plan: Plan
    place: Place
    progress: Progress

    def prepared(
        self, samples: Sequence[Sample], recipe: Recipe, session: Session, dtype: torch.dtype
    ) -> Prepared | None:
        """Encode what the steps need; None if the run was stopped meanwhile."""
        plan, model, progress = self.plan, self.place.model, self.progress
        progress.point = "encoding"
        encoded = self._encode_pictures(samples, Sentence("phase.latents"), variations_of(plan.job))
        self._check_readable(samples, encoded)
        shown = zip(encoded.samples, encoded.targets, strict=True)
        order = Order(plan.job, plan.kind, tuple(Shown(one.role, one.repeats, target) for one, target in shown))
        source = PictureSource(order, encoded, plan.captions, model.latent_scale, plan.plain)
        progress.point = "captions"
        captions = self._captions(source, recipe, dtype)
        measuring = self._measuring(encoded, recipe, dtype, order.base_steps())
        if self.place.stopping():
            return None
        progress.point = "setup"
        session.train(text_encoder=captions.encodes)
        job, total = plan.job, order.total_steps()
        precision = str(dtype).removeprefix("torch.")
        schedule = schedule_of(model.schedule, job)
        facts = RunFacts(plan, model, schedule, encoded, total, order.batches_per_epoch(), precision, recipe)
        optimizer = make_optimizer(recipe.groups(), job.optimizer)
        noise = torch.Generator().manual_seed(job.training.seed + 1)
        begins = order.base_steps()
        ema = job.optimizer.ema_decay
        average = Average(parameters(recipe), ema, begins) if wants_average(job.optimizer) else None
        objective = Objective(schedule, job.noise, job.loss, job.masks)
        course = Course(begins)
        state = TrainState(recipe, optimizer, loss_scaler(model.device, dtype), noise, objective, average, course)
        rates = LearningRates(optimizer, job.optimizer, total, begins)
        keeper = Keeper.of(job, plan.kind, recipe, objective)
        options = LoopOptions(total, dtype, job.optimizer.max_gradient_norm, plan.kind.rates, keeper)
        return Prepared(facts, source, captions, state, rates, options, measuring)

    def _check_readable(self, samples: Sequence[Sample], encoded: Encoded) -> None:
        """Of what a step needs, something must be there: an epoch without pictures would never end."""
        left = {one.role for one in encoded.samples}
        for role in ("learn", "before"):
            wanted = [one for one in samples if one.role == role]
            if wanted and role not in left and not encoded.stopped:
                pictures = listed([one for one in encoded.skipped if any(one.path == each.path for each in wanted)])
                raise DatasetError("pictures.none_readable", count=len(wanted), pictures=pictures)

    def class_pictures(self) -> list[Sample]:
        if not self.plan.class_pictures:
            return []
        place = self.place
        phase = place.phase(Sentence("phase.class_pictures"))
        return class_samples(self.plan.job, place.host, place.model, phase, place.stopping, place.warn)

    def _measuring(self, trained: Encoded, recipe: Recipe, dtype: torch.dtype, begins: int) -> Measuring | None:
        """None where nothing is measured, or the run was stopped."""
        plan, model = self.plan, self.place.model
        if not plan.held.pictures or self.place.stopping():
            return None
        samples = measured_pictures(plan, trained)
        encoded = self._encode_pictures(samples, Sentence("phase.held_out"), ALONE)
        if encoded.stopped:
            return None
        live = self._live()
        captions: CaptionSource = live
        if not recipe.trains_text_encoder:
            captions = measured_captions(plan, encoded.samples, live, model.device, dtype, self.place.stopping)
        return make_measuring(plan, encoded, captions, model.latent_scale, begins)

    def _encode_pictures(self, samples: Sequence[Sample], phase: Sentence, variations: Variations) -> Encoded:
        data, model = self.plan.job.dataset, self.place.model
        fingerprint = model.vae_fingerprint()
        if data.cache == "disk" and not fingerprint:
            self.place.say(Sentence("run.changed_vae"))
        store: LatentStore = MemoryStore()
        if data.cache == "disk" and fingerprint:
            folder = self.place.host.cache_folder()
            store = DiskStore(folder, self.progress.leaving.enter_context(reading(folder)))
        encoded = encode_pictures(
            samples,
            self.plan.sizes,
            model.encode_images,
            fingerprint,
            store,
            self.place.phase(phase),
            self.place.stopping,
            variations,
            holes_of(self.plan.job) if model.inpaints else None,
        )
        if model.vae_overflows:
            self.place.say(Sentence("run.vae_overflows", name=model.name))
        for skipped in encoded.skipped:
            self.place.warn(Sentence("run.skipped", path=skipped.path, reason=skipped.reason))
        for mask in encoded.blank:
            self.place.warn(Sentence("masks.blank", path=mask))
        return encoded

    def _live(self) -> LiveCaptions:
        training, weighted = self.plan.job.training, self.plan.captions.weighted
        return LiveCaptions(self.place.model, training.clip_skip, training.max_tokens, weighted=weighted)

    def _captions(self, source: PictureSource, recipe: Recipe, dtype: torch.dtype) -> CaptionSource:
        model, live = self.place.model, self._live()
        if recipe.trains_text_encoder:
            return live
        cached = CachedCaptions(live, encodes=source.varies)
        if cached.encodes:
            return cached
        count = len(source.encoded.samples)
        captions = [caption for index in range(count) for caption in source.captions_of(index)]
        with autocast(model.device, dtype):
            cached.fill(captions, self.place.phase(Sentence("phase.captions")), self.place.stopping)
        return cached
