"""The registry: kinds of taggers that can be opened, and the models that are known by name.

A kind says whether a folder is its own and opens it as a `Tagger`. A known model has an address on the model hub and,
where its author has published one, the threshold at which precision equals recall on the validation set.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lib_trainer.refusals import Sentence, TaggerError
from lib_trainer.tagging.choices import DEFAULT_THRESHOLD
from lib_trainer.tagging.models.files import WD_FILES
from lib_trainer.tagging.models.labels import Labels

USUAL_KIND = "wd"
"""Of a known model, and of a folder in which nothing says otherwise."""


class Tagger(Protocol):
    """A loaded model. Thread-safe in `load` and `batch`; `scores` is called from one thread."""

    name: str
    fingerprint: str
    """Hexadecimal: the same files give the same, whatever the folder is called."""
    labels: Labels
    side: int
    max_batch: int
    """How many pictures the model takes at once, at most: its batch dimension, where that is fixed."""
    device: str
    """The execution provider that runs, in the user's words: 'CPU', 'CUDA'."""
    notes: Sequence[Sentence]
    """Sentences for the user, such as a fallback from CUDA to the CPU."""

    def load(self, path: Path, data: bytes | None = None) -> NDArray[np.uint8]:
        """A file, decoded and fitted. Raises `PictureError`."""

    def fit(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB picture in memory, fitted."""

    def batch(self, pictures: Sequence[NDArray[np.uint8]]) -> Any:
        """What `scores` takes, from what `load` and `fit` gave."""

    def scores(self, batch: Any) -> NDArray[np.float32]:
        """Probabilities (n, labels)."""


@dataclass(frozen=True)
class KnownModel:
    """`threshold`: precision = recall by the model's card; None where none was published or could be confirmed.
    `hashes`: {file: SHA-256 in hexadecimal} at `revision`, as far as several independent sources agree; what the hub or
    a mirror sends instead is refused."""

    name: str
    repo: str
    revision: str
    threshold: float | None
    about: str
    hashes: Mapping[str, str] = field(default_factory=dict, hash=False)
    kind: str = USUAL_KIND


@dataclass(frozen=True)
class Kind:
    """How a folder is recognised and opened. `files` must all be there; `fingerprint` tells them from another model's
    without opening it (`Tagger.fingerprint`)."""

    name: str
    files: tuple[str, ...]
    open: Callable[..., Tagger]
    fingerprint: Callable[[Path], str]


def _open_wd(folder: Path, **options: Any) -> Tagger:
    from lib_trainer.tagging.models.wd import WdTagger

    return WdTagger(folder, **options)


def _fingerprint_wd(folder: Path) -> str:
    from lib_trainer.tagging.models.wd import fingerprint

    return fingerprint(folder)


KINDS: Mapping[str, Kind] = {"wd": Kind("wd", WD_FILES, _open_wd, _fingerprint_wd)}


def kind_of(folder: Path) -> Kind:
    """The kind whose files are there; where no kind's are, the usual one, whose `problem` says what is missing."""
    kinds = [kind for kind in KINDS.values() if any((folder / name).exists() for name in kind.files)]
    return (kinds or [KINDS[USUAL_KIND]])[0]


TAGS_V3 = "298633d94d0031d2081c0893f29c82eab7f0df00b08483ba8f29d1e979441217"
"""SHA-256 of the list of tags, which all models of the third generation share."""

TAGS_V2 = "8c8750600db36233a1b274ac88bd46289e588b338218c2e4c62bbc9f2b516368"
"""The same of the second generation."""


def _v2(name: str, revision: str, model: str, threshold: float, about: str) -> KnownModel:
    """`model`: SHA-256 of the network."""
    hashes = {"model.onnx": model, "selected_tags.csv": TAGS_V2}
    return KnownModel(name, f"SmilingWolf/{name}", revision, threshold, about, hashes)


def _v3(name: str, revision: str, model: str, threshold: float | None, about: str) -> KnownModel:
    """`model`: SHA-256 of the network."""
    hashes = {"model.onnx": model, "selected_tags.csv": TAGS_V3}
    return KnownModel(name, f"SmilingWolf/{name}", revision, threshold, about, hashes)


KNOWN_MODELS: tuple[KnownModel, ...] = (
    _v3(
        "wd-vit-tagger-v3",
        "7f6b584d0bd3f55c4531f14ba3d4761b2bccdc0f",
        "35f23693620b668f4d53fd3c62bf65e40af739bc52c7eb0fbc49258b58d065b6",
        0.2614,
        "small and quick",
    ),
    _v3(
        "wd-swinv2-tagger-v3",
        "627aef95638667ddcaa3ac8ae625e88ea5b02f51",
        "e6774bff34d43bd49f75a47db4ef217dce701c9847b546523eb85ff6dbba1db1",
        0.2653,
        "a good first choice",
    ),
    _v3(
        "wd-convnext-tagger-v3",
        "d39e46de298d27340111b64965e20b8185c407e6",
        "1b8a7abf13d9b8368267df47501d523789c4aeae66b2296ad98483239dfa32eb",
        0.2682,
        "between the two",
    ),
    _v3(
        "wd-eva02-large-tagger-v3",
        "b25b82a03f7282e41aa2f257a52c7583b710bd1c",
        "9e768793060c7939b277ccb382783e8670e8a042d29d77aa736be0c8cc898bfc",
        0.5296,
        "best, slowest",
    ),
    _v3(
        "wd-vit-large-tagger-v3",
        "ae469aa2e4706a3af08d3673cf73a11d1add314c",
        "e4c8001b000a6c98f2db10794f7c406daa79873d071d6ca924330fa053fa1845",
        None,
        "large",
    ),
    _v2(
        "wd-v1-4-moat-tagger-v2",
        "8452cddf280b952281b6e102411c50e981cb2908",
        "b8cef913be4c9e8d93f9f903e74271416502ce0b4b04df0ff1e2f00df488aa03",
        0.3771,
        "best of v2",
    ),
    _v2(
        "wd-v1-4-vit-tagger-v2",
        "1f3f3e8ae769634e31e1ef696df11ec37493e4f2",
        "8a21cadd1f88a095094cafbffe3028c3cc3d97f4d58c54344c5994bcf48e24ac",
        0.3537,
        "",
    ),
    _v2(
        "wd-v1-4-convnext-tagger-v2",
        "4b34d1b07bdd8e95494072648960b8a6adcbc0ff",
        "71f06ecb7b9df81d8f271da4d43997ea2ed363cdac29aa64fcb256c9631e656a",
        0.3685,
        "",
    ),
    _v2(
        "wd-v1-4-convnextv2-tagger-v2",
        "bf364499ea843a403cc2770072f31f5cfb2ffa58",
        "e91daa19cd9e8725125b7d70702d1560855fb687f8d8c4218eddaa821f41834a",
        0.3710,
        "",
    ),
    _v2(
        "wd-v1-4-swinv2-tagger-v2",
        "cdb0c7fdc70646f0af29c6f80f8df564344a69b6",
        "04ec04fdf7db74b4fed7f4b52f52e04dec4dbad9e4d88d2d178f334079a29fde",
        0.3771,
        "",
    ),
)
SUGGESTED = "wd-swinv2-tagger-v3"
"""What is fetched where nobody names another."""


def known_model(name: str) -> KnownModel | None:
    """The known model that a folder's name means: `wd-vit-tagger-v3`, `wd14-vit-v3`, `SmilingWolf_wd-…`, …"""
    wanted = _essence(name)
    return next((model for model in KNOWN_MODELS if _essence(model.name) == wanted), None)


def threshold_of(name: str) -> float:
    """The threshold that a model's general tags start with."""
    known = known_model(name)
    return known.threshold if known is not None and known.threshold is not None else DEFAULT_THRESHOLD


def _essence(name: str) -> tuple[str, ...]:
    """What tells the models apart: architecture and generation; owner, 'wd', '1-4', 'tagger' and 'git' do not."""
    words = re.findall(r"[a-z]+\d*|\d+", name.lower())
    return tuple(word for word in words if word not in ("smilingwolf", "wd", "wd14", "v1", "4", "tagger", "git"))


@dataclass(frozen=True)
class Found:
    """A folder that was found. `problem` says why it cannot be used, if so."""

    name: str
    folder: Path
    kind: str
    problem: Sentence | None = None

    def open(self, **options: Any) -> Tagger:
        """Raises `TaggerError`."""
        if self.problem:
            raise TaggerError("tagger.unusable", folder=self.folder, reason=self.problem)
        return KINDS[self.kind].open(self.folder, **options)

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Bytes and time of change of its files: another one where they were replaced."""
        found = []
        for name in KINDS[self.kind].files:
            with contextlib.suppress(OSError):
                status = os.stat(self.folder / name)
                found.append((status.st_size, status.st_mtime_ns))
        return tuple(found)

    def fingerprint(self) -> str:
        """Of the model's files, without opening it. Raises `OSError`."""
        return KINDS[self.kind].fingerprint(self.folder)
