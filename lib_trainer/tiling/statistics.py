"""GroupNorm's statistics, gathered band by band while a map is produced."""

from __future__ import annotations

import torch

from lib_trainer.tiling.network import Norm
from lib_trainer.transfer import widest_float


class Moments:
    """Mean and variance of each group over all bands seen so far.

    Bands are merged in fp64, where the device has it, by Chan, Golub & LeVeque 1983 ("Algorithms for Computing the
    Sample Variance"): unlike a pooled variance this keeps the variance of the bands' means, so it is that of the whole
    map.
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self._count = 0
        self._mean: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None

    def add(self, band: torch.Tensor) -> None:
        """Take in (B, C, h, W)."""
        _, channels, height, width = band.shape
        count = channels // self.groups * height * width
        mean, variance = group_moments(band, self.groups)
        exact = widest_float(band.device)
        mean, squares = mean.to(exact), variance.to(exact) * count
        if self._mean is None or self._squares is None:
            self._count, self._mean, self._squares = count, mean, squares
            return
        total = self._count + count
        difference = mean - self._mean
        self._mean = self._mean + difference * (count / total)
        self._squares = self._squares + squares + difference * difference * (self._count * count / total)
        self._count = total

    def affine(self, norm: Norm) -> Affine:
        """The norm as x·a + b for the map whose bands were added."""
        assert self._mean is not None and self._squares is not None, "no band was added"
        rstd = torch.rsqrt(self._squares / self._count + norm.eps)
        per_group = norm.weight.numel() // self.groups
        scale = rstd.repeat_interleave(per_group, dim=1) * norm.weight
        shift = norm.bias - self._mean.repeat_interleave(per_group, dim=1) * scale
        return Affine(scale.float()[:, :, None, None], shift.float()[:, :, None, None])


class Affine:
    """x·scale + shift, both (B, C, 1, 1) in fp32."""

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor) -> None:
        self.scale, self.shift = scale, shift

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """In fp32, whatever `x` is in."""
        if x.dtype is torch.float32:
            return torch.addcmul(self.shift, x, self.scale)
        return torch.mul(x, self.scale).add_(self.shift)

    def into(self, target: torch.Tensor, x: torch.Tensor) -> None:
        """As a call, rounded into `target`; without an intermediate where both are fp32."""
        if x.dtype is torch.float32 and target.dtype is torch.float32:
            torch.addcmul(self.shift, x, self.scale, out=target)
        else:
            target.copy_(self(x))


def group_moments(band: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance, each (B, groups) in fp32, of (B, C, h, W)."""
    batch, channels, height, width = band.shape
    if band.device.type == "cpu" and band.dtype is torch.float32:
        # the kernel behind group_norm is the only vectorised one here: var_mean takes twice as long
        tiny = 1e-12
        _, mean, rstd = torch.native_group_norm(
            band.contiguous(), None, None, batch, channels, height * width, groups, tiny
        )
        return mean, (rstd.double().pow(-2) - tiny).clamp_(min=0).float()
    flat = band.reshape(batch, groups, -1).float()
    variance, mean = torch.var_mean(flat, dim=2, correction=0)
    return mean, variance
