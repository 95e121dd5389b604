"""An encoder or decoder as a plain list of steps, whatever library its modules come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from lib_trainer.refusals import TrainerError


class UnsupportedVae(TrainerError):
    """This module is not a KL VAE's encoder or decoder as Rombach et al. 2022 (arXiv:2112.10752) build it."""


@dataclass(frozen=True)
class Conv:
    """A convolution of stride 1 that keeps the size, 3×3 or 1×1; or, in `Down`, 3×3 of stride 2.

    `weight` (C_out, C_in, k, k), `bias` (C_out) or None; `circular` pads by wrapping round in both directions.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    circular: bool = False

    @property
    def out(self) -> int:
        return self.weight.shape[0]

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def macs(self) -> int:
        """Multiply-adds for one output pixel."""
        return self.weight.numel()

    def to(self, dtype: torch.dtype) -> Conv:
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, weight=self.weight.to(dtype), bias=bias)


@dataclass(frozen=True)
class Norm:
    """GroupNorm (Wu & He 2018, arXiv:1803.08494); `weight` and `bias` (C)."""

    groups: int
    eps: float
    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Plain:
    """A convolution alone: the first of a network."""

    conv: Conv


@dataclass(frozen=True)
class Residual:
    """x + conv2(SiLU(norm2(conv1(SiLU(norm1(x)))))), with a convolution in place of x where channels change."""

    norm1: Norm
    conv1: Conv
    norm2: Norm
    conv2: Conv
    shortcut: Conv | None


@dataclass(frozen=True)
class Attention:
    """x + proj(attention(norm(x))): one head over all pixels; all four are 1×1 convolutions."""

    norm: Norm
    query: Conv
    key: Conv
    value: Conv
    proj: Conv


@dataclass(frozen=True)
class Up:
    """Nearest neighbour ×2, then a 3×3 convolution."""

    conv: Conv


@dataclass(frozen=True)
class Down:
    """One zero column on the right and one zero row below, then a 3×3 convolution of stride 2."""

    conv: Conv


@dataclass(frozen=True)
class Out:
    """conv(SiLU(norm(x))), the end of a network."""

    norm: Norm
    conv: Conv
    tanh: bool = False


Step = Plain | Residual | Attention | Up | Down | Out


@dataclass(frozen=True)
class Network:
    """`steps` in order; `kind` is "encoder" or "decoder"."""

    kind: str
    steps: tuple[Step, ...]

    @property
    def channels(self) -> int:
        """Channels of what goes in."""
        first = self.steps[0]
        assert isinstance(first, Plain)
        return first.conv.inputs

    @property
    def widest(self) -> int:
        """Channels of the widest map as large as the picture: 256 in SD1's decoder, 128 in its encoder."""
        ups = [step for step in self.steps if isinstance(step, Up)]
        first = self.steps[0]
        assert isinstance(first, Plain)
        return ups[-1].conv.out if ups else first.conv.out

    @property
    def dtype(self) -> torch.dtype:
        first = self.steps[0]
        assert isinstance(first, Plain)
        return first.conv.weight.dtype

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """(B, C, H, W) of the result for an input of `shape`; odd sizes are halved downwards, as ldm does."""
        batch, channels, height, width = shape
        for step in self.steps:
            if isinstance(step, Up):
                height, width = 2 * height, 2 * width
            elif isinstance(step, Down):
                height, width = height // 2, width // 2
            if isinstance(step, Out):
                channels = step.conv.out
        return batch, channels, height, width

    def to(self, dtype: torch.dtype) -> Network:
        """Convolutions in `dtype`; norms as they are, because their affine is computed in fp32."""
        return replace(self, steps=tuple(_cast(step, dtype) for step in self.steps))


def next_norm(step: Step | None) -> Norm | None:
    """The norm through which a step looks at its input, for which statistics must be there."""
    if isinstance(step, Residual):
        return step.norm1
    return step.norm if isinstance(step, (Attention, Out)) else None


def _cast(step: Step, dtype: torch.dtype) -> Step:
    changed: dict[str, Any] = {name: one.to(dtype) for name, one in vars(step).items() if isinstance(one, Conv)}
    return replace(step, **changed)
