"""The loss of held-out pictures at fixed points: each at several noise levels, whatever the loss of the training is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from lib_trainer.captions.variation import AFTER_WARMUP, Moment
from lib_trainer.config import NoiseConfig
from lib_trainer.dataset.encoded import Encoded, sample_latents
from lib_trainer.dataset.scan import Sample
from lib_trainer.kinds.captions import CaptionMaker
from lib_trainer.ports import LoadedModel, Wording
from lib_trainer.training.captions import CaptionSource
from lib_trainer.training.fixed_points import FixedPoints
from lib_trainer.training.loop import Batch
from lib_trainer.training.objective import Objective


@dataclass(frozen=True)
class FixedLoss:
    """Pictures with the captions, noise and timesteps that they are measured with, always the same.

    `captions` are those of `encoded`, one each. Timesteps are spread over those of `noise`: every picture has one in
    each of `levels` equal parts of the range, and of all pictures no two have the same place in a part. Nothing of it
    hangs on `batch`, the pictures of one pass through the UNet.
    """

    encoded: Encoded
    captions: tuple[Wording, ...]
    latent_scale: float
    levels: int = 4
    batch: int = 1
    seed: int = 1
    noise: NoiseConfig = NoiseConfig()  # noqa: RUF009 - frozen

    def losses(
        self,
        model: LoadedModel,
        captions: CaptionSource,
        objective: Objective,
        dtype: torch.dtype,
        stopping: Callable[[], bool] = lambda: False,
    ) -> torch.Tensor | None:
        """(pictures, levels) fp32 on the CPU: the mean square of what the UNet is off, unweighted, whatever the loss
        of the training is; None where it was stopped."""
        timesteps = self.timesteps(len(objective.schedule.used))
        found = torch.zeros(timesteps.shape)
        for indices in self._batches():
            for level in range(self.levels):
                if stopping():
                    return None
                points = FixedPoints.covered(*self._batch(indices, level), timesteps[indices, level], objective)
                told = points.answers(model, captions, dtype)
                off = F.mse_loss(told, points.noised.target, reduction="none")
                found[indices, level] = self._means(off, indices)
        return found

    def _means(self, off: torch.Tensor, indices: list[int]) -> torch.Tensor:
        """Of each picture's errors (B, C, H, W), over what its mask says is to be learned."""
        means = []
        for one, index in zip(off, indices, strict=True):
            mask = self.encoded.mask(index)
            learned = None if mask is None or not bool(mask.sum() > 0) else mask
            means.append(one.mean() if learned is None else (one * learned).mean() / learned.mean())
        return torch.stack(means)

    def timesteps(self, total: int) -> torch.Tensor:
        """(pictures, levels) int64, of a schedule with `total` steps."""
        count, generator = len(self.encoded), self._generator("levels")
        low, high = self.noise.min_timestep, min(self.noise.max_timestep, total)
        places = torch.stack([torch.randperm(count, generator=generator) for _ in range(self.levels)], 1)
        parts = torch.arange(self.levels) * count + places
        chosen = low + (parts.double() + 0.5) / (count * self.levels) * (high - low)
        return chosen.long().clamp(max=high - 1)

    def _batches(self) -> list[list[int]]:
        sizes: dict[tuple[int, int], list[int]] = {}
        for index, target in enumerate(self.encoded.targets):
            sizes.setdefault(target, []).append(index)
        return [own[start : start + self.batch] for own in sizes.values() for start in range(0, len(own), self.batch)]

    def _generator(self, *what: object) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed} {what}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))

    def _batch(self, indices: list[int], level: int) -> tuple[Batch, torch.Tensor]:
        """Latents and noise of each picture, from generators of its own."""
        latents, noise, beside = [], [], []
        for index in indices:
            moments = self.encoded.moments(index).unsqueeze(0)
            latents.append(sample_latents(moments, self.latent_scale, self._generator("picture", index)))
            noise.append(torch.randn(latents[-1].shape, generator=self._generator("noise", index, level)))
            hole = self.encoded.hole(index)
            if hole is not None:
                rest = sample_latents(hole[1].unsqueeze(0), self.latent_scale, self._generator("hole", index))
                beside.append(torch.cat([hole[0].unsqueeze(0), rest], dim=1))
        sizes = [self.encoded.sizes[index][0] for index in indices]
        captions, holes = [self.captions[index] for index in indices], torch.cat(beside) if beside else None
        return Batch(torch.cat(latents), captions, sizes, beside=holes), torch.cat(noise)


def fixed_captions(samples: Sequence[Sample], captions: CaptionMaker) -> list[Wording]:
    """What each picture is said to show whenever it is measured: its first caption whole, with all of its tags.

    Of what is drawn (lines of a template, `{a|b}`) it is always the same, whichever pictures stand beside it.
    """
    calm = captions.calm()
    told: list[Wording] = []
    for sample in samples:
        digest = hashlib.sha256(f"{sample.path.parent.name}/{sample.path.name}".encode()).digest()
        own = int.from_bytes(digest[:8], "big")
        generator, moment = torch.Generator().manual_seed(own), Moment(0, AFTER_WARMUP, 1, own)
        first = calm.told(sample.caption, generator, moment)
        told.append((first, calm.told(sample.seconds[0], generator, moment)) if sample.seconds else first)
    return told
