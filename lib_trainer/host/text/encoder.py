"""What every text encoder does, whatever its classes are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.families.family import Encoder
from lib_trainer.patching import replaced_forward
from lib_trainer.ports import AdaptableModule


class TextEncoder:
    """One encoder of a family's. `module` is its root, in place; `described` is what the family says of it.

    A layout adds what is abstract here.
    """

    def __init__(self, module: nn.Module, described: Encoder) -> None:
        self.module, self.described = module, described
        self._lean = False

    def encoded(self, ids: torch.Tensor, clip_skip: int, end: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token ids (N, 77) → what the UNet reads, (N, 77, D), and the pooled vector (N, P) where it reads one.

        `clip_skip` 1 takes the layer that the family's UNet reads, 2 the one before it. `end` is the end mark's id: the
        pooled vector is read where the first one stands.
        """
        raise NotImplementedError

    @property
    def table(self) -> Any:
        """The module that looks tokens up."""
        raise NotImplementedError

    def blocks(self) -> list[nn.Module]:
        """Its layers, the first to the last: what gradient checkpointing recomputes."""
        raise NotImplementedError

    def adaptable(self) -> Iterator[AdaptableModule]:
        """q, k, v, out, fc1 and fc2 of each layer that LoRA files name."""
        raise NotImplementedError

    def lean(self) -> contextlib.AbstractContextManager[None]:
        """While gradients flow: fused attention, and between the layers autocast's precision."""
        raise NotImplementedError

    @property
    def vocabulary(self) -> torch.Tensor:
        """The vectors of all tokens, (V, D)."""
        table = self.table
        weight: torch.Tensor = getattr(table, "wrapped", table).weight  # the WebUI puts a module of its own around it
        return weight

    def depth(self, clip_skip: int) -> int:
        """How many layers from the end what the UNet reads comes; 1: from the last.

        A file may hold a layer that is never read, and the modules made of it may be without.
        """
        there, described = len(self.blocks()), self.described
        skipped = 0 if there == described.output else described.skipped
        return min(clip_skip + skipped, there)

    def adapted(self, layer: int, name: str, module: nn.Module) -> AdaptableModule:
        """A layer's module under the name that LoRA files have for it: transformers', as `mlp.fc1`."""
        key = self.described.name_in_files(f"text_model.encoder.layers.{layer}.{name}")
        return AdaptableModule(key, module, self.described.part, "transformer", f"layer_{layer}")

    @contextlib.contextmanager
    def extended(self, first: int, rows: list[torch.Tensor]) -> Iterator[None]:
        """Ids from `first` on are looked up in the rows, all others where they always are."""
        table, last = self.table, first + sum(len(own) for own in rows)
        inner = table.forward

        def forward(input_ids: torch.Tensor) -> torch.Tensor:
            own = (input_ids >= first) & (input_ids < last)
            found: torch.Tensor = inner(torch.where(own, 0, input_ids))
            # also for captions without the word (it may be cut off): to ask a card for that is to wait for it
            together = torch.cat(rows).to(found.device)
            looked_up = F.embedding(torch.where(own, input_ids - first, 0), together).to(found.dtype)
            return torch.where(own.unsqueeze(-1), looked_up, found)

        with replaced_forward(table, forward):
            yield


def at_end(hidden: torch.Tensor, ids: torch.Tensor, end: int) -> torch.Tensor:
    """Of hidden states (N, T, D) the ones at the first end mark, (N, D)."""
    places = (ids == end).to(torch.int32).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), places]
