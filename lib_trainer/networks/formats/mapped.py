""".safetensors files whose tensors stay in the file until they are asked for.

The format: see `tensor_file`. Metadata may hold any JSON value, as some tools write numbers and lists; such values
become texts.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lib_trainer.files import found
from lib_trainer.networks.formats.reading import LONGEST_HEADER
from lib_trainer.networks.formats.stand_ins import bytes_of
from lib_trainer.networks.formats.tensor_file import DTYPES
from lib_trainer.refusals import ModelError, Reason

NAMED = {name: dtype for dtype, name in DTYPES.items()} | {
    name: dtype
    for name, kind in (
        ("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2"), ("U16", "uint16"), ("U32", "uint32"),
        ("U64", "uint64"),
    )
    if (dtype := getattr(torch, kind, None)) is not None
}  # fmt: skip
"""What a header calls a type, as far as this version of torch has it."""


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in a file. What `load` gives is in `dtype` and may be a view of the file: never change it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * bytes_of(self.dtype)


def map_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors and metadata of a .safetensors file, in the file's order. Raises `ModelError` naming it."""
    path = found(path)
    try:
        with path.open("rb") as file:
            header, start = _header(file.read(8), path.stat().st_size, file)
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        loose = header.pop("__metadata__", None) or {}
        size = len(buffer) - start
        tensors = {name: _stored(name, told, buffer, start, size) for name, told in header.items()}
        metadata = {name: one if isinstance(one, str) else json.dumps(one) for name, one in loose.items()}
    except FileNotFoundError:
        raise ModelError("file.missing", path=path) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelError("file.no_safetensors", path=path, reason=error) from error
    return tensors, metadata


def _header(first: bytes, size: int, file: Any) -> tuple[dict[str, Any], int]:
    if len(first) < 8:
        raise Reason("tensors.short")
    (length,) = struct.unpack("<Q", first)
    if length > LONGEST_HEADER or length + 8 > size:
        raise Reason("tensors.no_header")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise Reason("tensors.no_header")
    return header, 8 + length


def _stored(name: str, told: dict[str, Any], buffer: mmap.mmap, start: int, size: int) -> Stored:
    dtype, shape = NAMED.get(told["dtype"]), tuple(told["shape"])
    if dtype is None:
        raise Reason("tensors.unknown_type", name=name, type=told["dtype"])
    first, last = told["data_offsets"]
    if not all(type(one) is int and one >= 0 for one in (*shape, first, last)):
        raise Reason("tensors.no_shape")
    count = math.prod(shape)
    if last - first != count * bytes_of(dtype):
        raise Reason("tensors.no_size")
    if last > size:
        raise Reason("tensors.short")

    def load() -> torch.Tensor:
        if not count:
            return torch.empty(shape, dtype=dtype)
        place = start + first
        if place % bytes_of(dtype):  # torch computes with aligned numbers only
            return torch.frombuffer(bytearray(buffer[place : start + last]), dtype=dtype).reshape(shape)
        return torch.frombuffer(buffer, dtype=dtype, count=count, offset=place).reshape(shape)

    return Stored(shape, dtype, load)
