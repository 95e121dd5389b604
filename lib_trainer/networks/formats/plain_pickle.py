"""Files of `torch.save` that hold tensors and plain containers, read without `torch.load`.

A pickle is a program. torch's own restricted reader was not safe before torch 2.6 (CVE-2025-32434), and the WebUI runs
on 2.1.2, so the names that a pickle may use are looked up in a list here: each gives a stand-in (`stand_ins`) that puts
plain values together, and any other name ends the reading. Nothing that a file names is ever imported or called.

Layouts: the zip archive of torch 1.6 and later (`<folder>/data.pkl`, `<folder>/data/<key>`), and the older one of five
pickles in a row with the tensors' bytes behind them (torch/serialization.py describes both).
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lib_trainer.networks.formats.stand_ins import ALLOWED, DTYPES, Kind, Parameters, Storage, bytes_of
from lib_trainer.refusals import ModelError, Reason

MAPPED_FROM = 1 << 28
"""Bytes: larger files are mapped, so that only the tensors that are used are read; smaller ones are not held open."""

LONGEST_PROGRAM = 1 << 28
DENSEST = 50
"""How many times its packed size a record may have."""

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The first two objects of the older layout."""

BROKEN = (
    OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError, MemoryError,
    OverflowError, ImportError, NotImplementedError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip
"""What reading damaged bytes may raise."""


def read_plain(path: Path) -> dict[Any, Any]:
    """The dictionary of a .pt, .bin or .ckpt file, on the CPU.

    Raises `ModelError` naming the file for anything that is not tensors and plain values.
    """
    data = read_values(path)
    if not isinstance(data, dict):
        raise ModelError("file.no_dictionary", path=path)
    return data


def read_values(path: Path, *, contents: bool = True) -> Any:
    """What a file of `torch.save` holds: `read_plain` without the condition that it is a dictionary.

    Without `contents` nobody will look at the tensors' numbers, and what can be left unread of them is.
    """
    try:
        if path.stat().st_size == 0:
            raise Reason("tensors.empty")
        data = _read_zip(path) if zipfile.is_zipfile(path) else _read_old(path, contents)
    except FileNotFoundError:
        raise ModelError("file.missing", path=path) from None
    except BROKEN as error:
        raise ModelError("file.not_plain", path=path, reason=error) from error
    return data.values if isinstance(data, Parameters) else data


class _Reader(pickle.Unpickler):
    def __init__(self, program: io.BufferedIOBase, storage: Callable[[Any], Storage]) -> None:
        super().__init__(program, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        found = ALLOWED.get((module, name))
        if found is not None:
            return found
        if module in ("torch", "torch.storage") and name in DTYPES:
            return Kind(DTYPES[name])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise Reason("tensors.code", module=module, name=name)

    def persistent_load(self, key: Any) -> Any:
        if isinstance(key, tuple) and key[:2] == ("module", Parameters):  # with its source beside it, which is left
            return Parameters
        if not (isinstance(key, tuple) and len(key) >= 5 and key[0] == "storage" and isinstance(key[1], Kind)):
            raise Reason("tensors.foreign")
        if not isinstance(key[4], int) or key[4] < 0:
            raise Reason("tensors.no_size")
        return self._storage(key)


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        programs = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(programs) != 1:
            raise Reason("tensors.no_archive")
        folder = programs[0].partition("/")[0]
        order = f"{folder}/byteorder"
        if order in archive.namelist() and archive.getinfo(order).file_size < 16 and archive.read(order) == b"big":
            raise Reason("tensors.big_endian")
        if archive.getinfo(programs[0]).file_size > LONGEST_PROGRAM:
            raise Reason("tensors.long_program")
        records = _Records(path, archive, folder)
        return _Reader(io.BytesIO(archive.read(programs[0])), records.storage).load()


class _Records:
    """The bytes of an archive's tensors, which lie in it as they are; whole tensors may share them."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive, self._folder, self._buffer = archive, folder, _whole(path)

    def storage(self, key: tuple[Any, ...]) -> Storage:
        dtype, count = key[1].dtype, key[4]
        info = self._archive.getinfo(f"{self._folder}/data/{key[2]}")
        needed = count * bytes_of(dtype)
        if info.file_size < needed:
            raise Reason("tensors.bytes_missing", key=key[2])
        if info.compress_type != zipfile.ZIP_STORED:  # torch packs nothing, other tools may
            if needed > MAPPED_FROM and needed > DENSEST * info.compress_size:
                raise Reason("tensors.dense", key=key[2])
            with self._archive.open(info) as file:
                content = bytearray(file.read(needed))
            if len(content) < needed:
                raise Reason("tensors.bytes_missing", key=key[2])
            return Storage(content, 0, dtype, count)
        header = bytes(self._buffer[info.header_offset : info.header_offset + 30])
        name, extra = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name + extra
        if start + needed > len(self._buffer):
            raise Reason("tensors.bytes_missing", key=key[2])
        return Storage(self._buffer, start, dtype, count)


def _whole(path: Path) -> Any:
    """A writable buffer over the whole file; what is written into it never reaches the file."""
    if path.stat().st_size < MAPPED_FROM:
        return bytearray(path.read_bytes())
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _read_old(path: Path, contents: bool) -> Any:
    """The layout of torch before 1.6. Its pickles come first and the bytes that they refer to afterwards."""
    left, known = path.stat().st_size, dict[str, Storage]()

    def storage(key: tuple[Any, ...]) -> Storage:
        nonlocal left
        dtype, name, count = key[1].dtype, str(key[2]), key[4]
        if name not in known:
            left -= count * bytes_of(dtype)
            if left < 0:
                raise Reason("tensors.short")
            known[name] = Storage(bytearray(count * bytes_of(dtype)), 0, dtype, count)
        root, view = known[name], key[5] if len(key) > 5 else None
        if view is None:
            return root
        _, offset, length = view
        if offset < 0 or length < 0 or offset + length > root.count:
            raise Reason("tensors.beyond")
        return Storage(root.buffer, offset * bytes_of(dtype), dtype, length)

    with path.open("rb") as file:

        def following() -> Any:
            return _Reader(file, storage).load()

        if following() != MAGIC or following() != PROTOCOL:
            raise Reason("tensors.not_torch")
        system, data, keys = following(), following(), following()
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise Reason("tensors.big_endian")
        for key in keys if contents and isinstance(keys, list) else ():
            one = known[str(key)]
            (count,) = struct.unpack("<q", file.read(8))
            if count != one.count or file.readinto(one.buffer) != len(one.buffer):
                raise Reason("tensors.some_bytes_missing")
    return data
