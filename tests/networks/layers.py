"""Small layers of every sort that an adapter may be on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

LAYERS: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Linear(12, 20),
    "1x1": lambda: nn.Conv2d(12, 20, 1),
    "3x3": lambda: nn.Conv2d(12, 20, 3, padding=1),
    "stride": lambda: nn.Conv2d(12, 20, 3, stride=2, padding=1, bias=False),
}
