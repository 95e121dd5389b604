"""A model file opened so that a tensor is read when it is asked for: .safetensors, files of `torch.save`, diffusers
folders. Names are today's, and a folder's those of a single file (see `checkpoint_file` and `layouts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lib_trainer.files import found
from lib_trainer.networks.formats import reading
from lib_trainer.networks.formats.checkpoint_file import canonical_names, unnested
from lib_trainer.networks.formats.mapped import Stored, map_safetensors
from lib_trainer.refusals import ModelError
from lib_trainer.toolbox.folders import read_folder

AT_ONCE = 1 << 20
"""Numbers that are computed with together, where a formula takes each number by itself."""


@dataclass(frozen=True)
class Source:
    """What a file holds.

    tensors   by today's names, in the file's order
    metadata  of a .safetensors file
    renamed   {today's name: the file's own}, where they differ
    outside   what lay beside the model in a file of `torch.save`: optimizer states, callbacks
    """

    path: Path
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    outside: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: one.shape for name, one in self.tensors.items()}

    def raw(self, name: str) -> torch.Tensor:
        """In the file's own type; maybe a view of the file, which must not be changed."""
        return self.tensors[name].load()

    def number(self, name: str) -> torch.Tensor:
        """In fp32, and the caller's own."""
        return self.raw(name).to(torch.float32, copy=True)


def open_source(path: Path) -> Source:
    """Raises `ModelError` naming a file that is missing, cut short, damaged or holds code; nothing of it is run."""
    path = found(path.expanduser())
    if path.is_dir():
        return Source(path, read_folder(path))
    if not reading.is_pickle(path):
        tensors, metadata = map_safetensors(path)
        return _named(path, tensors, metadata, ())
    data = reading.read_file(path)
    inner = unnested(data)
    outside = tuple(sorted(str(name) for name in data)) if isinstance(data, dict) and inner is not data else ()
    found_tensors = dict(_flat(inner if isinstance(data, dict) else data, ""))
    return _named(path, found_tensors, {}, outside)


def _named(path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str], outside: tuple[str, ...]) -> Source:
    names = canonical_names({name: one.shape for name, one in tensors.items()})
    renamed = {new: old for old, new in names.items() if new != old}
    twice = {new for new in renamed if new in tensors}  # a file that has both: today's name holds
    held = {names[old]: one for old, one in tensors.items() if old == names[old] or names[old] not in twice}
    return Source(path, held, dict(metadata), {new: old for new, old in renamed.items() if new not in twice}, outside)


def _flat(data: Any, prefix: str) -> list[tuple[str, Stored]]:
    """The tensors in nested dictionaries and lists, by what leads to them."""
    if isinstance(data, torch.Tensor):
        return [(prefix, Stored(tuple(data.shape), data.dtype, partial(_same, data.detach())))]
    inside: Any = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, (list, tuple)) else ()
    if not inside and isinstance(held := getattr(data, "values", None), dict):
        inside = held.items()
    return [pair for name, one in inside for pair in _flat(one, f"{prefix}.{name}" if prefix else str(name))]


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def need_tensors(source: Source) -> None:
    """Raise `ModelError` for a file without a single tensor."""
    if not source.tensors:
        raise ModelError("toolbox.no_tensors", path=source.path)
