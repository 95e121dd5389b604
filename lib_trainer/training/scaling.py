"""Loss scaling for fp16, whose gradients would vanish without it, on any kind of device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

FIRST = 2.0**16
SMALLEST, LARGEST = 2.0**-126, 2.0**126
"""Between them a power of two and its inverse are exact in fp32."""

INTERVAL = 2000
"""Good steps after which the scale is doubled."""

HOPELESS = 100
"""Steps left out in a row after which no scale will help: 40 bring the first one down to fp16's smallest number."""


class LossScaler:
    """Dynamic loss scaling (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2): the loss is multiplied before the
    backward pass and its gradients are divided after it. A step whose gradients overflow is left out and halves the
    scale; many good ones in a row double it.

    It begins and grows as torch's GradScaler does, which needs float64 (Intel's Arc has none) and a kernel of its own
    on each kind of device. The scale is a power of two on the device, where it is changed in place: nothing waits for
    it, and recorded passes read it.
    """

    def __init__(self, device: torch.device, *, enabled: bool = True) -> None:
        self._enabled = enabled
        if enabled:
            self._scale = torch.full((), FIRST, device=device)
            self._good = torch.zeros((), device=device)

    def is_enabled(self) -> bool:
        """Otherwise nothing is done by any of its functions."""
        return self._enabled

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss times the scale."""
        return loss * self._scale if self._enabled else loss

    @torch.no_grad()
    def unscale_(self, learned: Sequence[nn.Parameter]) -> None:
        """Gradients in place, as they would be without scaling; those that have overflowed stay so."""
        gradients = [parameter.grad for parameter in learned if parameter.grad is not None]
        if self._enabled and gradients:
            torch._foreach_mul_(gradients, self._scale.reciprocal())

    @torch.no_grad()
    def update(self, bad: torch.Tensor) -> None:
        """After a step: `bad` (bool, a scalar on the device) says whether it was left out."""
        if not self._enabled:
            return
        self._good.add_(1.0).masked_fill_(bad, 0.0)
        grown = self._good == INTERVAL
        self._good.masked_fill_(grown, 0.0)
        self._scale.mul_(1.0 + grown.float() - 0.5 * bad.float()).clamp_(SMALLEST, LARGEST)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, which later steps change; empty where it is not enabled."""
        return {"scale": self._scale, "good": self._good} if self._enabled else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._enabled:
            self._scale.copy_(state["scale"])
            self._good.copy_(state["good"])


def loss_scaler(device: torch.device, dtype: torch.dtype) -> LossScaler:
    """What a run in `dtype` scales its losses with: enabled for fp16 alone."""
    return LossScaler(device, enabled=dtype is torch.float16)
