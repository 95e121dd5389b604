"""LoRA files: safetensors with sd-scripts' metadata, as the WebUI's Lora loader and its card read them.

Layout: an 8-byte little-endian header length, a JSON header (tensors and a `__metadata__` of strings), the tensors'
bytes (https://github.com/huggingface/safetensors). `sshs_model_hash` is the SHA-256 of everything behind the header, so
that editing the metadata does not change a file's identity; `sshs_legacy_hash` is the WebUI's older one, of 64 KiB from
the first MiB on, of a file with the `ss_` metadata alone (sd-scripts, precalculate_safetensors_hashes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lib_trainer.families.family import Family, Part
from lib_trainer.files import found
from lib_trainer.networks.formats.embedding_rows import named_rows, rows_of
from lib_trainer.networks.formats.lora_facts import BUNDLED, with_ranks
from lib_trainer.networks.formats.plain_pickle import read_plain
from lib_trainer.networks.formats.reading import is_pickle, read_safetensors
from lib_trainer.networks.formats.tensor_file import content, write_tensors
from lib_trainer.networks.lora import module_keys
from lib_trainer.ports import Rows
from lib_trainer.refusals import ModelError

__all__ = ["BUNDLED", "LORA_ENDINGS", "LoraFile", "bundled", "lora_metadata", "read_lora", "write_lora"]

LORA_ENDINGS = (".safetensors", ".pt", ".ckpt")
"""Of what `<lora:name:1>` finds, as in the WebUI."""

SINGLE = "string_to_param.*"
"""Of an embedding for one text encoder in a LoRA file."""

LEGACY = range(0x100000, 0x110000)
"""Bytes of a file that the oldest of the hashes is made of."""


def bundled(embeddings: Mapping[str, Rows], family: Family, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors by which a LoRA file brings embeddings along: `bundle_emb.<name>.string_to_param.*`, each (n, D), or
    `bundle_emb.<name>.clip_l` and `.clip_g`."""
    several = len(family.encoders) > 1
    return {
        f"{BUNDLED}{word}.{name if several else SINGLE}": tensor
        for word, rows in embeddings.items()
        for name, tensor in named_rows(rows, family, dtype).items()
    }


@dataclass(frozen=True)
class LoraFile:
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]

    def embeddings(self, family: Family) -> dict[str, dict[Part, torch.Tensor]]:
        """{name: rows} of the embeddings that the file brings along, in the WebUI's `bundle_emb` layout."""
        words: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in self.tensors.items():
            if name.startswith(BUNDLED):
                word, _, vectors = name[len(BUNDLED) :].partition(".")
                words.setdefault(word, {})[vectors] = tensor
        found = {word: rows_of(tensors, family) for word, tensors in words.items()}
        return {word: rows for word, rows in found.items() if rows is not None}


def write_lora(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], *, overwrite: bool
) -> None:
    """Write a LoRA file whole or not at all. Raises `SaveError` naming the file and the remedy.

    What metadata says of ranks, alphas and hashes is read from the tensors.
    """
    write_tensors(path, tensors, lora_metadata(tensors, metadata), overwrite=overwrite)


def lora_metadata(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    named: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, str]:
    """The metadata with what the tensors tell: ranks, alphas and hashes. `named`: the same by sd-scripts' names, where
    the file has others."""
    described = with_ranks(metadata, tensors if named is None else named)
    trained = {name: value for name, value in described.items() if name.startswith("ss_")}
    return described | _identity(tensors, trained)


def _identity(tensors: Mapping[str, torch.Tensor], trained: Mapping[str, str]) -> dict[str, str]:
    """Hashes of a file with the metadata of training alone: of all behind its header, and of 64 KiB at 1 MiB."""
    model, legacy, place = hashlib.sha256(), hashlib.sha256(), 0
    for number, piece in enumerate(content(tensors, trained)):
        if number:
            model.update(piece)
        legacy.update(piece[max(0, LEGACY.start - place) : max(0, LEGACY.stop - place)])
        place += len(piece)
    return {"sshs_model_hash": model.hexdigest(), "sshs_legacy_hash": legacy.hexdigest()[:8]}


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA file. Raises `ModelError` naming the file if it is not one."""
    if is_pickle(path):
        tensors = {name: one for name, one in read_plain(found(path)).items() if isinstance(one, torch.Tensor)}
        metadata: dict[str, str] = {}
    else:
        tensors, metadata = read_safetensors(path)
    if not module_keys(tensors):
        raise ModelError("lora.not_one", path=path)
    return LoraFile(tensors, metadata)
