"""A set as its editor sees it: every picture with the place of its caption, and captions without a picture.

The trainer's conventions: pictures lie in the folder itself or in subfolders called `N_concept`, captions are .txt
files of the same name. Other subfolders are shown too, and said not to be trained. Nothing is decoded here.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lib_trainer.dataset.folder import (
    EXTENSIONS,
    Listing,
    Misnamed,
    PassedBy,
    caption_name,
    checked_folder,
    concept_of,
    list_folder,
)
from lib_trainer.dataset.weights import WEIGHTS, Weights, read_weights
from lib_trainer.refusals import DatasetError


@dataclass(frozen=True)
class Item:
    """A picture. `key` and `caption` are paths relative to the set, with `/`; the caption's file may not exist yet.

    `mask`: the file that is named as its mask, if there is one. `folder`: the subfolder's name, empty for the set
    itself. `repeats`: from the subfolder's name, or from weights.csv in it; 1 for the set itself where that says
    nothing, 0 where the trainer does not read the folder.
    """

    key: str
    folder: str
    repeats: float
    concept: str
    caption: str
    mask: str = ""


@dataclass(frozen=True)
class Library:
    """`captions`: relative paths of the caption files that exist; `orphans`: those of them without a picture, which a
    further caption of one is not (`a.long.txt` beside `a.png`: jobs may read such files).

    `misnamed`: files that are meant as captions and are not read; `unread`: pictures in formats that are not read;
    `lone_masks`: files that are named as masks and of no picture.
    """

    root: Path
    items: tuple[Item, ...]
    captions: frozenset[str]
    orphans: tuple[str, ...]
    misnamed: tuple[Misnamed, ...] = ()
    unread: tuple[str, ...] = ()
    lone_masks: tuple[str, ...] = ()

    @property
    def folders(self) -> list[str]:
        """The folders that hold pictures, in order; empty for the set itself."""
        return list(dict.fromkeys(item.folder for item in self.items))


def open_library(folder: Path | str, *, may_be_empty: bool = False) -> Library:
    """List a set. Raises `DatasetError` for a folder that is missing, unreadable or without pictures.

    `may_be_empty`: without pictures it is an empty set; all of them may be in its trash.
    """
    root = checked_folder(folder)
    items: list[Item] = []
    captions: set[str] = set()
    passed_by = PassedBy(root)
    top = list_folder(root)
    _add(top, "", (1, ""), items, captions)
    passed_by.add(top)
    for name in top.folders:
        listing = list_folder(root / name)
        _add(listing, name, concept_of(name) or (0, ""), items, captions)
        passed_by.add(listing)
    if not items and not may_be_empty:
        raise DatasetError("folder.no_pictures_to_edit", folder=root, endings=EXTENSIONS[:4])
    wanted = {item.caption for item in items}
    mistaken = {one.name for one in passed_by.misnamed}
    stems = {os.path.splitext(item.key)[0] for item in items}
    alone = captions - wanted - mistaken
    orphans = tuple(sorted(path for path in alone if not _is_further(path, stems)))
    left = tuple(passed_by.misnamed), tuple(passed_by.unread), tuple(passed_by.lone_masks)
    return Library(root, tuple(items), frozenset(captions - mistaken), orphans, *left)


def _is_further(path: str, stems: Collection[str]) -> bool:
    """Whether a caption's name is a picture's with more between it and the ending."""
    folder, _, name = path.rpartition("/")
    pieces = name.split(".")[:-1]
    prefix = f"{folder}/" if folder else ""
    return any(prefix + ".".join(pieces[:count]) in stems for count in range(1, len(pieces)))


def _weights(listing: Listing) -> Weights:
    """What weights.csv says; nothing where it cannot be read, which training will tell."""
    name = listing.files.like(WEIGHTS)
    path = listing.folder / (name or WEIGHTS)
    try:
        return Weights(path) if name is None else read_weights(path)
    except DatasetError:
        return Weights(path)


def _add(listing: Listing, folder: str, named: tuple[float, str], items: list[Item], captions: set[str]) -> None:
    prefix = f"{folder}/" if folder else ""
    captions.update(prefix + name for name in listing.texts())
    (usual, concept), weights = named, _weights(listing)
    for name in listing.pictures:
        caption = listing.captions.get(name, caption_name(name))
        mask = listing.mask(name)
        repeats = weights.repeats(name, usual) if usual else usual
        items.append(Item(prefix + name, folder, repeats, concept, prefix + caption, prefix + mask if mask else ""))
