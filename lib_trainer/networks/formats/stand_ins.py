"""What a pickle of tensors may name, and what stands for it when `plain_pickle` reads one.

A stand-in puts plain values together and does nothing else. None of them can be changed by a file: a pickle may set
attributes of what it holds, so that these have none.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lib_trainer.refusals import Reason

LARGEST_VIEW = 1 << 24
"""Elements that a tensor may have beyond its bytes (a repeated row): more is a file that wants to fill the memory."""

DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


@functools.cache
def bytes_of(dtype: torch.dtype) -> int:
    """Of one element; `dtype.itemsize` came with torch 2.1."""
    return torch.empty(0, dtype=dtype).element_size()


class Kind(NamedTuple):
    """Stands for a class of storages."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Storage:
    """Bytes of one or several tensors: `count` elements of `dtype` from `start` (in bytes) on."""

    buffer: Any
    start: int
    dtype: torch.dtype
    count: int


class Dictionary(dict):  # type: ignore[type-arg]
    """Stands for OrderedDict: attributes that a file would hang onto it are left out."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        return


class Parameters:
    """Stands for torch's ParameterDict, in which embeddings of before 2023 hold their vectors."""

    __slots__ = ("values",)
    values: dict[Any, Any]

    def __new__(cls, *ignored: Any) -> Parameters:
        made = super().__new__(cls)
        made.values = {}
        return made

    def __setstate__(self, state: Any) -> None:
        found = state.get("_parameters") if isinstance(state, dict) else None
        self.values = found if isinstance(found, dict) else {}


class Nothing:
    """Stands for what is allowed to be in a file and is not needed: numbers of numpy, Lightning's callbacks."""

    __slots__ = ()

    def __init__(self, *ignored: Any) -> None:
        return

    def __setstate__(self, state: Any) -> None:
        return


class Function(NamedTuple):
    """Something that a pickle may call. A tuple, so that a file cannot change it."""

    work: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.work(*arguments)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
    """A view of a storage: `size` and `stride` count elements, as does `offset`."""
    if not isinstance(storage, Storage):
        raise Reason("tensors.no_bytes")
    dtype, count = storage.dtype, storage.count
    if len(rest) > 2 and isinstance(rest[2], torch.dtype):  # of newer types the storage is told in bytes
        dtype = rest[2]
        count //= bytes_of(dtype)
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or not all(isinstance(one, int) and one >= 0 for one in numbers):
        raise Reason("tensors.no_shape")
    elements = math.prod(size)
    if elements == 0:
        return torch.empty(size, dtype=dtype)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if last >= count or elements > max(count, LARGEST_VIEW):
        raise Reason("tensors.beyond")
    flat = torch.frombuffer(storage.buffer, dtype=dtype, count=count, offset=storage.start)
    return flat.as_strided(size, stride, offset)


def _same(data: Any, *ignored: Any) -> Any:
    return data


def _size(numbers: Any = ()) -> tuple[Any, ...]:
    return tuple(numbers)


def _bytes(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise Reason("tensors.strange_bytes")
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Dictionary,
    ("torch._utils", "_rebuild_tensor"): Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(_same),
    ("torch._utils", "_rebuild_parameter_with_state"): Function(_same),
    ("torch.nn.parameter", "Parameter"): Function(_same),
    ("torch.nn.modules.container", "ParameterDict"): Parameters,
    ("torch", "Size"): Function(_size),
    ("torch", "device"): Nothing,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): Nothing,
    ("numpy", "dtype"): Nothing,
    ("numpy", "ndarray"): Nothing,
    **{
        (f"numpy.{core}.multiarray", name): Nothing for core in ("core", "_core") for name in ("scalar", "_reconstruct")
    },
    ("_codecs", "encode"): Function(_bytes),
    ("pytorch_lightning.callbacks", "model_checkpoint"): Nothing,
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): Nothing,
    ("lightning.pytorch.callbacks.model_checkpoint", "ModelCheckpoint"): Nothing,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
}
"""The list of the WebUI's modules/safe.py, and torch's own rebuilding of tensors."""
