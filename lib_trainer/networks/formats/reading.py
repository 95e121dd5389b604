"""Opening files of tensors: by what they are, whatever their ending says."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from lib_trainer.files import found
from lib_trainer.memory import is_out_of_memory
from lib_trainer.networks.formats.plain_pickle import read_values
from lib_trainer.refusals import ModelError

PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How archives and pickles begin. A .safetensors file begins with its header's length, which is none of these."""

ENDINGS = (".pt", ".pth", ".ckpt", ".bin")
"""Of such files."""

LONGEST_HEADER = 100_000_000
"""Bytes of a .safetensors header that the format allows."""


def is_pickle(path: Path) -> bool:
    """Whether a file is one of `torch.save`. Raises `ModelError` where it cannot be opened."""
    try:
        with found(path).open("rb") as file:
            begins = file.read(9)
    except FileNotFoundError:
        raise ModelError("file.missing", path=path) from None
    except (OSError, ValueError) as error:
        raise ModelError("file.unreadable", path=path, reason=error) from error
    return begins.startswith(PICKLES) or (path.suffix.lower() in ENDINGS and begins[8:] != b"{")


def read_file(path: Path, *, contents: bool = True) -> Any:
    """What a file holds: a {name: tensor} of a .safetensors file, or whatever else was given to `torch.save`.

    Raises `ModelError` naming the file. No code that is in it is run. Without `contents` nobody will look at the
    numbers, see `read_values`.
    """
    return read_values(found(path), contents=contents) if is_pickle(path) else read_safetensors(path)[0]


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors file. Raises `ModelError` naming it."""
    path = found(path)
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise ModelError("file.missing", path=path) from None
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        loose = _with_loose_metadata(path)
        if loose is not None:
            return loose
        raise ModelError("file.no_safetensors", path=path, reason=error) from error


@dataclass(frozen=True)
class Header:
    """{name: shape} and the metadata of a .safetensors file."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """What a .safetensors file says in front of its tensors. Raises `ModelError` naming the file."""
    path = found(path)
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            told = _told(path)  # which is sound, as it could be opened
            shapes = {name: tuple(told[name]["shape"]) for name in file.keys()}  # noqa: SIM118 - not a dict
            return Header(shapes, file.metadata() or {})
    except FileNotFoundError:
        raise ModelError("file.missing", path=path) from None
    except (OSError, RuntimeError, ValueError, KeyError, safetensors.SafetensorError):  # another file by now, perhaps
        tensors, metadata = read_safetensors(path)
        return Header({name: tuple(tensor.shape) for name, tensor in tensors.items()}, metadata)


def _told(path: Path) -> dict[str, Any]:
    """The header of a .safetensors file as it stands there. safetensors takes the longer for one tensor's shape, the
    more there are: the shapes of 1,500 take it .3 s."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        told: dict[str, Any] = json.loads(file.read(length))
        return told


def read_names(path: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a .safetensors file, from its header alone. Raises `ModelError` naming the file."""
    return read_header(path).shapes


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """One tensor of a .safetensors file, and nothing else of it. Raises `ModelError` naming the file."""
    path = found(path)
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError("file.no_safetensors", path=path, reason=error) from error


def _with_loose_metadata(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """The format wants texts as metadata; some tools write numbers and lists. None where that is not what is wrong."""
    try:
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length]) if length < LONGEST_HEADER else {}
        loose = header.pop("__metadata__", None)
        if not isinstance(loose, dict):
            return None
        strict = json.dumps(header).encode()
        tensors = safetensors.torch.load(struct.pack("<Q", len(strict)) + strict + data[8 + length :])
    except (
        OSError,
        RuntimeError,
        ValueError,
        AttributeError,
        struct.error,
        safetensors.SafetensorError,
        RecursionError,
    ):
        return None
    return tensors, {name: one if isinstance(one, str) else json.dumps(one) for name, one in loose.items()}
