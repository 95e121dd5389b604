"""Formats that people's files come in: sound files to begin with, how they are mutated, and who reads them.

`FORMATS` is the registry: a format is a few sound files, an ending, a way to take a file apart so that damage reaches
behind checksums and compression, and a reader, which may raise a `TrainerError` and nothing else.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib_trainer.refusals import ConfigError, TrainerError

Mutate = Callable[[random.Random, bytes], bytes]
ODD_NUMBERS = (0, 1, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1)


@dataclass(frozen=True)
class Format:
    """`sound()`: files that the reader takes; `read(path)`: raises a `TrainerError` for what cannot be used."""

    ending: str
    sound: Callable[[], list[bytes]]
    read: Callable[[Path], None]
    inside: Mutate | None = None


def damaged(rng: random.Random, data: bytes, parts: bytes = b"") -> bytes:
    """One to six small accidents: bits, numbers, cuts, doubles, and pieces of another file."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        place = rng.randrange(len(result) + 1)
        end = min(len(result), place + rng.choice((1, 2, 4, 16, 64, 400)))
        match rng.randrange(8):
            case 0 if len(result):
                result[place % len(result)] ^= 1 << rng.randrange(8)
            case 1:
                result[place:end] = rng.randbytes(end - place)
            case 2:
                del result[place:end]
            case 3:
                result[place:place] = result[place:end] * rng.choice((1, 2, 50))
            case 4:
                number = rng.choice(ODD_NUMBERS)
                result[place : place + 4] = number.to_bytes(4, rng.choice(("big", "little")))
            case 5:
                del result[place:]
            case 6 if parts:
                start = rng.randrange(len(parts))
                result[place:end] = parts[start : start + rng.choice((4, 40, 400))]
            case _:
                result[place:place] = rng.choice(
                    (b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b'"', b"\xe2\x80\xa8", b"9" * 400)
                )
    return bytes(result)


# -- pictures ---------------------------------------------------------------------------------------------------------


def _picture(mode: str, kind: str, **options: Any) -> bytes:
    array = np.random.default_rng(1).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    return exif.tobytes()


def _pngs() -> list[bytes]:
    from PIL import PngImagePlugin

    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "a prompt\nSteps: 20", zip=True)
    texts.add_itxt("XML:com.adobe.xmp", "<x/>", zip=True)
    plain = [_picture(mode, "PNG") for mode in ("RGB", "RGBA", "P", "LA", "1")]
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    moving = io.BytesIO()
    frames[0].save(moving, "PNG", save_all=True, append_images=frames[1:])
    deep = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257).save(deep, "PNG")
    dressed = _picture("RGB", "PNG", pnginfo=texts, exif=_exif(), icc_profile=b"odd", dpi=(72, 72))
    return [*plain, dressed, moving.getvalue(), deep.getvalue()]


def _jpegs() -> list[bytes]:
    return [
        _picture("RGB", "JPEG", exif=_exif(), icc_profile=b"odd", comment=b"text"),
        _picture("RGB", "JPEG", progressive=True), _picture("CMYK", "JPEG"), _picture("L", "JPEG", quality=5),
    ]  # fmt: skip


def _webps() -> list[bytes]:
    return [
        _picture("RGB", "WEBP", exif=_exif(), icc_profile=b"odd"), _picture("RGBA", "WEBP", lossless=True),
        _picture("RGB", "WEBP", quality=20),
    ]  # fmt: skip


def _others() -> list[bytes]:
    return [
        *(_picture("RGB", kind) for kind in ("BMP", "TIFF", "GIF")),
        _picture("CMYK", "TIFF", compression="tiff_lzw"), _picture("P", "GIF", transparency=0),
        _picture("L", "TIFF", compression="tiff_adobe_deflate"), _picture("1", "TIFF", compression="group4"),
    ]  # fmt: skip


def _png_inside(rng: random.Random, data: bytes) -> bytes:
    """Damage in one chunk, whose checksum is right again; sometimes in what a chunk is called, or packed."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        length = struct.unpack(">I", data[place : place + 4])[0]
        chunks.append([data[place + 4 : place + 8], data[place + 8 : place + 8 + length]])
        place += 12 + length
    one = rng.choice(chunks)
    if one[0] == b"IDAT" and rng.random() < 0.5:
        one[1] = zlib.compress(damaged(rng, zlib.decompress(one[1])))
    elif rng.random() < 0.2:
        one[0] = rng.choice((b"iTXt", b"zTXt", b"eXIf", b"iCCP", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"gAMA", b"xxXx"))
    elif rng.random() < 0.2:
        chunks.insert(1, [rng.choice((b"zTXt", b"iTXt")), b"k\0\0" + zlib.compress(b"x" * (3 << 20))])
    else:
        one[1] = damaged(rng, one[1])
    if rng.random() < 0.2:
        rng.shuffle(chunks)
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def _read_picture(path: Path) -> None:
    from lib_trainer.dataset.facts import look_at
    from lib_trainer.dataset.pictures import fit, load_picture, read_header, read_size

    facts = look_at(path)
    assert facts.reason or facts.size, "a picture is known or told of"
    size = read_size(path)
    assert read_header(path).size == size
    picture = load_picture(path)
    assert picture.mode == "RGB"
    fit(picture, 64, 64)


# -- texts ------------------------------------------------------------------------------------------------------------


def _captions() -> list[bytes]:
    texts = [
        "1girl, solo, saber \\(fate\\), >_<, |_|", "zorb ||| a tall man, standing\nfirst person view\r\n", "\ufeffa, b",
        "a photo\nNegative prompt: bad\nSteps: 20, Sampler: Euler a, Seed: 1", "zorb，红发、蓝眼 <lora:x:1>", " \n ",
        "",
    ]  # fmt: skip
    return [text.encode() for text in texts] + ["schön".encode("latin-1"), "猫".encode("utf-16")]


def _read_caption(path: Path) -> None:
    from lib_trainer.captions.document import Caption, guess_encoding, read_document
    from lib_trainer.captions.edits import EDITS, Facts, make_edit
    from lib_trainer.captions.filters import Record, parse_filter
    from lib_trainer.dataset.scan import with_trigger
    from lib_trainer.tagging.captions.style import Existing, Guess, Style, compose

    data = path.read_bytes()
    guess_encoding(data)
    caption = read_document(path)
    assert caption.encode() == data, "nothing is lost in reading"
    for lines in ("all", "first", "random"):
        for text in caption.trained(lines):  # type: ignore[arg-type]
            assert text == " ".join(text.split()) and with_trigger(text, "zorb")
    values = {
        "add": {"tags": "x"},
        "remove": {"tags": "a*"},
        "replace": {"tags": "a", "by": "b"},
        "trigger": {"word": "z"},
    }
    expressions = {"regex-tags": {"expression": "a", "replacement": "b"}}
    values |= expressions | {"regex-captions": expressions["regex-tags"]}
    for name in EDITS:
        after = make_edit(name, values.get(name, {})).apply(caption, Facts())
        assert Caption.read(after.encode()).encode() == after.encode()
    for policy in ("merge", "replace", "prepend", "append"):
        done = compose(Existing(caption), [Guess("sky", 0.5, "wd 0.5")], Style(policy=policy))  # type: ignore[arg-type]
        assert done is None or "sky" in done.text
    with contextlib.suppress(ConfigError):  # a caption need be no filter
        parse_filter(caption.text).matches(Record("a", "", caption))


def _jobs() -> list[bytes]:
    from lib_trainer.config import JobConfig, dump_job

    folder = Path("dumped.toml").absolute()
    dump_job(JobConfig(), folder)
    whole = folder.read_bytes()
    folder.unlink()
    return [whole, b'version = 1\n[dataset]\nfolder = "C:\\\\x"\nrepeats = 3\n[blocks]\nranks = "middle = 4"\n']


def _read_job(path: Path) -> None:
    from lib_trainer.config import load_job

    load_job(path)


def _tables() -> list[bytes]:
    head = "tag_id,name,category,count\n"
    return [
        (head + "".join(f"{n},tag_{n},{c},5\n" for n, c in enumerate((9, 9, 0, 0, 0, 4)))).encode(),
        (head + '1,"a, b",0,3\r\n2,>_<,0,1\r\n').encode("utf-8-sig"),
    ]


def _read_table(path: Path) -> None:
    from lib_trainer.captions.knowledge import read_knowledge
    from lib_trainer.tagging.models.labels import read_labels

    try:
        read_labels(path)
    finally:  # the tables that a set adds to what is known of tags are of the same sort
        for name in ("implications.csv", "groups.csv", "exclusive.csv", "asymmetric.csv"):
            (path.parent / name).write_bytes(path.read_bytes())
            try:
                read_knowledge([path.parent])
            except TrainerError:
                continue
            finally:
                (path.parent / name).unlink()


# -- model files ------------------------------------------------------------------------------------------------------


class Canary:
    """What a pickle that is executed leaves behind."""

    def __init__(self, call: Callable[..., Any], *given: Any) -> None:
        self.call, self.given = call, given

    def __reduce__(self) -> Any:
        return self.call, self.given


def _evil() -> list[Any]:
    import os

    touched = "open('canary', 'w').close()"
    return [
        Canary(exec, touched),
        Canary(eval, touched),
        Canary(os.system, "touch canary"),
        Canary(open, "canary", "w"),
    ]


def _embeddings() -> list[bytes]:
    import safetensors.torch
    import torch

    rows = torch.arange(64, dtype=torch.float32).reshape(2, 32)
    lora = {f"lora_unet_x.{name}": torch.ones(4, 4) for name in ("lora_down.weight", "lora_up.weight")}
    lora["lora_unet_x.alpha"] = torch.tensor(2.0)
    model = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3), "first_stage_model.x": rows}
    return [
        safetensors.torch.save({"emb_params": rows}, {"name": "x"}),
        safetensors.torch.save(lora, {"ss_network_dim": "4"}),
        safetensors.torch.save(model), safetensors.torch.save({"768": torch.zeros(2, 2), "a.b": rows.half()}),
    ]  # fmt: skip


def _safetensors_inside(rng: random.Random, data: bytes) -> bytes:
    """Damage in the header, whose length is right again; sometimes numbers in it."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.5:
        table = json.loads(header)
        name = rng.choice([key for key in table if key != "__metadata__"])
        odd = rng.choice((-1, 0, 3, 2**40, 2**63, 2**70, "x", None, [], 1.5))
        match rng.randrange(4):
            case 0:
                table[name]["data_offsets"][rng.randrange(2)] = odd
            case 1:
                table[name]["shape"] = [odd, odd]
            case 2:
                table[name]["dtype"] = rng.choice(("F8_E4M3", "I64", "BOOL", "X", 3, "F64", "BF16"))
            case _:
                table["__metadata__"] = {"a": odd, rng.choice(("ss_network_dim", "sd_models", "name")): odd}
        header = json.dumps(table).encode()
    else:
        header = damaged(rng, header)
    return len(header).to_bytes(8, "little") + header + rest


def _read_weights(path: Path) -> None:
    from lib_trainer.networks.formats import checkpoint_file, embedding_file, hypernetwork_file, lora_file
    from lib_trainer.toolbox.facts import facts_of
    from lib_trainer.toolbox.source import open_source

    readers: list[Callable[[Path], Any]] = [
        embedding_file.read_embedding, hypernetwork_file.read_hypernetwork, lora_file.read_lora,
        checkpoint_file.read_state_dict, checkpoint_file.read_checkpoint, checkpoint_file.read_shapes,
        lambda path: facts_of(open_source(path)),
    ]  # fmt: skip
    with contextlib.suppress(TrainerError):
        checkpoint_file.count_parameters(path)  # an estimate: what is no checkpoint has none
    refused: list[TrainerError] = []
    for read in readers:
        try:
            read(path)
        except TrainerError as error:
            assert str(error).strip()
            refused.append(error)
    if len(refused) == len(readers):
        raise refused[0]


def _pickles() -> list[bytes]:
    import torch

    rows = torch.arange(64, dtype=torch.float32).reshape(2, 32)
    embedding = {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "x", "step": 3}
    hyper = {32: ({"linear.0.weight": torch.zeros(32, 32)}, {"linear.0.weight": torch.zeros(32, 32)}), "step": 1}
    result = []
    for data in (embedding, hyper, {"state_dict": {"a": rows}}, *({"x": evil, **embedding} for evil in _evil())):
        for new in (True, False):
            buffer = io.BytesIO()
            torch.save(data, buffer, _use_new_zipfile_serialization=new)
            result.append(buffer.getvalue())
    return result + [pickle.dumps(evil) for evil in _evil()]


def _zip_inside(rng: random.Random, data: bytes) -> bytes:
    """Damage in one record of the archive, whose checksum is right again; sometimes in what a record is called."""
    if not data.startswith(b"PK"):
        return damaged(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [[name, archive.read(name)] for name in archive.namelist()]
    one = (
        next((r for r in records if r[0].endswith("data.pkl")), records[0])
        if rng.random() < 0.7
        else rng.choice(records)
    )
    if rng.random() < 0.15:
        one[0] = rng.choice(("../../canary", "/canary", "archive/data/99", "archive/x.pkl", "archive/code/a.py"))
    else:
        one[1] = damaged(rng, one[1])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records:
            archive.writestr(name, content)
    return buffer.getvalue()


FORMATS = {
    "png": Format(".png", _pngs, _read_picture, _png_inside),
    "jpeg": Format(".jpg", _jpegs, _read_picture),
    "webp": Format(".webp", _webps, _read_picture),
    "picture": Format(".png", _others, _read_picture),
    "caption": Format(".txt", _captions, _read_caption),
    "job": Format(".toml", _jobs, _read_job),
    "csv": Format(".csv", _tables, _read_table),
    "safetensors": Format(".safetensors", _embeddings, _read_weights, _safetensors_inside),
    "pt": Format(".pt", _pickles, _read_weights, _zip_inside),
}


def make(name: str, number: int, seed: int) -> bytes:
    """Input `number` of a format: the first ones are sound, the others damaged outside or behind their checksums."""
    one, rng = FORMATS[name], random.Random(f"{name} {number} {seed}")
    sound = one.sound()
    if number < len(sound):
        return sound[number]
    data = rng.choice(sound)
    if one.inside is not None and rng.random() < 0.6:
        data = one.inside(rng, data)
        return data if rng.random() < 0.8 else damaged(rng, data)
    return damaged(rng, data, rng.choice(sound))
