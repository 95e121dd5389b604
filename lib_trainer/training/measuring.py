"""The held-out loss during a run: what is measured, when, and with which captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lib_trainer.dataset.encoded import Encoded
from lib_trainer.dataset.scan import Sample, listed
from lib_trainer.ports import LoadedModel
from lib_trainer.refusals import DatasetError
from lib_trainer.training.captions import CachedCaptions, CaptionSource, LiveCaptions
from lib_trainer.training.course import Point
from lib_trainer.training.fixed_loss import FixedLoss, fixed_captions
from lib_trainer.training.objective import Objective
from lib_trainer.training.plan import Plan
from lib_trainer.training.precision import autocast


@dataclass(frozen=True)
class Measuring:
    """`begins`: the step after which the pictures are learned that are measured."""

    held: FixedLoss
    trained: FixedLoss | None
    captions: CaptionSource
    every: int
    begins: int

    def due(self, step: int, *, epoch_ends: bool, last: bool) -> bool:
        """Whether to measure after a step: at the start, at the end, and each so many steps or after each epoch."""
        if step <= self.begins:
            return step == self.begins
        return last or (step % self.every == 0 if self.every else epoch_ends)

    def point(
        self, step: int, model: LoadedModel, objective: Objective, dtype: torch.dtype, stopping: Callable[[], bool]
    ) -> Point | None:
        """The losses of the model as it stands; None where it was stopped."""
        found = []
        for probe in filter(None, (self.held, self.trained)):
            losses = probe.losses(model, self.captions, objective, dtype, stopping)
            if losses is None:
                return None
            found.append(by_picture(losses, probe.encoded.samples))
        means = [float(one.mean()) for one in found]
        return Point(step, means[0], means[1] if len(means) > 1 else None, tuple(found[0].tolist()))


def by_picture(losses: torch.Tensor, samples: Sequence[Sample]) -> torch.Tensor:
    """Losses (N, levels) of N samples → one of each picture, fp64: one that is trained at several sizes is in them at
    each, and counts once."""
    places: dict[Path, list[int]] = {}
    for place, sample in enumerate(samples):
        places.setdefault(sample.path, []).append(place)
    own = losses.double().mean(1)
    return torch.stack([own[several].mean() for several in places.values()])


def measured_pictures(plan: Plan, trained: Encoded) -> list[Sample]:
    """Those that are to be encoded once more, without any variation; of those that are trained, what can be read."""
    readable = {sample.path for sample in trained.samples}
    return [*plan.held.pictures, *(sample for sample in plan.held.trained if sample.path in readable)]


def make_measuring(
    plan: Plan, encoded: Encoded, captions: CaptionSource, latent_scale: float, begins: int
) -> Measuring:
    """From `measured_pictures`, encoded. Raises `DatasetError` where no held-out picture could be read."""
    held = {sample.path for sample in plan.held.pictures}
    sides = [[index for index, one in enumerate(encoded.samples) if (one.path in held) == own] for own in (True, False)]
    if not sides[0]:
        raise DatasetError(
            "pictures.none_readable",
            field="validation.pictures",
            count=len(held),
            pictures=listed([one for one in encoded.skipped if one.path in held]),
        )
    probes = [_probe(plan, encoded.only(own), latent_scale) if own else None for own in sides]
    assert probes[0] is not None
    return Measuring(probes[0], probes[1], captions, plan.job.validation.every, begins)


def _probe(plan: Plan, encoded: Encoded, latent_scale: float) -> FixedLoss:
    job, own = plan.job, plan.job.validation
    told = tuple(fixed_captions(encoded.samples, plan.captions))
    return FixedLoss(encoded, told, latent_scale, own.levels, job.training.batch_size, own.seed, job.noise)


def measured_captions(
    plan: Plan,
    samples: Sequence[Sample],
    live: LiveCaptions,
    device: torch.device,
    dtype: torch.dtype,
    stopping: Callable[[], bool],
) -> CachedCaptions:
    """Encoded once, of a run that does not train the text encoder; the device must have it."""
    cached = CachedCaptions(live)
    with autocast(device, dtype):
        cached.fill(fixed_captions(samples, plan.captions), lambda done, total: None, stopping)
    return cached
