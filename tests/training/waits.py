"""What a step would make the host wait for, if its tensors were a card's: seen on the CPU."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib_trainer import transfer
from lib_trainer.training import loop

READ_BY_THE_HOST = (
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "unique", "_unique",
    "repeat_interleave", "_linalg_svd", "linalg_eigh",
)  # fmt: skip
"""Operations whose answer, or its size, the host has to know before it goes on."""
MASKED = ("index", "index_put", "_index_put_impl")
"""Those that ask for the size of a mask."""


class Waits(TorchDispatchMode):
    """On while it is `inside` a step: counts, by the line of the program that asks, what is read of a card's tensors.

    A card's are the tensors that it is told of (`take`), what is sent there, and whatever is computed with one of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.inside = False
        self._there: dict[int, StorageWeakRef] = {}  # which keeps an address from being given to another

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def take(self, tensors: Iterable[torch.Tensor]) -> None:
        for one in tensors:
            storage = one.untyped_storage()
            self._there[storage._cdata] = StorageWeakRef(storage)

    def is_there(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        there = any(map(self.is_there, given))
        if there:
            name = func.overloadpacket.__name__
            masks = name.rstrip("_") in MASKED and any(one.dtype is torch.bool for one in given[1:])
            if masks or name.startswith(READ_BY_THE_HOST):
                self.note(name)
        out = func(*args, **(kwargs or {}))
        if there:
            self.take(one for one in tree_leaves(out) if isinstance(one, torch.Tensor))
        return out

    def note(self, what: str) -> None:
        lines = [one for one in traceback.extract_stack() if "/tests/" not in one.filename.replace("\\", "/")]
        own = next(one for one in reversed(lines) if "lib_trainer" in one.filename)
        self.found[f"{what} in {own.name}, line {own.lineno} of {own.filename.rpartition('lib_trainer')[2][1:]}"] += 1


@contextlib.contextmanager
def watched_steps(model: Any, roots: Iterable[torch.nn.Module]) -> Iterator[Waits]:
    """Of the runs of a model meanwhile, in this thread, the gradients and the optimizer's step of each step."""
    waits = Waits()
    waits.take(one for root in roots for one in (*root.parameters(), *root.buffers()))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_gradients", "_step"):
            patch.setattr(loop, name, _inside(waits, getattr(loop, name)))
        for name in ("tolist", "cpu", "numpy"):  # which on the CPU are no operations
            patch.setattr(torch.Tensor, name, _read(waits, getattr(torch.Tensor, name)))
        patch.setattr(loop, "arriving", lambda values: lambda: values.detach().tolist())
        own = transfer.sent
        for module in list(sys.modules.values()):
            if getattr(module, "sent", None) is own:
                patch.setattr(module, "sent", _sent(waits))
        yield waits


def _inside(waits: Waits, do: Callable[..., Any]) -> Callable[..., Any]:
    def done(*args: Any, **kwargs: Any) -> Any:
        for state in (one for one in args if isinstance(one, (loop.TrainState, torch.optim.Optimizer))):
            optimizer = getattr(state, "optimizer", state)
            waits.take(parameter for group in optimizer.param_groups for parameter in group["params"])
        with waits:
            waits.inside = True
            try:
                return do(*args, **kwargs)
            finally:
                waits.inside = False

    return done


def _read(waits: Waits, read: Callable[..., Any]) -> Callable[..., Any]:
    def done(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if waits.inside and waits.is_there(self):
            waits.note(read.__name__)
        return read(self, *args, **kwargs)

    return done


def _sent(waits: Waits) -> Callable[[torch.Tensor, torch.device], torch.Tensor]:
    def done(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        there = tensor if waits.is_there(tensor) else tensor.clone()
        waits.take([there])
        return there.to(device)

    return done
