"""A set whose pictures are encoded, and latents drawn from what the VAE made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lib_trainer.dataset import masks
from lib_trainer.dataset.folder import Skipped
from lib_trainer.dataset.latent_store import MOMENT_CHANNELS, LatentStore
from lib_trainer.dataset.scan import Sample
from lib_trainer.ports import PictureSize
from lib_trainer.refusals import DatasetError


@dataclass(frozen=True)
class Encoded:
    """The pictures that could be encoded, in the order of the samples given; all tuples have one entry for each, or
    several in a row for a picture that is trained at several sizes.

    `sizes` and `keys` have one for each variation of the picture and, of a model that inpaints, each of its holes.
    `targets`: (width, height) in pixels. `skipped`: pictures that turned out broken while they were decoded. `stopped`:
    the caller asked to stop, and the rest is missing. `masks` are keys of masks, None for pictures that have none;
    `blank` are masks without anything to learn. `holes`, of a model that inpaints, are keys of a hole and of what is
    left of the picture beside it.
    """

    samples: tuple[Sample, ...]
    sizes: tuple[tuple[PictureSize, ...], ...]
    targets: tuple[tuple[int, int], ...]
    keys: tuple[tuple[str, ...], ...]
    store: LatentStore
    skipped: tuple[Skipped, ...] = ()
    stopped: bool = False
    masks: tuple[tuple[str | None, ...], ...] = ()
    blank: tuple[Path, ...] = ()
    holes: tuple[tuple[tuple[str, str], ...], ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def only(self, indices: Sequence[int]) -> Encoded:
        """Some of them, in this order."""
        return replace(
            self,
            samples=tuple(self.samples[index] for index in indices),
            sizes=tuple(self.sizes[index] for index in indices),
            targets=tuple(self.targets[index] for index in indices),
            keys=tuple(self.keys[index] for index in indices),
            masks=tuple(self.masks[index] for index in indices) if self.masks else (),
            holes=tuple(self.holes[index] for index in indices) if self.holes else (),
        )

    def moments(self, index: int, variation: int = 0) -> torch.Tensor:
        """(8, H/8, W/8) fp32 on the CPU: mean and logarithmic variance. Raises `DatasetError` if the store lost it."""
        return self._there(index, self.keys[index][variation], MOMENT_CHANNELS)

    def mask(self, index: int, variation: int = 0) -> torch.Tensor | None:
        """(1, H/8, W/8) fp32 on the CPU, from 0 to 1; None where all of the picture is to be learned."""
        key = self.masks[index][variation] if self.masks else None
        return None if key is None else self._there(index, key, masks.CHANNELS)

    def hole(self, index: int, variation: int = 0) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(1, H/8, W/8), 1 where the picture is hidden, and the moments (8, H/8, W/8) of the rest of it, as `moments`;
        None where the model does not inpaint."""
        if not self.holes:
            return None
        hole, rest = self.holes[index][variation]
        return self._there(index, hole, masks.CHANNELS), self._there(index, rest, MOMENT_CHANNELS)

    def _there(self, index: int, key: str, channels: int) -> torch.Tensor:
        found = self.store.get(key, channels)
        if found is None:
            raise DatasetError("latents.lost", path=self.samples[index].path)
        return found


def sample_latents(moments: torch.Tensor, scale: float, generator: torch.Generator) -> torch.Tensor:
    """Draw latents (B, 4, h, w) from moments (B, 8, h, w): (mean + exp(½·logvar)·ε)·scale, ε ~ N(0, 1).

    Kingma & Welling 2014, eq. 10; the logarithmic variance is clamped to [-30, 20] as in latent diffusion. ε is drawn
    on the generator's device, so that a CPU generator gives the same latents on every device.
    """
    mean, logvar = moments.chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=moments.dtype)
    return (mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * noise.to(moments.device)) * scale
