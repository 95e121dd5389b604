"""The reader of pickles: what torch writes is read as torch reads it, and nothing that a file asks for is done."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import random
import struct
import subprocess
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from torch import nn

from lib_trainer.families.known import DEFAULT
from lib_trainer.networks.formats.embedding_file import read_embedding, write_embedding
from lib_trainer.networks.formats.hypernetwork_file import read_hypernetwork
from lib_trainer.networks.formats.lora_file import read_lora
from lib_trainer.networks.formats.plain_pickle import read_plain, read_values
from lib_trainer.networks.formats.reading import read_safetensors
from lib_trainer.networks.formats.torch_archive import write_archive
from lib_trainer.networks.hypernetwork import Structure
from lib_trainer.refusals import ModelError

HELD: dict[str, Any] = {
    "views": [torch.arange(24.0).reshape(4, 6)[1:, ::2], torch.arange(6.0).reshape(2, 3).t()],
    "types": [torch.arange(5).to(dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64)],
    "small": [torch.tensor(2.5), torch.empty(0, 3), torch.tensor([True, False]), torch.ones(3).to(torch.uint8)],
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    "state": torch.nn.Sequential(torch.nn.Linear(3, 4)).state_dict(),
    "shared": [torch.zeros(3)] * 2,
    "plain": {"text": "ü", "number": 3, 4: (1.5, None, True), "set": {1, 2}, "size": torch.Size([1, 2])},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_it_reads_what_torch_reads(tmp_path: Path, *, zipped: bool) -> None:
    path = tmp_path / "a.pt"
    torch.save(HELD, path, _use_new_zipfile_serialization=zipped)
    ours, theirs = read_plain(path), torch.load(path, weights_only=True)
    assert ours["plain"] == theirs["plain"] and ours["state"].keys() == theirs["state"].keys()
    for name in ("views", "types", "small", "shared"):
        for one, other in zip(ours[name], theirs[name], strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)
    assert torch.equal(ours["parameter"], theirs["parameter"])
    assert all(torch.equal(ours["state"][name], theirs["state"][name]) for name in ours["state"])


def archived(held: dict[Any, Any]) -> bytes:
    file = io.BytesIO()
    write_archive(file, held)
    return file.getvalue()


def test_what_is_written_is_read_by_torch(tmp_path: Path) -> None:
    held = {
        320: (OrderedDict(a=torch.randn(3, 4)), {"b": torch.tensor(2.0)}),
        "n": None,
        "h": torch.randn(5, 2).half().t(),
        "none": torch.zeros(0, 3),
    }
    path = tmp_path / "a.pt"
    path.write_bytes(archived(held))
    for read in (read_plain(path), torch.load(path, weights_only=True), torch.load(path, weights_only=True, mmap=True)):
        assert torch.equal(read[320][0]["a"], held[320][0]["a"]) and float(read[320][1]["b"]) == 2
        assert torch.equal(read["h"], held["h"]) and read["n"] is None
        assert read["none"].shape == (0, 3)
    assert path.read_bytes() == archived(held)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert [one.filename for one in archive.infolist()][-1] == "archive/version"


def test_a_large_file_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_trainer.networks.formats import plain_pickle

    monkeypatch.setattr(plain_pickle, "MAPPED_FROM", 0)
    path = tmp_path / "a.pt"
    torch.save({"a": torch.arange(1000.0)}, path)
    before = path.read_bytes()
    read = read_plain(path)["a"]
    read[0] = 7  # a copy of its own
    assert float(read.sum()) == float(torch.arange(1000.0).sum()) + 7
    assert path.read_bytes() == before


class Calls:
    """Pickles itself as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


CANARY = "canary"
CODE: dict[str, Callable[[], Any]] = {
    "a command": lambda: Calls(os.system, f"touch {CANARY}"),
    "another command": lambda: Calls(subprocess.Popen, ["touch", CANARY]),
    "eval": lambda: Calls(eval, f"open({CANARY!r}, 'w')"),
    "getattr": lambda: Calls(getattr, "x", "join"),
    "a path": lambda: Calls(Path.touch, Path(CANARY)),
    "torch's loader": lambda: Calls(torch.load, CANARY),
    "a module": lambda: torch.nn.Linear(2, 2),
    "a function of torch": lambda: Calls(torch.hub.load, CANARY),
    "a file as a tensor": lambda: Calls(torch.from_file, CANARY, True, 10),
    "numpy from a file": lambda: Calls(np.fromfile, CANARY),
    "a dictionary of functions": lambda: {"a": len},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("code", CODE.values(), ids=CODE.keys())
def test_code_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: Callable[[], Any], *, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    torch.save({"string_to_param": {"*": torch.zeros(1, 4)}, 320: code()}, path, _use_new_zipfile_serialization=zipped)
    for read in (read_plain, read_embedding, read_hypernetwork, read_lora):
        with pytest.raises(ModelError, match=r"a\.pt is not a file of tensors and plain values \(it holds code: "):
            read(path)
    assert [one.name for one in tmp_path.iterdir()] == ["a.pt"]


def program(code: bytes) -> bytes:
    """An archive with a pickle of one's own and a tensor of 16 bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", code)
        archive.writestr("a/data/0", bytes(16))
    return buffer.getvalue()


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE


def test_the_programs_below_are_near_to_one_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(program(b"\x80\x02}X\x01\x00\x00\x00a" + TENSOR + b"K\x00(K\x02K\x02t(K\x02K\x01t\x89NtRs."))
    assert torch.equal(read_plain(path)["a"], torch.zeros(2, 2))


PROGRAMS = {
    "beyond its bytes": TENSOR + b"K\x00(K\x09K\x02t(K\x02K\x01t\x89NtR",
    "before its bytes": TENSOR + b"J\xff\xff\xff\xff(K\x02K\x02t(K\x02K\x01t\x89NtR",
    "endless": TENSOR + b"K\x00(\x8a\x06\x00\x00\x00\x00\x00\x01K\x02t(K\x00K\x00t\x89NtR",
    "a size that is a text": TENSOR + b"K\x00(X\x01\x00\x00\x00aK\x02t(K\x02K\x01t\x89NtR",
    "without bytes": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00(K\x01t(K\x01t\x89NtR",
    "another record": STORAGE.replace(b"X\x01\x00\x00\x000", b"X\x08\x00\x00\x00../../et"),
    "a huge storage": STORAGE.replace(b"K\x04", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"),
    "a changed stand-in": b"ctorch\nSize\n}X\x04\x00\x00\x00workctorch._utils\n_rebuild_parameter\nsb",
    "a changed class": b"ccollections\nOrderedDict\nN}X\x05\x00\x00\x00itemsctorch\nSize\ns\x86b",
    "a storage that is called": b"ctorch\nFloatStorage\n)R",
    "an unfinished one": b"(((((",
    "an unknown extension": b"\x82\x01",
    "nested without end": b"(" * 100_000,
}


@pytest.mark.parametrize("code", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_programs_that_torch_never_writes(tmp_path: Path, code: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(program(b"\x80\x02}X\x01\x00\x00\x00a" + code + b"s."))
    with pytest.raises(ModelError, match=r"a\.pt (is not a file of tensors|holds no)"):
        read_plain(path)


def test_archives_that_are_none_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    plain, packed = program(b"\x80\x02}."), io.BytesIO()
    assert path.write_bytes(plain) and read_plain(path) == {}
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps(list(range(10)), 2))
        archive.writestr("a/data/0", b"\0" * (1 << 24))
    for content, said in (
        (b"", "the file is empty"),
        (plain[:-10], "not a file"),
        (plain.replace(b"data.pkl", b"Data.pkl"), "one data.pkl was expected"),
        (packed.getvalue(), "holds no dictionary"),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=said):
            read_plain(path)
    big = io.BytesIO()
    with zipfile.ZipFile(big, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/byteorder", b"big")
    path.write_bytes(big.getvalue())
    with pytest.raises(ModelError, match="highest byte first"):
        read_plain(path)


def test_damaged_files_end_in_a_sentence(tmp_path: Path) -> None:
    """A thousand of them, with fixed seeds: changed, cut and lengthened anywhere."""
    path, whole = tmp_path / "a.pt", []
    held = {"string_to_param": {"*": torch.randn(2, 8)}, "name": "x", 8: ({"linear.0.weight": torch.randn(4, 8)}, {})}
    for zipped in (True, False):
        torch.save(held, path, _use_new_zipfile_serialization=zipped)
        whole.append(path.read_bytes())
    save_file({"emb_params": torch.randn(2, 8)}, str(path), {"a": "b"})
    whole.append(path.read_bytes())
    generator, read = random.Random(1), 0
    for number in range(1000):
        data = bytearray(whole[number % 3])
        for _ in range(generator.randint(1, 8)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        if number % 5 == 0:
            del data[generator.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            read_embedding(path)
            read += 1
        except ModelError as error:
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 500
        try:
            read_hypernetwork(path)
        except ModelError as error:
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 500
    assert 10 < read < 990


ROWS = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))


def test_embeddings_of_every_layout(tmp_path: Path) -> None:
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(ROWS)})
    held: dict[str, Any] = {
        "webui.pt": {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": ROWS.clone().requires_grad_()},
            "name": "x",
        },
        "first.pt": {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters},
        "concept.BIN": {"<cat>": ROWS},
        "scripts.pt": {"emb_params": ROWS},
        "with notes.pt": {"emb_params": ROWS, "name": "x", "step": 3},
        "bare.pt": ROWS,
        "half.pt": {"emb_params": ROWS.half()},
    }
    for name, data in held.items():
        for zipped in (True, False):
            torch.save(data, tmp_path / name, _use_new_zipfile_serialization=zipped)
            torch.testing.assert_close(read_embedding(tmp_path / name)["te1"], ROWS, rtol=1e-3, atol=1e-3)
    torch.save({"<cat>": ROWS[0]}, tmp_path / "one.bin")
    assert torch.equal(read_embedding(tmp_path / "one.bin")["te1"], ROWS[:1])
    for name, tensors in (("a.SAFETENSORS", {"emb_params": ROWS}), ("b.safetensors", {"<cat>": ROWS})):
        save_file(tensors, str(tmp_path / name))
        assert torch.equal(read_embedding(tmp_path / name)["te1"], ROWS)


def test_an_embedding_says_what_it_was_trained_on(tmp_path: Path) -> None:
    facts = {"ss_steps": "7", "ss_new_sd_model_hash": "0123456789abcdef", "ss_sd_model_name": "some model.safetensors"}
    wanted = {"name": "zrk", "step": 7, "sd_checkpoint": "0123456789", "sd_checkpoint_name": "some model"}
    unknown = {"name": "new", "step": 0, "sd_checkpoint": None, "sd_checkpoint_name": None}
    for name, given, told in (("zrk", facts, wanted), ("new", {}, unknown)):
        write_embedding(tmp_path / f"{name}.pt", {"te1": ROWS}, given, DEFAULT, overwrite=False)
        held = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert {key: value for key, value in held.items() if not key.startswith("string_to")} == told
        assert held["string_to_token"] == {"*": 265} and torch.equal(held["string_to_param"]["*"], ROWS)


def mixed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As the WebUI does it, number by number."""
    state, numbers = 0, []
    for _ in range(values.size):
        state = (1664525 * state + 1013904223) % 2**32
        numbers.append(state % 255)
    return (values ^ (np.array(numbers, np.uint8).reshape(values.shape) & 0x0F)) | 0x80


def test_embeddings_in_pictures(tmp_path: Path) -> None:
    data = json.dumps({"name": "zrk", "string_to_param": {"*": {"TORCHTENSOR": ROWS.tolist()}}}).encode()
    text = PngImagePlugin.PngInfo()
    text.add_text("sd-ti-embedding", base64.b64encode(data).decode())
    picture = Image.new("RGB", (64, 64), (200, 100, 50))
    picture.save(tmp_path / "text.png", pnginfo=text)
    packed = np.frombuffer(zlib.compress(data), np.uint8)
    blocks = []
    for half in (packed & 0x0F, packed >> 4):
        width = -(-half.size // (64 * 3))
        blocks.append(mixed(np.resize(half, 64 * width * 3).reshape(64, width, 3)))
    gap = np.zeros((64, 1, 3), np.uint8)
    pixels = np.concatenate([blocks[0], gap, np.asarray(picture) | 1, gap, blocks[1]], axis=1)
    Image.fromarray(pixels).save(tmp_path / "pixels.png")
    Image.fromarray(pixels).save(tmp_path / "pixels.webp", lossless=True)
    for name in ("text.png", "pixels.png", "pixels.webp"):
        torch.testing.assert_close(read_embedding(tmp_path / name)["te1"], ROWS)
    picture.save(tmp_path / "plain.png")
    with pytest.raises(ModelError, match=r"plain\.png is a picture without an embedding"):
        read_embedding(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ModelError, match=r"broken\.png is not a readable picture"):
        read_embedding(tmp_path / "broken.png")


def test_metadata_of_any_kind(tmp_path: Path) -> None:
    """The format wants texts; some tools write what they have."""
    path = tmp_path / "a.safetensors"
    save_file({"emb_params": ROWS}, str(path), {"a": "b", "": "", "ü": '{"x": 1}'})
    assert read_safetensors(path)[1] == {"a": "b", "": "", "ü": '{"x": 1}'}
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for metadata, wanted in (
        ({"n": 3, "l": [1], "t": "x"}, {"n": "3", "l": "[1]", "t": "x"}),
        ({"o": None}, {"o": "null"}),
    ):
        strange = json.dumps(header | {"__metadata__": metadata}).encode()
        path.write_bytes(struct.pack("<Q", len(strange)) + strange + data[8 + length :])
        tensors, read = read_safetensors(path)
        assert read == wanted and torch.equal(tensors["emb_params"], ROWS)


def test_a_file_under_the_wrong_ending_is_read_as_what_it_is(tmp_path: Path) -> None:
    torch.save({"emb_params": ROWS}, tmp_path / "a.safetensors")
    save_file({"emb_params": ROWS}, str(tmp_path / "b.pt"))
    for name in ("a.safetensors", "b.pt"):
        assert torch.equal(read_embedding(tmp_path / name)["te1"], ROWS)


def test_old_hypernetworks(tmp_path: Path) -> None:
    def layers(size: int, first: str = "linear.0", second: str = "linear.2") -> dict[str, torch.Tensor]:
        state = {f"{first}.weight": torch.randn(size * 2, size), f"{first}.bias": torch.randn(size * 2)}
        return state | {f"{second}.weight": torch.randn(size, size * 2), f"{second}.bias": torch.randn(size)}

    old = {size: (layers(size, "linear1", "linear2"), layers(size, "linear1", "linear2")) for size in (32, 64)}
    later: dict[Any, Any] = {size: (layers(size), layers(size)) for size in (32, 64)}
    later |= {"step": 3, "name": "x", "activation_func": "gelu", "use_dropout": True, "sd_checkpoint": None}
    for name, held, first in (("first", old, "linear1"), ("later", later, "linear.0")):
        for zipped in (True, False):
            path = tmp_path / f"{name}.PT"
            torch.save(held, path, _use_new_zipfile_serialization=zipped)
            network: Any = read_hypernetwork(path)
            assert network.sizes == (32, 64)
            assert torch.equal(network.keys["32"][0].weight, held[32][0][f"{first}.weight"])
    torch.save({32: (layers(32), layers(32)), "layer_structure": [1, 10**9, 1]}, tmp_path / "huge.pt")
    with pytest.raises(ModelError, match="do not fit their structure"):
        read_hypernetwork(tmp_path / "huge.pt")


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ({}, ()),
        ({"use_dropout": True}, (0, 0.3, 0, 0)),
        ({"use_dropout": True, "last_layer_dropout": True}, (0, 0.3, 0.3, 0)),
        ({"last_layer_dropout": True}, ()),
        ({"use_dropout": True, "dropout_structure": [0, 0.1, 0.2, 0]}, (0, 0.1, 0.2, 0)),
    ],
)
def test_dropouts_of_old_and_new_hypernetworks(
    tmp_path: Path, facts: dict[str, Any], wanted: tuple[float, ...]
) -> None:
    structure = Structure((1, 2, 2, 1), dropouts=wanted)
    pair = tuple({f"linear.{name}": one for name, one in structure.module(8).state_dict().items()} for _ in range(2))
    torch.save({8: pair, "layer_structure": [1, 2, 2, 1], "activation_func": "linear", **facts}, tmp_path / "a.pt")
    network = read_hypernetwork(tmp_path / "a.pt")
    assert network.structure.dropouts == wanted
    for module in (network.keys["8"], network.values["8"]):
        assert [one.p for one in module if isinstance(one, nn.Dropout)] == [one for one in wanted if one]


@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_empty_keeps_its_shape_and_type(tmp_path: Path, zipped: bool) -> None:
    held = {"a": torch.empty(0, 3, dtype=torch.float16), "b": torch.empty(2, 0, dtype=torch.int64)}
    torch.save(held, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    read = read_plain(tmp_path / "a.pt")
    assert {name: (one.shape, one.dtype) for name, one in read.items()} == {
        name: (one.shape, one.dtype) for name, one in held.items()
    }


def test_a_lora_that_torch_saved_has_no_metadata(tmp_path: Path) -> None:
    torch.save({"lora_unet_a.lora_down.weight": ROWS, "step": 3}, tmp_path / "a.pt")
    read = read_lora(tmp_path / "a.pt")
    assert read.metadata == {} and [*read.tensors] == ["lora_unet_a.lora_down.weight"]


class _View:
    """Stands for a storage while an old file is written."""


class _Part:
    """A tensor of two numbers on such a storage."""

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (_View(), 0, (2,), (1,), False, OrderedDict())


def test_views_of_old_files_begin_at_their_place(tmp_path: Path) -> None:
    """Before 1.6 a storage could be a part of another: (its name, where it begins, how many numbers)."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.DoubleStorage, "0", "cpu", 4, ("1", 1, 2)) if isinstance(obj, _View) else None

    file = io.BytesIO()
    for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(one, file, protocol=2)
    Pickler(file, protocol=2).dump({"a": _Part()})
    pickle.dump(["0"], file, protocol=2)
    file.write(struct.pack("<q4d", 4, 1.0, 2.0, 3.0, 4.0))
    (tmp_path / "old.pt").write_bytes(file.getvalue())
    assert read_plain(tmp_path / "old.pt")["a"].tolist() == [2.0, 3.0]


def test_values_without_a_dictionary(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.pt")
    assert read_values(tmp_path / "a.pt") == [1, 2]
    with pytest.raises(ModelError, match=r"a\.pt holds no dictionary of tensors"):
        read_plain(tmp_path / "a.pt")
