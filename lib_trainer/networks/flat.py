"""LoRA adapters whose parameters lie side by side in one buffer.

An optimizer, clipping and the cast to a run's precision then touch one tensor where there were hundreds of small ones,
whose handling costs a fast card more time than the arithmetic does.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from lib_trainer.transfer import is_recorded


class Flat:
    """Moves parameters, all of one dtype and device, into one buffer, in their order.

    `tensors` are the parameters anew, views of the buffer. `leaves` is what gradients arrive at and an optimizer is
    given: the buffer alone where `whole`, else `tensors`, for optimizers whose rules look at each tensor.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, whole: bool) -> None:
        self._buffer = torch.cat([parameter.detach().flatten() for parameter in parameters])
        self._sizes = [parameter.numel() for parameter in parameters]
        parts = zip(self._buffer.split(self._sizes), parameters, strict=True)
        self.tensors = [nn.Parameter(part.view(old.shape), requires_grad=not whole) for part, old in parts]
        self.leaves = [nn.Parameter(self._buffer)] if whole else self.tensors
        self._shapes = [_as_matrix(one.shape) for one in self.tensors]
        self._working: _Working | None = None

    def learn(self, on: bool) -> None:
        """Whether gradients arrive."""
        for leaf in self.leaves:
            leaf.requires_grad_(on)

    def working(self, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Copies of all tensors in `dtype`, in their order; 1×1 kernels as matrices.

        Made once and shared by all layers until the backward pass through them, or a change of the parameters. A pass
        that a card records makes its own: it must read no others, and they hold nothing before it is repeated. A host
        may call layers from another thread meanwhile: what was found or made here is what is given.
        """
        graph = torch.is_grad_enabled() and self.leaves[0].requires_grad
        key = (dtype, graph, self._buffer._version, is_recorded(self._buffer.device))
        working = self._working
        if working is None or working.key != key:
            working = self._working = _Working(key, Gathered.apply(weakref.ref(self), dtype, *self.leaves))
        return working.views

    def forget(self) -> None:
        """Let go of the working copies."""
        self._working = None

    def copies(self, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        parts = self._buffer.to(dtype, copy=True).split(self._sizes)
        return tuple(part.view(shape) for part, shape in zip(parts, self._shapes, strict=True))

    def gradients(self, own: Sequence[torch.Tensor | None]) -> Sequence[torch.Tensor]:
        """What arrives at `leaves` from gradients of the copies; None is of a layer that was not used."""
        arrived = next(one for one in own if one is not None)
        parts = [arrived.new_zeros(n) if one is None else one.flatten() for one, n in zip(own, self._sizes)]
        whole = torch.cat(parts).to(self._buffer.dtype)
        if self.leaves is not self.tensors:
            return [whole]
        return [part.view(one.shape) for part, one in zip(whole.split(self._sizes), self.tensors, strict=True)]


@dataclass(frozen=True)
class _Working:
    key: tuple[torch.dtype, bool, int, bool]
    views: tuple[torch.Tensor, ...]


class Gathered(torch.autograd.Function):
    """From the leaves of a `Flat` to its working copies, in one step each way."""

    @staticmethod
    def forward(ctx: Any, flat: weakref.ref[Flat], dtype: torch.dtype, *leaves: torch.Tensor) -> Any:
        ctx.flat = flat  # a strong reference would go in a circle: the flat keeps the copies, and they keep this
        ctx.set_materialize_grads(False)
        return _alive(flat).copies(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        flat = _alive(ctx.flat)
        flat.forget()
        return None, None, *flat.gradients(gradients)


def _alive(flat: weakref.ref[Flat]) -> Flat:
    found = flat()
    assert found is not None
    return found


def _as_matrix(shape: torch.Size) -> torch.Size:
    return shape[:2] if all(size == 1 for size in shape[2:]) else shape
