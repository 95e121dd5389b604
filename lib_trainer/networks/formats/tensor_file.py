"""safetensors files written tensor by tensor, so that saving takes no memory worth mentioning.

Layout (https://github.com/huggingface/safetensors): the header's length in 8 bytes, little-endian; a JSON header of
names, dtypes, shapes and places, padded with spaces to a multiple of 8; the tensors' bytes, one after another.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from lib_trainer.networks.formats.writing import new_file

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
AT_ONCE = 1 << 20
"""Numbers that are fetched, cast and written together."""


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    *,
    overwrite: bool,
    dtype: torch.dtype | None = None,
) -> None:
    """Write tensors from wherever they are, floating-point ones cast to `dtype` on the way.

    Nothing is copied as a whole: beside the tensors there are never more than a few MiB. Raises `SaveError` naming the
    file.
    """
    with new_file(path, overwrite=overwrite) as file:
        for piece in content(tensors, metadata, dtype):
            file.write(piece)


def content(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None = None
) -> Iterator[memoryview]:
    """The bytes of a file, piece by piece; the first is its header."""
    order = sorted(tensors, key=lambda name: (-_stored(tensors[name], dtype).itemsize, name))
    yield memoryview(_header(tensors, order, metadata, dtype))
    for name in order:
        yield from pieces(tensors[name], _stored(tensors[name], dtype))


def pieces(tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """A tensor's bytes in `dtype`, in order. A tensor that lies in another order is brought to the CPU as a whole."""
    whole = tensor.detach()
    flat = (whole if whole.is_contiguous() else whole.cpu().contiguous()).reshape(-1)
    for start in range(0, flat.numel(), AT_ONCE):
        piece = flat[start : start + AT_ONCE].cpu().to(dtype)
        yield piece.view(torch.uint8).numpy().data


def _header(
    tensors: Mapping[str, torch.Tensor], order: list[str], metadata: Mapping[str, str], dtype: torch.dtype | None
) -> bytes:
    """The length and the header."""
    told: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in order:
        stored = _stored(tensors[name], dtype)
        end = start + math.prod(tensors[name].shape) * stored.itemsize
        told[name] = {"dtype": type_name(stored), "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        start = end
    data = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    data += b" " * (-len(data) % 8)
    return struct.pack("<Q", len(data)) + data


def _stored(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def type_name(dtype: torch.dtype) -> str:
    """Formats of 8 bits are named as torch names them, without the finer points."""
    found = DTYPES.get(dtype)
    if found is None:
        found = str(dtype).removeprefix("torch.float8_").upper().removesuffix("FN")
        found = f"F8_{found}"
    return found
