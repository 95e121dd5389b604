"""Which pictures of a folder are tagged, and which caption belongs to each."""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_trainer.dataset.scan import EXTENSIONS, Skipped, natural_key
from lib_trainer.errors import ConfigError, TaggerError
from lib_trainer.tagging.choices import DEFAULT_TEMPLATE

FIELDS = ("name", "extension", "folder")


@dataclass(frozen=True)
class Folder:
    """What is in a data set: pictures in natural order, and folders that could not be read."""

    root: Path
    pictures: tuple[Path, ...]
    skipped: tuple[Skipped, ...] = ()


def list_pictures(folder: Path, *, recursive: bool = True) -> Folder:
    """Every picture by its name, nothing opened; names that begin with a dot are passed by.

    Raises `TaggerError` where the folder is not named, not there, not readable or without a picture.
    """
    if folder == Path():
        raise TaggerError("No folder of pictures is given: write its full path.")
    root = Path(os.path.abspath(folder.expanduser()))
    if not root.exists():
        raise TaggerError(f"The folder of pictures '{root}' does not exist: check its path.")
    if not root.is_dir():
        raise TaggerError(f"'{root}' is not a folder: give the folder that holds the pictures.")
    pictures: list[Path] = []
    skipped: list[Skipped] = []
    _collect(root, recursive, pictures, skipped)
    if skipped and skipped[0].path == root:
        raise TaggerError(f"The folder '{root}' cannot be read ({skipped[0].reason}): check its permissions.")
    if not pictures:
        below = "" if recursive else ", and its subfolders are not looked into"
        raise TaggerError(f"'{root}' holds no pictures{below}: {', '.join(EXTENSIONS)} are read.")
    return Folder(root, tuple(pictures), tuple(skipped))


def _collect(folder: Path, recursive: bool, pictures: list[Path], skipped: list[Skipped]) -> None:
    try:
        with os.scandir(folder) as entries:
            visible = {entry.name: entry.is_dir() for entry in entries if not entry.name.startswith(".")}
    except OSError as error:
        skipped.append(Skipped(folder, error.strerror or str(error)))
        return
    for name in sorted(visible, key=natural_key):
        if visible[name]:
            if recursive and not (folder / name).is_symlink():  # a link may lead in a circle
                _collect(folder / name, recursive, pictures, skipped)
        elif os.path.splitext(name)[1].lower() in EXTENSIONS:
            pictures.append(folder / name)


def check_template(template: str) -> str:
    """The template of a caption's name, checked: `{name}` (without extension), `{extension}`, `{folder}` (its name).

    Raises `ConfigError` where it names another field, leads out of the picture's folder, or is the picture itself.
    """
    try:
        # names alone: `format` would follow `{name.__class__}`, and fill a disk with `{name:999999999}`
        parts = list(string.Formatter().parse(template))
        if any(field is not None and (field not in FIELDS or spec or change) for _, field, spec, change in parts):
            raise ValueError
        made = template.format(**{name: name for name in FIELDS})
    except ValueError:
        fields = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise ConfigError(f"Caption file name '{template}' is not one: use {fields} and plain text.") from None
    if "{name}" not in template:
        raise ConfigError(f"Caption file name '{template}' is the same for every picture: put {{name}} into it.")
    if "/" in made or "\\" in made or made.startswith(".") or made != made.strip():
        raise ConfigError(f"Caption file name '{template}' must be a plain name: captions lie beside their pictures.")
    if made.lower().endswith((*EXTENSIONS, ".extension")):
        raise ConfigError(f"Caption file name '{template}' is a picture's: end it in .txt.")
    return template


def caption_path(picture: Path, template: str = DEFAULT_TEMPLATE) -> Path:
    """Where the caption of a picture lies: always beside it."""
    values = {"name": picture.stem, "extension": picture.suffix[1:], "folder": picture.parent.name}
    return picture.with_name(template.format(**values))


def sharing(pictures: Sequence[Path], template: str) -> dict[Path, Path]:
    """{picture: the earlier one whose caption file it would overwrite}, `a.jpg` beside `a.png` say."""
    first: dict[Path, Path] = {}
    return {
        picture: first[caption]
        for picture in pictures
        if first.setdefault(caption := caption_path(picture, template), picture) != picture
    }
