"""A card on the CPU: what is "there" and what waits is told by storages, and every crossing is counted."""

from __future__ import annotations

import torch
from torch import nn

from lib_trainer.host.weights import Bus


class Card(Bus):
    """Parameters keep their place, as on a GPU. `room`: how many more tensors it can take; None for any number."""

    room: int | None = None

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.in_place = True
        self.away: dict[int, torch.Tensor] = {}
        self.to_cpu_bytes: list[int] = []
        self.to_device_bytes: list[int] = []
        self.failing: set[int] = set()
        """Places that cannot be filled."""

    def take_off(self, root: nn.Module) -> None:
        """Its parameters lie on the CPU, where a host keeps them."""
        for parameter in root.parameters():
            self.away[parameter.data.untyped_storage().data_ptr()] = parameter.data

    def has(self, data: torch.Tensor) -> bool:
        return data.untyped_storage().data_ptr() not in self.away

    def to_cpu(self, data: torch.Tensor) -> torch.Tensor:
        copy = super().to_cpu(data)
        self.away[copy.untyped_storage().data_ptr()] = copy
        self.to_cpu_bytes.append(copy.numel() * copy.itemsize)
        return copy

    def to_device(self, original: torch.Tensor) -> torch.Tensor:
        if self.room is not None:
            if self.room == 0:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
            self.room -= 1
        self.to_device_bytes.append(original.numel() * original.itemsize)
        return super().to_device(original)

    def into(self, place: torch.Tensor, original: torch.Tensor) -> None:
        if place.data_ptr() in self.failing:
            raise RuntimeError("the driver is gone")
        self.to_device_bytes.append(original.numel() * original.itemsize)
        super().into(place, original)
