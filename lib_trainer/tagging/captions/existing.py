"""Pictures with the captions that they have: read here, written in `writing`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_trainer.captions.document import read_document
from lib_trainer.dataset.folder import Skipped
from lib_trainer.refusals import DatasetError, Sentence
from lib_trainer.tagging.captions.style import Existing
from lib_trainer.tagging.pictures import CaptionPlaces


@dataclass(frozen=True)
class Captioned:
    """A picture with the hash of its content and the caption that it has."""

    path: Path
    content: str
    existing: Existing | None


def read_captions(
    pictures: Sequence[tuple[Path, str]],
    places: CaptionPlaces,
    key: Callable[[Path], str],
    origins: Mapping[str, Mapping[str, str]],
) -> tuple[list[Captioned], list[Skipped]]:
    """(picture, content hash) with their captions, and those whose caption cannot be read: it is never written over."""
    found, unreadable = [], []
    for path, content in pictures:
        try:
            found.append(Captioned(path, content, read_existing(path, places, origins.get(key(path), {}))))
        except DatasetError as error:
            unreadable.append(Skipped(path, error.sentence))
    return found, unreadable


def shares(picture: Path, first: Path) -> Skipped:
    return Skipped(picture, Sentence("caption.of_another", name=first.name))


def read_existing(picture: Path, places: CaptionPlaces, origins: Mapping[str, str]) -> Existing | None:
    """The caption beside a picture, None where there is none. Raises `DatasetError` where it cannot be read."""
    path = places.path(picture)
    if not os.path.lexists(path):
        return None
    return Existing(read_document(path), origins)
