"""A set as its editor sees it: every picture with the place of its caption, and captions without a picture.

The trainer's conventions: pictures lie in the folder itself or in subfolders called `N_concept`, captions are .txt
files of the same name. Other subfolders are shown too, and said not to be trained. Nothing is decoded here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_trainer.dataset.scan import EXTENSIONS, natural_key
from lib_trainer.errors import DatasetError


@dataclass(frozen=True)
class Item:
    """A picture. `key` and `caption` are paths relative to the set, with `/`; the caption's file may not exist yet.

    `folder`: the subfolder's name, empty for the set itself. `repeats`: from the subfolder's name; 1 for the set
    itself, 0 where the trainer does not read the folder.
    """

    key: str
    folder: str
    repeats: int
    concept: str
    caption: str


@dataclass(frozen=True)
class Library:
    """`captions`: relative paths of the caption files that exist; `orphans`: those of them without a picture."""

    root: Path
    items: tuple[Item, ...]
    captions: frozenset[str]
    orphans: tuple[str, ...]

    @property
    def folders(self) -> list[str]:
        """The folders that hold pictures, in order; empty for the set itself."""
        return list(dict.fromkeys(item.folder for item in self.items))


def open_library(folder: Path | str, *, may_be_empty: bool = False) -> Library:
    """List a set. Raises `DatasetError` for a folder that is missing, unreadable or without pictures.

    `may_be_empty`: without pictures it is an empty set; all of them may be in its trash.
    """
    if not str(folder).strip():
        raise DatasetError("No folder is given: write the full path of the set.")
    root = Path(os.path.abspath(Path(str(folder).strip().strip('"')).expanduser()))
    if not root.is_dir():
        raise DatasetError(f"There is no folder '{root}': check its path.")
    items: list[Item] = []
    captions: set[str] = set()
    names, inner = _listed(root)
    _add(names, "", 1, "", items, captions)
    for name in inner:
        match = re.fullmatch(r"(\d+)_(.*)", name)
        repeats, concept = (int(match[1]), match[2].strip()) if match else (0, "")
        _add(_listed(root / name)[0], name, repeats, concept, items, captions)
    if not items and not may_be_empty:
        raise DatasetError(
            f"'{root}' holds no pictures: give a folder with {', '.join(EXTENSIONS[:4])} … files, or with subfolders "
            "called N_concept."
        )
    wanted = {item.caption for item in items}
    return Library(root, tuple(items), frozenset(captions), tuple(sorted(captions - wanted)))


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Visible files and folders in natural order."""
    try:
        with os.scandir(folder) as entries:
            visible = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DatasetError(
            f"The folder '{folder}' cannot be read ({error.strerror or error}): check its permissions."
        ) from error
    visible.sort(key=lambda one: natural_key(one[0]))
    return [name for name, is_folder in visible if not is_folder], [name for name, is_folder in visible if is_folder]


def _add(names: Sequence[str], folder: str, repeats: int, concept: str, items: list[Item], captions: set[str]) -> None:
    prefix = f"{folder}/" if folder else ""
    parts = [os.path.splitext(name) for name in names]
    texts = {stem: stem + extension for stem, extension in parts if extension.lower() == ".txt"}
    captions.update(prefix + name for name in texts.values())
    for stem, extension in parts:
        if extension.lower() in EXTENSIONS:
            caption = prefix + texts.get(stem, f"{stem}.txt")
            items.append(Item(prefix + stem + extension, folder, repeats, concept, caption))
