"""Finding taggers on disk: folders with `model.onnx` and `selected_tags.csv`, whole or not. Nothing is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lib_trainer.refusals import Sentence, TaggerError
from lib_trainer.tagging.models.files import problem_of_files
from lib_trainer.tagging.models.registry import KINDS, Found, kind_of

DEPTH = 4
"""How many folders below a root are looked into; the hub's own cache keeps its files three below."""


def find_taggers(roots: Iterable[Path]) -> list[Found]:
    """Every tagger below the roots, the usable ones first, each folder once, in the order of names.

    A folder that holds one of the two files and not the other, or an empty one, is reported with its `problem`.
    """
    found: dict[Path, Found] = {}
    for root in roots:
        for folder, files in _walk(Path(root), DEPTH):
            for kind in KINDS.values():
                if files.intersection(kind.files):
                    problem = problem_of_files(folder, kind.files)
                    found.setdefault(folder.resolve(), Found(_name(folder), folder, kind.name, problem))
    return sorted(found.values(), key=lambda item: (bool(item.problem), item.name.casefold(), str(item.folder)))


def at(folder: Path) -> Found:
    """The tagger of this very folder. Raises `TaggerError` where there is none."""
    if not folder.is_dir():
        raise TaggerError("tagger.no_folder", folder=folder)
    kind = kind_of(folder)
    return Found(_name(folder), folder, kind.name, problem_of_files(folder, kind.files))


def pick(found: Iterable[Found], name: str) -> Found:
    """The found tagger of that name, or the one at that path. Raises `TaggerError`."""
    known = list(found)
    for item in known:
        if name in (item.name, str(item.folder)):
            return item
    if Path(name).expanduser().is_dir():
        return at(Path(name).expanduser())
    there = [item.name for item in known if not item.problem] or Sentence("tagger.none_found")
    raise TaggerError("tagger.missing", name=name, found=there)


def _walk(folder: Path, depth: int) -> Iterator[tuple[Path, set[str]]]:
    try:
        with os.scandir(folder) as entries:
            listed = [(entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return
    yield folder, {name for name, is_folder in listed if not is_folder}
    if depth > 0:
        for name, is_folder in sorted(listed):
            if is_folder and name not in ("blobs", "refs"):
                yield from _walk(folder / name, depth - 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that leads to itself, or to a drive that is gone, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _name(folder: Path) -> str:
    """The folder's name; in the hub's cache (`models--owner--name/snapshots/commit`) the model's."""
    match = re.search(r"models--[^/\\]+?--([^/\\]+)[/\\]snapshots[/\\][^/\\]+$", str(folder))
    return match.group(1) if match else folder.name
