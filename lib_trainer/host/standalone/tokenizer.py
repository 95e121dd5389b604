"""CLIP's byte-pair tokenizer without a network: vocabulary and merges rebuilt from the file beside this module.

`clip_merges.txt.gz` holds the first 48,894 merges of OpenAI CLIP's `bpe_simple_vocab_16e6.txt.gz`
(github.com/openai/CLIP, MIT licence, Copyright (c) 2021 OpenAI), as the wheel of open_clip_torch ships it; CLIP and
Stable Diffusion use no others. The 49,408 ids follow: 256 bytes, the same at a word's end, the merges, two marks.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MERGES_FILE = Path(__file__).with_name("clip_merges.txt.gz")
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
"""Tokens of one text chunk, the two marks included."""


def _byte_letters() -> list[str]:
    """One printable character for each of the 256 bytes, in CLIP's order: printable bytes first, then the rest."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printable]
    return letters + [chr(256 + k) for k in range(256 - len(printable))]


def read_merges() -> list[str]:
    """The merges in order of rank, each "left right"."""
    return gzip.decompress(MERGES_FILE.read_bytes()).decode("utf-8").splitlines()


def vocabulary() -> dict[str, int]:
    """Token to id, 0 to 49407."""
    letters = _byte_letters()
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += [merge.replace(" ", "") for merge in read_merges()]
    tokens += [START, END]
    return {token: index for index, token in enumerate(tokens)}


def _files() -> dict[str, str]:
    """Name and content of every file that transformers' CLIPTokenizer reads."""

    def mark(content: str, normalized: bool = True) -> dict[str, object]:
        return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}

    config = {
        "add_prefix_space": False,
        "bos_token": {"__type": "AddedToken", **mark(START)},
        "do_lower_case": True,
        "eos_token": {"__type": "AddedToken", **mark(END)},
        "errors": "replace",
        "model_max_length": MAX_LENGTH,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": {"__type": "AddedToken", **mark(END)},
    }
    special = {"bos_token": mark(START), "eos_token": mark(END), "pad_token": END, "unk_token": mark(END)}
    return {
        "vocab.json": json.dumps(vocabulary(), ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *read_merges()]) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }


def write_tokenizer(folder: Path) -> Path:
    """Write vocab.json, merges.txt and the two settings files into folder (made if absent), and return it.

    The bytes are always the same, and each file is moved into place whole, so several writers do no harm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _files().items():
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        try:
            temporary.write_text(text, encoding="utf-8", newline="\n")
            os.replace(temporary, folder / name)
        finally:
            temporary.unlink(missing_ok=True)
    return folder


@lru_cache(maxsize=1)
def load_tokenizer() -> CLIPTokenizer:
    """SD1's tokenizer, built once a process through a folder that is gone afterwards; reads nothing from a network."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory(prefix="clip-tokenizer-") as folder:
        return CLIPTokenizer.from_pretrained(str(write_tokenizer(Path(folder))), local_files_only=True)
