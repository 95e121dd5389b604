"""Which pictures are held out of training, and what is refused of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from lib_trainer.config import JobConfig, ValidationConfig
from lib_trainer.dataset.caption_files import CaptionRules
from lib_trainer.dataset.scan import Sample, Scan, scan_folder
from lib_trainer.refusals import ConfigError, DatasetError, Field, Sentence, few
from lib_trainer.training.masks import masks_of


@dataclass(frozen=True)
class HeldOut:
    """`pictures` are measured and never trained, `trained` are measured beside them; both are empty where nothing is
    held out."""

    pictures: tuple[Sample, ...] = ()
    trained: tuple[Sample, ...] = ()

    @property
    def note(self) -> Sentence | None:
        """Which pictures are held out, with their folders where these are several; None where none are."""
        if not self.pictures:
            return None
        above = os.path.commonpath([one.path.parent for one in self.pictures])
        names = few([one.path.relative_to(above).as_posix() for one in self.pictures], 5)
        return Sentence("validation.held_out", count=len(self.pictures), names=names)


NOTHING_HELD_OUT = HeldOut()


class Named(Protocol):
    """What a picture is told from others by: its path, and the concept of its folder's name."""

    @property
    def path(self) -> Path: ...

    @property
    def concept(self) -> str: ...


Picture = TypeVar("Picture", bound=Named)


def hold_out(job: JobConfig, scan: Scan, read: Callable[[Path], Scan]) -> tuple[Scan, HeldOut]:
    """The pictures that are trained, and those that are measured. `read` reads a folder of them.

    Of each subfolder the same share is held out. Which pictures, hangs on their names and on `validation.seed` alone.
    Raises `ConfigError` where none is left to train, or where a folder shares pictures with those to learn.
    """
    own = job.validation
    if own.pictures == "none":
        return scan, NOTHING_HELD_OUT
    if own.pictures == "folder":
        held, ranked = _of_folder(own, scan, read), _ranked(scan.samples, own.seed)
    else:
        held, ranked = by_share(own, scan.samples)
        paths = {sample.path for sample in ranked}
        scan = Scan(tuple(one for one in scan.samples if one.path in paths), scan.skipped, scan.notes)
    return scan, HeldOut(tuple(held), tuple(ranked[: len(held)]) if own.trained else ())


def by_share(own: ValidationConfig, pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    """Those that are held out where a share of the set is, and those that are left, of each subfolder in its share.

    Raises `ConfigError` where none is left.
    """
    ranked = _ranked(pictures, own.seed)
    count = max(1, round(own.share * len(ranked)))
    if count >= len(ranked):
        raise ConfigError("validation.nothing_left", field="validation.share", count=len(ranked))
    return ranked[:count], ranked[count:]


def _of_folder(own: ValidationConfig, scan: Scan, read: Callable[[Path], Scan]) -> list[Sample]:
    if not own.folder:
        raise ConfigError("validation.no_folder", field="validation.folder", pictures=Field("validation.pictures"))
    try:
        found = read(Path(own.folder).expanduser())
    except DatasetError as error:
        error.field = "validation.folder"
        raise
    trained = {sample.path.resolve() for sample in scan.samples}
    both = next((sample.path for sample in found.samples if sample.path.resolve() in trained), None)
    if both is not None:
        raise ConfigError("validation.trained_too", field="validation.folder", path=both)
    return list(found.samples)


def _ranked(samples: Sequence[Picture], seed: int) -> list[Picture]:
    """In an order whose beginning has each subfolder in its share."""
    folders: dict[Path, list[tuple[str, Picture]]] = {}
    for sample in samples:
        drawn = hashlib.sha256(f"{seed}/{sample.concept}/{sample.path.name}".encode()).hexdigest()
        folders.setdefault(sample.path.parent, []).append((drawn, sample))
    placed = []
    for own in folders.values():
        own.sort(key=lambda one: one[0])
        placed += [((place + 0.5) / len(own), drawn, sample) for place, (drawn, sample) in enumerate(own)]
    return [sample for _, _, sample in sorted(placed, key=lambda one: one[:2])]


def check_validation(job: JobConfig) -> None:
    """Raise `ConfigError` for what decides by pictures that are not held out."""
    own = job.validation
    if own.pictures == "none" and own.patience:
        raise ConfigError(
            "validation.nothing_measured", field="validation.patience", other=Field("validation.pictures")
        )


def check_patience(job: JobConfig, steps: int, base_steps: int) -> None:
    """Raise `ConfigError` where a run has too few measurements to end early by them."""
    own = job.validation
    if own.pictures != "none" and own.patience and (own.patience + 1) * own.every >= steps - base_steps:
        raise ConfigError(
            "validation.patience",
            field="validation.patience",
            patience=own.patience,
            every=own.every,
            measure=Field("validation.every"),
            steps=steps - base_steps,
        )


def reader(job: JobConfig, trigger: str, captions: CaptionRules) -> Callable[[Path], Scan]:
    """What reads a folder of held-out pictures as the set is read."""
    masks = masks_of(job)
    return lambda folder: scan_folder(folder, trigger_word=trigger, repeats=1, captions=captions, masks=masks)
