"""The previews of a run as files, and all of them as one picture: a row for each step, a column for each prompt."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lib_trainer.files import write_atomically
from lib_trainer.grids import painted
from lib_trainer.lettering import said
from lib_trainer.ports import Host
from lib_trainer.refusals import Sentence

GRID = "grid.png"
MOST_ROWS = 64
"""Of the grid: from then on it holds the first row, every other one, and the last."""
MOST_PIXELS = 1 << 24
"""Of all pictures in the grid: from then on it is made of smaller ones. 50 MB; files of single pictures stay whole."""


class PreviewSheet:
    """Grows with a run. Holds a bounded amount, however long that is."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        """`columns`: what stands above them. The folder is made with the first picture."""
        self.folder, self._columns = folder, tuple(columns)
        self._rows: list[tuple[int, list[Image.Image | None]]] = []
        self._last: tuple[int, list[Image.Image | None]] | None = None
        self._shrunk = 1

    def put(self, step: int, pictures: Sequence[Image.Image | None]) -> Path | None:
        """A step's pictures, by column; None for what was not drawn. Writes them and the grid, whose path comes back
        where there is more than one picture in it. Raises `OSError`."""
        for number, picture in enumerate(pictures, 1):
            if picture is not None:
                self._write(f"step{step:08d}-{number}.png", picture)
        self._keep(step, list(pictures))
        rows = [*self._rows, *([self._last] if self._last is not None else [])]
        if sum(picture is not None for _, row in rows for picture in row) < 2:
            return None
        labels = [said(Sentence("drawn.step", step=done)) for done, _ in rows]
        columns = self._columns if len(self._columns) > 1 else [""]
        return self._write(GRID, painted(columns, labels, [row for _, row in rows]))

    def _keep(self, step: int, pictures: list[Image.Image | None]) -> None:
        """The last row is always there, and among the others as long as there is room."""
        if self._last is not None and self._last[0] != step:  # a preview that was asked for at the same step is newer
            self._rows.append(self._last)
        self._last = step, [_smaller(picture, self._shrunk) for picture in pictures]
        if len(self._rows) >= MOST_ROWS:
            self._rows = self._rows[::2]
        every = [picture for _, row in [*self._rows, self._last] for picture in row if picture is not None]
        if sum(picture.width * picture.height for picture in every) > MOST_PIXELS:
            self._shrunk *= 2
            self._rows = [(done, [_smaller(picture, 2) for picture in row]) for done, row in self._rows]
            self._last = step, [_smaller(picture, 2) for picture in self._last[1]]

    def _write(self, name: str, picture: Image.Image) -> Path:
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "PNG", compress_level=1)
        write_atomically(self.folder / name, buffer.getvalue())
        return self.folder / name


def _smaller(picture: Image.Image | None, factor: int) -> Image.Image | None:
    return picture if picture is None or factor == 1 else picture.convert("RGB").reduce(factor)


def sheet_folder(host: Host, name: str) -> Path:
    """Where the previews of a run go: a folder of the trainer's own, of the result's name, with the next free number
    where that is there. The folders of results are read by the WebUI's lists, which take pictures for something else.
    """
    first = host.cache_folder().parent / "previews" / name
    folder, number = first, 1
    while os.path.lexists(folder):
        number += 1
        folder = first.with_name(f"{name} ({number})")
    return folder
