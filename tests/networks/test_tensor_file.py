"""Files that are written tensor by tensor: what safetensors makes of them, and the memory it takes."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from PIL import EpsImagePlugin, Image
from safetensors.torch import load_file, save

from lib_trainer.networks.formats.hypernetwork_file import read_hypernetwork, write_hypernetwork
from lib_trainer.networks.formats.picture_embedding import read_picture
from lib_trainer.networks.formats.reading import read_header, read_safetensors
from lib_trainer.networks.formats.tensor_file import write_tensors
from lib_trainer.networks.hypernetwork import Hypernetwork, Structure
from lib_trainer.refusals import ModelError, SaveError
from tests.training.faults import Allocator

TENSORS = {
    "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "brain": torch.randn(5).bfloat16(),
    "whole": torch.randn(3, 4),
    "turned": torch.randn(4, 3).T,
    "channels": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "count": torch.tensor(7, dtype=torch.int64),
    "alpha": torch.tensor(2.0),
    "none": torch.zeros(0, 3),
    "flags": torch.tensor([True, False]),
}


def test_a_header_says_what_safetensors_says(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"a": "é"}, overwrite=False)
    header = read_header(path)
    with safetensors.safe_open(str(path), framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        assert list(header.shapes.items()) == list(shapes.items()) and header.metadata == file.metadata()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"x\.safetensors"):
        read_header(path)


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"a": "é", "b": "2"}, overwrite=False)
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) and found[name].dtype is TENSORS[name].dtype for name in found)
    with safetensors.safe_open(str(path), framework="pt") as file:
        assert file.metadata() == {"a": "é", "b": "2"}


def test_the_bytes_are_those_that_safetensors_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {name: TENSORS[name].contiguous() for name in ("half", "whole", "alpha")}
    write_tensors(path, tensors, {}, overwrite=False)
    assert behind(path.read_bytes()) == behind(save(tensors))


def test_numbers_are_cast_and_counts_are_not(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {}, overwrite=False, dtype=torch.float16)
    found = load_file(path)
    assert torch.equal(found["channels"], TENSORS["channels"].half()) and found["count"].dtype is torch.int64


def test_an_error_in_the_middle_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError), Allocator("start"):
        write_tensors(tmp_path / "x.safetensors", TENSORS, {}, overwrite=False, dtype=torch.float64)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.safetensors").write_bytes(b"mine")
    with pytest.raises(SaveError, match="exists already"):
        write_tensors(tmp_path / "x.safetensors", TENSORS, {}, overwrite=False)


def test_saving_takes_less_than_the_largest_tensor(tmp_path: Path) -> None:
    """Three tensors of 24 MiB are cast: all that is made at a time is counted, torch's and Python's."""
    tensors = {name: torch.randn(6 << 20) for name in "abc"}
    largest = 24 << 20
    counted = Counted()
    tracemalloc.start()
    with counted:
        write_tensors(tmp_path / "x.safetensors", tensors, {}, overwrite=False, dtype=torch.float16)
    _, python = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < counted.peak + python < largest / 2
    assert (tmp_path / "x.safetensors").stat().st_size > 3 * largest / 2


def test_saving_a_hypernetwork_takes_less_than_its_largest_layer(tmp_path: Path) -> None:
    """For SD 1.x such a structure makes a file of 350 MB: neither the weights nor the file are copied as a whole."""
    network = Hypernetwork(Structure((1, 8, 1), "relu", "Normal"), [640])
    largest = 640 * 8 * 640 * 4
    counted = Counted()
    tracemalloc.start()
    with counted:
        write_hypernetwork(tmp_path / "x.pt", network, {}, overwrite=False)
    _, python = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counted.peak + python < largest / 2
    assert (tmp_path / "x.pt").stat().st_size > 4 * largest


def test_too_little_memory_is_no_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user would look for another file, and the next one would be broken too."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")

    write_tensors(tmp_path / "x.safetensors", TENSORS, {}, overwrite=False)
    write_hypernetwork(tmp_path / "x.pt", Hypernetwork(Structure(), [32]), {}, overwrite=False)
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    monkeypatch.setattr(safetensors, "safe_open", refuse)
    monkeypatch.setattr(Hypernetwork, "load", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    readers: dict[str, Any] = {"safetensors": read_safetensors, "pt": read_hypernetwork, "png": read_picture}
    for ending, read in readers.items():
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            read(tmp_path / f"x.{ending}")


def test_no_program_is_started_for_an_embeddings_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow draws EPS with Ghostscript, whatever the file is called."""
    started: list[str] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: started.append("gs") or Image.new("RGB", (1, 1)))
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(ModelError, match=r"x\.png"):
        read_picture(tmp_path / "x.png")
    assert started == []


class Counted(Allocator):
    """The most bytes that were there at a time."""

    peak = 0

    def _allocated(self, storage: object) -> None:
        super()._allocated(storage)
        self.sizes = {**getattr(self, "sizes", {}), storage._cdata: storage.nbytes()}  # type: ignore[attr-defined]
        live = sum(size for address, size in self.sizes.items() if not self.made[address].expired())
        self.peak = max(self.peak, live)


def behind(data: bytes) -> bytes:
    return data[8 + struct.unpack("<Q", data[:8])[0] :]
