"""The fixed points of a search for a learning rate: spread over what a run would show, and weighed as it weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch

from lib_trainer.captions.variation import AFTER_WARMUP, Moment
from lib_trainer.config import NoiseConfig
from lib_trainer.ports import LoadedModel
from lib_trainer.training.captions import CaptionSource
from lib_trainer.training.fixed_points import FixedPoints
from lib_trainer.training.loop import Batch
from lib_trainer.training.objective import Objective
from lib_trainer.training.pictures import PictureSource

PLASTIC = 1.32471795724474602596
"""The root of x³ = x + 1: (k/ρ, k/ρ²) mod 1 fills the square evenly (M. Roberts, "The unreasonable effectiveness of
quasirandom sequences", 2018)."""


class Probe:
    """Pairs of points; the two of a pair have opposite noise, so that what is linear in the noise falls out of their
    mean. `pictures` has the index of each point's picture, in the order of `losses`."""

    def __init__(self, objective: Objective, batches: Sequence[FixedPoints], pictures: Sequence[int]) -> None:
        self._objective, self._batches, self.pictures = objective, list(batches), tuple(pictures)

    def answers(self, model: LoadedModel, captions: CaptionSource, dtype: torch.dtype) -> list[torch.Tensor]:
        """What the UNet says at all points, batch by batch, fp32 on the CPU."""
        return [points.answers(model, captions, dtype) for points in self._batches]

    def losses(self, answers: Sequence[torch.Tensor]) -> torch.Tensor:
        """(points,) fp32: what the job minimises, at each."""
        pairs = zip(self._batches, answers, strict=True)
        return torch.cat([self._objective.measured(said, points.noised) for points, said in pairs])


def make_probe(
    source: PictureSource, indices: Sequence[int], pairs: int, objective: Objective, noise: NoiseConfig, size: int
) -> Probe:
    """`pairs` of points on the pictures of those indices, each as often as an epoch shows it, in batches of at most
    `size`, told with all their tags. All is drawn from the job's seed."""
    source = replace(source, captions=source.captions.calm())
    shown = source.order.pictures
    generator = torch.Generator().manual_seed((source.order.job.training.seed + 4) % 2**32)
    low, high = noise.min_timestep, min(noise.max_timestep, len(objective.schedule.used))
    weights = torch.tensor([float(shown[index].repeats) for index in indices], dtype=torch.float64).cumsum(0)
    places = torch.arange(1, pairs + 1, dtype=torch.float64)
    first, second = places / PLASTIC % 1, places / PLASTIC**2 % 1
    drawn = torch.searchsorted(weights, first * weights[-1], right=True).clamp(max=len(indices) - 1)
    chosen = [indices[place] for place in drawn.tolist()]
    timesteps = low + (second * (high - low)).floor().long().clamp(max=high - low - 1)
    batches, pictures = [], []
    by_size = sorted(range(pairs), key=lambda pair: (shown[chosen[pair]].target, pair))
    for _, same in groupby(by_size, key=lambda pair: shown[chosen[pair]].target):
        own, most = list(same), max(1, size // 2)
        for part in (own[start : start + most] for start in range(0, len(own), most)):
            of = [chosen[pair] for pair in part]
            batches.append(_points(source, of, timesteps[part], objective, generator))
            pictures += of + of
    return Probe(objective, batches, pictures)


def _points(
    source: PictureSource,
    indices: Sequence[int],
    timesteps: torch.Tensor,
    objective: Objective,
    generator: torch.Generator,
) -> FixedPoints:
    """Both of each pair."""
    moments = [Moment(source.order.job.training.seed, AFTER_WARMUP, 1, place) for place in range(len(indices))]
    batch = source.batch(list(indices), moments, 1.0, generator)
    noise = torch.randn(batch.latents.shape, generator=generator)
    given = (batch.weights, batch.masks, batch.beside)
    weights, masks, beside = (None if one is None else torch.cat([one] * 2) for one in given)
    both = Batch(torch.cat([batch.latents] * 2), batch.captions * 2, batch.sizes * 2, beside=beside)
    points = FixedPoints.covered(both, torch.cat([noise, -noise]), torch.cat([timesteps] * 2), objective)
    return replace(points, noised=objective.weighed(points.noised, weights, masks))
