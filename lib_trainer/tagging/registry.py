"""The registry: kinds of taggers that can be opened, and the models that are known by name.

A kind says whether a folder is its own and opens it as a `Tagger`. A known model has an address on the model hub and,
where its author has published one, the threshold at which precision equals recall on the validation set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lib_trainer.errors import TaggerError
from lib_trainer.tagging.choices import DEFAULT_THRESHOLD
from lib_trainer.tagging.labels import Labels
from lib_trainer.tagging.model_files import WD_FILES


class Tagger(Protocol):
    """A loaded model. Thread-safe in `load` and `batch`; `scores` is called from one thread."""

    name: str
    fingerprint: str
    """Hexadecimal: the same files give the same, whatever the folder is called."""
    labels: Labels
    side: int
    max_batch: int
    """How many pictures the model takes at once; 1 where its batch dimension is fixed."""
    device: str
    """The execution provider that runs, in the user's words: 'CPU', 'CUDA'."""
    notes: Sequence[str]
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
    """`threshold`: precision = recall by the model's card; None where none was published or could be confirmed."""

    name: str
    repo: str
    revision: str
    threshold: float | None
    generation: int
    about: str
    kind: str = "wd"


@dataclass(frozen=True)
class Kind:
    """How a folder is recognised and opened. `files` must all be there; `fingerprint` tells them from another model's
    without opening it (`Tagger.fingerprint`)."""

    name: str
    files: tuple[str, ...]
    open: Callable[..., Tagger]
    fingerprint: Callable[[Path], str]


def _open_wd(folder: Path, **options: Any) -> Tagger:
    from lib_trainer.tagging.wd import WdTagger

    return WdTagger(folder, **options)


def _fingerprint_wd(folder: Path) -> str:
    from lib_trainer.tagging.wd import fingerprint

    return fingerprint(folder)


KINDS: Mapping[str, Kind] = {"wd": Kind("wd", WD_FILES, _open_wd, _fingerprint_wd)}

KNOWN_MODELS: tuple[KnownModel, ...] = (
    KnownModel("wd-vit-tagger-v3", "SmilingWolf/wd-vit-tagger-v3", "main", 0.2614, 3, "small and quick"),
    KnownModel("wd-swinv2-tagger-v3", "SmilingWolf/wd-swinv2-tagger-v3", "main", 0.2653, 3, "a good first choice"),
    KnownModel("wd-convnext-tagger-v3", "SmilingWolf/wd-convnext-tagger-v3", "main", 0.2682, 3, "between the two"),
    KnownModel("wd-eva02-large-tagger-v3", "SmilingWolf/wd-eva02-large-tagger-v3", "main", 0.5296, 3, "best, slowest"),
    KnownModel("wd-vit-large-tagger-v3", "SmilingWolf/wd-vit-large-tagger-v3", "main", None, 3, "large"),
    KnownModel("wd-v1-4-moat-tagger-v2", "SmilingWolf/wd-v1-4-moat-tagger-v2", "v2.0", 0.3771, 2, "best of v2"),
    KnownModel("wd-v1-4-vit-tagger-v2", "SmilingWolf/wd-v1-4-vit-tagger-v2", "v2.0", 0.3537, 2, ""),
    KnownModel("wd-v1-4-convnext-tagger-v2", "SmilingWolf/wd-v1-4-convnext-tagger-v2", "v2.0", 0.3685, 2, ""),
    KnownModel("wd-v1-4-convnextv2-tagger-v2", "SmilingWolf/wd-v1-4-convnextv2-tagger-v2", "v2.0", 0.3710, 2, ""),
    KnownModel("wd-v1-4-swinv2-tagger-v2", "SmilingWolf/wd-v1-4-swinv2-tagger-v2", "v2.0", 0.3771, 2, ""),
)


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
    """A folder that was found. `problem` says why it cannot be used, empty if it can."""

    name: str
    folder: Path
    kind: str
    problem: str = ""

    def open(self, **options: Any) -> Tagger:
        """Raises `TaggerError`."""
        if self.problem:
            raise TaggerError(f"The tagger '{self.folder}' cannot be used: {self.problem}")
        return KINDS[self.kind].open(self.folder, **options)

    def fingerprint(self) -> str:
        """Of the model's files, without opening it. Raises `OSError`."""
        return KINDS[self.kind].fingerprint(self.folder)
