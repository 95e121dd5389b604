"""Writing files of `torch.save` so that every reader of such files takes them, tensor by tensor.

A zip archive with one folder that holds `data.pkl`, `data/0`, `data/1` … (the bytes of each tensor) and `version`: the
records that torch has written since 1.6 (torch/csrc/jit/serialization). Newer versions of `torch.save` add others
(`byteorder`, `.data/serialization_id`, `.format_version`, `.storage_alignment`), and loaders that check names, as the
WebUI's modules/safe.py does, call a file with an unknown one malicious. Written here, a file is the same whatever the
version of torch.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from lib_trainer.networks.formats.tensor_file import pieces

FOLDER = "archive"
ALIGNMENT = 64
"""Bytes: where a record begins, so that it can be mapped into memory. The gap is a zip extra field, as torch's is."""

PADDING_FIELD = 0x4246
STORAGES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
}
"""Names by which a pickle tells a tensor's type; the WebUI's loader knows no others."""


@dataclass(frozen=True)
class _Storage:
    """A tensor's bytes, which the pickle only refers to."""

    kind: Any
    key: str
    count: int


class _Pickler(pickle.Pickler):
    """Pickles plain containers; what is inside a tensor is put aside into `records`."""

    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer, protocol=2)
        self.records: list[torch.Tensor] = []

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, _Storage):
            return ("storage", value.kind, value.key, "cpu", value.count)
        return None

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        whole = value.detach().contiguous()
        storage = _Storage(getattr(torch, STORAGES[whole.dtype]), str(len(self.records)), whole.numel())
        self.records.append(whole)
        rebuild = torch._utils._rebuild_tensor_v2
        return rebuild, (storage, 0, tuple(whole.shape), whole.stride(), False, OrderedDict())


def write_archive(file: BinaryIO, data: dict[Any, Any]) -> None:
    """Write what `torch.load` of any version from 1.6 on reads back into a new .pt file.

    `data` holds tensors of the types in `STORAGES`, dicts, lists, tuples, texts, numbers and None. Beside them there
    are never more than a few MiB, wherever the tensors are.
    """
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(data)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, file, "data.pkl", [pickled.getbuffer()], pickled.tell())
        for number, tensor in enumerate(pickler.records):
            _add(archive, file, f"data/{number}", pieces(tensor, tensor.dtype), tensor.numel() * tensor.itemsize)
        _add(archive, file, "version", [b"3\n"], 2)


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: Iterable[bytes | memoryview], size: int) -> None:
    info = zipfile.ZipInfo(f"{FOLDER}/{name}")  # with a fixed date: the same data gives the same bytes
    begins = file.tell() + 30 + len(info.filename) + 4  # behind the local header and the extra field's own one
    gap = -begins % ALIGNMENT
    info.extra = struct.pack("<HH", PADDING_FIELD, gap) + b"Z" * gap
    info.file_size = size
    with archive.open(info, "w") as record:
        for piece in content:
            record.write(piece)
