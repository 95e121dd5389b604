"""Which pictures of a folder are tagged, and which caption belongs to each."""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_trainer.dataset.folder import (
    EXTENSIONS,
    Listing,
    Names,
    PassedBy,
    Skipped,
    checked_folder,
    counted_endings,
    list_folder,
    walk,
)
from lib_trainer.refusals import ConfigError, DatasetError, Sentence, TaggerError
from lib_trainer.tagging.choices import DEFAULT_TEMPLATE

FIELDS = ("name", "extension", "folder")


@dataclass(frozen=True)
class Folder:
    """What is in a data set: pictures in natural order, and folders that could not be read.

    `notes`: sentences on what lies there and is not read.
    """

    root: Path
    pictures: tuple[Path, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[Sentence, ...] = ()


def list_pictures(folder: Path, *, recursive: bool = True, template: str = DEFAULT_TEMPLATE) -> Folder:
    """Every picture by its name, nothing opened; names that begin with a dot are passed by.

    `template`: of a caption's name, see `check_template`. Raises `TaggerError` where the folder is not named, not
    there, not readable or without a picture.
    """
    pictures: list[Path] = []
    skipped: list[Skipped] = []
    own: list[str] = []
    try:
        root = checked_folder(folder)
        passed_by = PassedBy(root)
        for listing in walk(root, recursive=recursive):
            if isinstance(listing, Skipped):
                skipped.append(listing)
                continue
            passed_by.add(listing)
            pictures += [listing.folder / name for name in listing.pictures]
            own += _named_by(template, root, listing)
    except DatasetError as error:
        raise TaggerError(error.sentence) from error
    if not pictures and passed_by.unread:
        raise TaggerError("folder.formats", folder=root, formats=counted_endings(passed_by.unread))
    if not pictures:
        raise TaggerError(
            "folder.nothing_to_tag" if recursive else "folder.nothing_to_tag_here", folder=root, endings=EXTENSIONS
        )
    return Folder(root, tuple(pictures), tuple(skipped), tuple(passed_by.notes(own)))


def _named_by(template: str, root: Path, listing: Listing) -> list[str]:
    """The files that the template makes captions of, relative to `root`, where it is not the usual one."""
    if template == DEFAULT_TEMPLATE:
        return []
    names = (listing.files.like(caption_path(listing.folder / name, template).name) for name in listing.pictures)
    return [(listing.folder / name).relative_to(root).as_posix() for name in names if name]


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
        fields = [f"{{{name}}}" for name in FIELDS]
        raise ConfigError("caption_name.wrong", template=template, fields=fields) from None
    if "{name}" not in template:
        raise ConfigError("caption_name.same", template=template)
    if "/" in made or "\\" in made or made.startswith(".") or made != made.strip():
        raise ConfigError("caption_name.elsewhere", template=template)
    if made.lower().endswith((*EXTENSIONS, ".extension")):
        raise ConfigError("caption_name.of_a_picture", template=template)
    return template


def caption_path(picture: Path, template: str = DEFAULT_TEMPLATE) -> Path:
    """Where a new caption of a picture goes: always beside it. One that is there may be called otherwise, see
    `CaptionPlaces`."""
    values = {"name": picture.stem, "extension": picture.suffix[1:], "folder": picture.parent.name}
    return picture.with_name(template.format(**values))


class CaptionPlaces:
    """Where the captions of pictures lie, by a template. Every folder is listed once, when it is first asked for."""

    def __init__(self, template: str = DEFAULT_TEMPLATE) -> None:
        self._template = template
        self._names: dict[Path, Names] = {}

    def path(self, picture: Path) -> Path:
        """The caption that a picture has (its ending may be .TXT), or else the one that it would get."""
        wanted = caption_path(picture, self._template)
        if os.path.exists(wanted):  # False for a name that is too long, at which `Path` raises
            return wanted
        folder = wanted.parent
        if folder not in self._names:
            try:
                self._names[folder] = list_folder(folder).files
            except DatasetError:  # who writes there will be told
                self._names[folder] = Names(())
        found = self._names[folder].like(wanted.name)
        return wanted if found is None else folder / found

    def sharing(self, pictures: Sequence[Path]) -> dict[Path, Path]:
        """{picture: the earlier one whose caption file it would overwrite}, `a.jpg` beside `a.png` say."""
        first: dict[Path, Path] = {}
        return {
            picture: first[caption]
            for picture in pictures
            if first.setdefault(caption := self.path(picture), picture) != picture
        }
