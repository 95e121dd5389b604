"""Writing a .safetensors file whose tensors are made one after another, each rounded once.

The header stands before the tensors, and what is known only after them (errors, counts) goes into room that is kept
behind the header's JSON: the format allows spaces there. While a piece is made the one before is written, and what is
written goes to the disk already: a file that is handed over whole at its end is waited for.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from lib_trainer.networks.formats.stand_ins import bytes_of
from lib_trainer.networks.formats.tensor_file import AT_ONCE, type_name
from lib_trainer.refusals import Count, ModelError, SaveError
from lib_trainer.toolbox.behind import Behind
from lib_trainer.toolbox.output import Target, make_way, written
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.source import Source

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""{name: (shape, type)} of what is to be written."""
Made = torch.Tensor | Iterable[torch.Tensor]
"""A tensor, or its numbers in order, piece by piece."""
ROOM = 4096
"""Bytes that are kept in the header for what is known afterwards, where a tool does not say."""
SPARE = 1 << 26
"""Bytes that are to stay free on a disk."""


@dataclass
class Tally:
    """What rounding did. `clamped`: numbers beyond the new type's range, which became its largest; `names` theirs."""

    clamped: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str, count: int) -> None:
        if count:
            self.clamped += count
            if name not in self.names:
                self.names.append(name)


def bytes_needed(layout: Layout) -> int:
    return sum(math.prod(shape) * bytes_of(dtype) for shape, dtype in layout.values())


def check_space(target: Target, layout: Layout) -> None:
    """Raise `SaveError` where the disk has less room than the file needs. What is replaced stays in the trash."""
    folder = target.path.parent
    while not folder.is_dir():
        folder = folder.parent
    needed, free = bytes_needed(layout), shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise SaveError("toolbox.disk", path=target.path, needed=Count(needed >> 20), free=Count(free >> 20))


def write_stream(
    target: Target,
    layout: Layout,
    make: Callable[[str], Made],
    metadata: Mapping[str, str],
    progress: Progress,
    *,
    closing: Callable[[], Mapping[str, str]] | None = None,
    room: int = ROOM,
    tally: Tally | None = None,
    checked: bool = True,
) -> Path:
    """Write what `make` gives for each name of the layout; whole or not at all. Returns the file's path, as
    `written` gives it.

    `closing` is called at the end for metadata that is known only then, for which `room` bytes are kept. Numbers are
    rounded to nearest; one beyond the new type's range becomes the largest, and is counted in `tally`. Raises
    `ModelError` for a NaN or an infinite number (unless `checked` is false), `SaveError` for a disk that is too small,
    and what `progress` raises.
    """
    check_space(target, layout)
    order = sorted(layout, key=lambda one: (-bytes_of(layout[one][1]), one))
    counted = tally if tally is not None else Tally()
    with written(target, progress) as result:
        file = result.file
        length = _write_header(file, layout, order, metadata, room if closing else 0)
        with Behind(file) as behind:
            for one in order:
                _write_tensor(behind, one, layout[one], make(one), counted if checked else None, progress)
        if closing:
            _write_header_again(file, layout, order, {**metadata, **closing()}, length)
        file.flush()
        make_way(target)
    return result.path


def _write_tensor(
    behind: Behind,
    name: str,
    stored: tuple[tuple[int, ...], torch.dtype],
    made: Made,
    tally: Tally | None,
    progress: Progress,
) -> None:
    shape, dtype = stored
    written = 0
    for piece in [made] if isinstance(made, torch.Tensor) else made:
        flat = piece.detach().reshape(-1)
        for start in range(0, flat.numel(), AT_ONCE):
            numbers = flat[start : start + AT_ONCE]
            if tally is not None and numbers.is_floating_point():
                numbers = sound(name, numbers, dtype, tally)
            size = behind.write(numbers, dtype)
            written += size
            progress.advance(size)
    if written != math.prod(shape) * bytes_of(dtype):
        raise RuntimeError(f"{name}: {written} bytes were made for {shape} of {dtype}")


@contextlib.contextmanager
def blaming(sources: Iterable[Source]) -> Iterator[None]:
    """Let a number that is none be told with the file that it comes from. Raises `ModelError`."""
    try:
        yield
    except ModelError as error:
        told = error.sentence
        name = str(told.facts["name"]) if told.code == "toolbox.not_finite" else ""
        for source in sources if name else ():
            if name in source.tensors and not is_sound(source.raw(name)):
                raise ModelError("adapter_file.not_finite", path=source.path, name=name) from error
        raise


def is_sound(tensor: torch.Tensor) -> bool:
    """Whether every number is one: no NaN, nothing infinite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    flat = tensor.reshape(-1)
    for start in range(0, len(flat), AT_ONCE):
        piece = flat[start : start + AT_ONCE]
        ends = torch.aminmax(piece.float() if piece.element_size() < 4 else piece)
        if not all(math.isfinite(float(one)) for one in ends):
            return False
    return True


def sound(name: str, numbers: torch.Tensor, dtype: torch.dtype, tally: Tally) -> torch.Tensor:
    """The numbers, flat, within the range of the new type. Raises `ModelError` for what is none."""
    if dtype.is_floating_point and _surely_within(numbers, torch.finfo(dtype).max):
        return numbers
    lowest, highest = (float(one) for one in torch.aminmax(numbers.float() if bytes_of(numbers.dtype) < 4 else numbers))
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ModelError("toolbox.not_finite", name=name)
    if not dtype.is_floating_point:
        return numbers
    most = torch.finfo(dtype).max
    if highest <= most and lowest >= -most:
        return numbers
    tally.add(name, int((numbers.abs() > most).sum()))
    return numbers.clamp(-most, most)


def _surely_within(numbers: torch.Tensor, most: float) -> bool:
    """Whether the sum of the squares already tells, in one quick pass, that each number is one and at most so large.

    The sum is rounded, hence the half. With a NaN, an infinite number or a square beyond the type's range it is none.
    """
    wide = numbers.float() if numbers.element_size() < 4 else numbers
    squares = float(torch.dot(wide, wide))
    return math.isfinite(squares) and squares <= most * most / 2


def _header(layout: Layout, order: list[str], metadata: Mapping[str, str]) -> bytes:
    told: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in order:
        shape, dtype = layout[name]
        end = start + math.prod(shape) * bytes_of(dtype)
        told[name] = {"dtype": type_name(dtype), "shape": list(shape), "data_offsets": [start, end]}
        start = end
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _write_header(file: BinaryIO, layout: Layout, order: list[str], metadata: Mapping[str, str], room: int) -> int:
    data = _header(layout, order, metadata)
    length = len(data) + room
    length += -length % 8
    file.write(struct.pack("<Q", length) + data.ljust(length))
    return length


def _write_header_again(
    file: BinaryIO, layout: Layout, order: list[str], metadata: Mapping[str, str], length: int
) -> None:
    data = _header(layout, order, metadata)
    if len(data) > length:
        raise RuntimeError(f"the header needs {len(data)} bytes and {length} were kept")
    file.seek(8)
    file.write(data.ljust(length))
    file.seek(0, os.SEEK_END)
