"""Which torch runs: hosts bring their own, from 2.1.2 on."""

from __future__ import annotations

import torch


def torch_version() -> tuple[int, int]:
    """Its first two numbers."""
    first, second = torch.__version__.split("+")[0].split(".")[:2]
    return int(first), int(second)
