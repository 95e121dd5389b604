"""Captions of pictures that a host saves: written as entries of the history of the set that they lie in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lib_trainer.captions.document import Caption, CaptionError
from lib_trainer.dataset.file_moves import Change, read
from lib_trainer.dataset.folder import file_like
from lib_trainer.dataset.history import HIDDEN, Entry, History
from lib_trainer.tagging.pictures import caption_path

JOINED: Mapping[str, str] = {"Prepend": "{old} {new}", "Append": "{new} {old}", "Keep": "{old}"}
"""What the WebUI makes of a caption that is there already, by its option `postprocessing_existing_caption_action`; with
any other value the new one takes its place."""


class SavedCaptions:
    """Writes captions one by one. Those that follow each other in one set are one entry of its history."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._last: tuple[Path, Entry] | None = None

    def write(self, picture: Path, caption: str, existing: str = "") -> None:
        """Write the caption of a picture that was just saved. `existing`: what is done with one that is there, see
        `JOINED`. Raises `DatasetError`; then the file is as it was."""
        path = file_like(caption_path(picture)) or caption_path(picture)  # a batch must not list its folder each time
        before = read(path)
        old = _read(before, path) if before else Caption()
        there = old.text.strip()
        text = (JOINED.get(existing, "{new}").format(old=there, new=caption) if there else caption).strip()
        data = Caption.parse(text, old.bom).encode()
        if not text or data == before:
            return
        root = home_of(path.parent)
        onto = self._last[1] if self._last is not None and self._last[0] == root else None
        history = History(root)
        try:
            step = Change(path.relative_to(root).as_posix(), before, data)
            self._last = root, history.commit(self._label, [step], onto=onto)
        finally:
            history.close()


def home_of(folder: Path) -> Path:
    """The set that a folder is a part of: the nearest one upwards that has a history, else itself."""
    return next((place for place in (folder, *folder.parents) if (place / HIDDEN / "history.sqlite").exists()), folder)


def _read(data: bytes, path: Path) -> Caption:
    """The caption that is there; one that is not UTF-8 as it reads best, for it is written anew."""
    try:
        return Caption.read(data, path)
    except CaptionError as error:
        return Caption.read(error.converted(data), path)
