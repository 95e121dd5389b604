"""Bands in the computer's memory while the device has only the few that are worked on.

On CUDA the bands lie in pinned memory and move on streams of their own: the next band is fetched while this one is
computed, and the one before is written back meanwhile. On other devices the copies are plain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lib_trainer.tiling.maps import Store


@dataclass
class _Kept:
    """A band in host memory; `written` is the event after which it is whole there, None where copies are plain."""

    tensor: torch.Tensor
    written: Any = None


@dataclass
class _Fetched:
    tensor: torch.Tensor
    arrived: Any = None


class InHostMemory:
    """One map's bands. At most the bands around the current one are on the device."""

    def __init__(self, device: torch.device, streams: tuple[Any, Any] | None) -> None:
        self._device = device
        self._up: Any
        self._down: Any
        self._up, self._down = streams if streams is not None else (None, None)
        self._kept: dict[int, _Kept] = {}
        self._fetched: dict[int, _Fetched] = {}
        self._count = 0

    def keep(self, band: torch.Tensor) -> int:
        # torch keeps freed pinned memory for the next band, and gives it out when its copies are done
        kept = _Kept(torch.empty(band.shape, dtype=band.dtype, pin_memory=self._down is not None))
        if self._down is None:
            kept.tensor.copy_(band)
        else:
            self._down.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._down):
                kept.tensor.copy_(band, non_blocking=True)
                kept.written = self._down.record_event()
            band.record_stream(self._down)  # not to be reused before the copy has read it
        self._kept[self._count] = kept
        self._count += 1
        return self._count - 1

    def fetch(self, number: int) -> torch.Tensor:
        for older in [key for key in self._fetched if key < number - 1]:
            del self._fetched[older]
        self.expect(number)
        here = self._fetched[number]
        if here.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(here.arrived)
            here.arrived = None
        return here.tensor

    def expect(self, number: int) -> None:
        """Begin to fetch it."""
        if number in self._fetched:
            return
        kept = self._kept[number]
        if self._up is None:
            self._fetched[number] = _Fetched(kept.tensor.to(self._device, copy=True))
            return
        with torch.cuda.stream(self._up):
            if kept.written is not None:
                self._up.wait_event(kept.written)
            tensor = kept.tensor.to(self._device, non_blocking=True)
            arrived = self._up.record_event()
        tensor.record_stream(torch.cuda.current_stream(self._device))
        self._fetched[number] = _Fetched(tensor, arrived)

    def forget(self, number: int) -> None:
        self._fetched.pop(number, None)
        self._kept.pop(number, None)


def in_host_memory(device: torch.device) -> Callable[[], Store]:
    """A maker of stores that share two streams."""
    cuda = device.type == "cuda"
    streams = (torch.cuda.Stream(device), torch.cuda.Stream(device)) if cuda else None
    return lambda: InHostMemory(device, streams)
