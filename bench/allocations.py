"""An allocation hook: bytes of the tensors that are alive, and the most there were, on any device and on none.

Every result of an operation is seen where it is made, also in the backward pass, and its storage is followed until it
is freed. What a kernel takes for itself and gives back before it returns is not seen.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):
    """While it is entered, `now` and `peak` are bytes of the distinct storages seen so far that are alive."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and torch's guard around each operation costs as much as the hook itself."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    called: Callable[..., Any] = staticmethod(lambda function, args, kwargs: function(*args, **kwargs))
    """How an operation is computed."""

    def watch(self, tensors: Iterable[torch.Tensor]) -> None:
        """Take up tensors that were made before, or elsewhere."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._alive:
                continue
            self._alive[key] = weakref.ref(storage, functools.partial(self._freed, key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def forget_peak(self) -> None:
        self.peak = self.now

    def _freed(self, key: int, size: int, _: object) -> None:
        del self._alive[key]
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self.called(function, args, kwargs or {})
        self.watch((out,) if isinstance(out, torch.Tensor) else tensors_of(out))
        return out


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Those inside lists and tuples: what an operation of torch takes and gives is built of nothing else."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_of(one)
