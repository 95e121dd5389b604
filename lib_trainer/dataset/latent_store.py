"""Where moments of pictures are kept, in memory or on disk."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Protocol

import torch

from lib_trainer.files import write_atomically
from lib_trainer.refusals import DatasetError

CELL = 8
"""Pixels to a latent, along each side."""
MOMENT_CHANNELS = 8


class LatentStore(Protocol):
    """Keeps moments (8, h, w) and masks (1, h, w), fp32, by key. Both methods may be called from several threads."""

    def get(self, key: str, channels: int = MOMENT_CHANNELS) -> torch.Tensor | None:
        """What was put there, or None if it is missing or damaged."""

    def put(self, key: str, moments: torch.Tensor) -> None:
        """Keep it. Raises `DatasetError` where it cannot be kept."""


class MemoryStore:
    """Gone with the run."""

    def __init__(self) -> None:
        self._moments: dict[str, torch.Tensor] = {}

    def get(self, key: str, channels: int = MOMENT_CHANNELS) -> torch.Tensor | None:
        return self._moments.get(key)

    def put(self, key: str, moments: torch.Tensor) -> None:
        self._moments[key] = moments


class DiskStore:
    """One safetensors file for each picture and size in `folder`; nothing is ever removed from it here.

    With `since`, a time of the folder's, a file that is read gets a new date where its own is older (`latent_cache`).
    Each step reads its pictures anew (0.3 ms for one of 512²), and nothing of them stays in this process: after the
    first reading the system has the files in its cache, which it gives up when memory is wanted for something else.
    """

    def __init__(self, folder: Path, since: float = 0.0) -> None:
        self.folder, self._since = folder, since

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def get(self, key: str, channels: int = MOMENT_CHANNELS) -> torch.Tensor | None:
        """None also for a file that is broken or holds something else: it is then made anew."""
        import safetensors.torch

        try:
            path = self.path(key)
            if self._since and path.stat().st_mtime < self._since:
                with contextlib.suppress(PermissionError):  # somebody else's, who lets others read
                    os.utime(path)
            moments = safetensors.torch.load(path.read_bytes()).get("moments")
        except Exception:  # not there, cut short, not safetensors: whatever it is, the picture can be encoded again
            return None
        if moments is None or moments.dtype != torch.float32 or moments.ndim != 3:
            return None
        # a sum is a number only where all of them are, and takes half as long as to ask each
        return moments if moments.shape[0] == channels and math.isfinite(float(moments.sum())) else None

    def put(self, key: str, moments: torch.Tensor) -> None:
        import safetensors.torch

        try:
            write_atomically(self.path(key), safetensors.torch.save({"moments": moments.contiguous()}))
        except OSError as error:
            raise DatasetError("latents.no_folder", folder=self.folder, reason=error) from error
