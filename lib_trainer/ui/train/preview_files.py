"""Previews as files, which a gallery shows."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from io import BytesIO
from pathlib import Path

from PIL import Image

from lib_trainer.files import write_atomically
from lib_trainer.ui.kit.pictures import small_jpeg
from lib_trainer.work.monitor import Preview, RunView

GRID_WIDTH = 1024
"""At most, of the grid while a run goes on, in pixels."""


class PreviewFiles:
    """Previews as files, each written once however many watch: gradio would encode all of them at every change."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="trainer-previews-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)  # with the page, or when Python ends

    def items(self, view: RunView | None) -> list[tuple[str, str]]:
        """(file, caption) for the gallery: the grid, and the pictures in it, those of the newest step first."""
        if view is None:
            return []
        items = [(str(self._file(view.id, one)), _caption(one)) for one in sorted(view.previews, key=_newest_first)]
        grid = self._grid(view)
        return [(str(grid), "Steps and prompts"), *items] if grid is not None else items

    def _grid(self, view: RunView) -> Path | None:
        """Small as long as it grows: gradio keeps a copy of everything that a gallery has shown."""
        if view.grid is None or not view.grid.is_file():
            return None
        if not view.active:
            return view.grid
        path = self._folder / f"{view.id}-grid{view.grids:05}.jpg"
        if not path.exists():
            with Image.open(view.grid) as grid:
                write_atomically(path, small_jpeg(grid, GRID_WIDTH))
        return path

    def _file(self, run: str, preview: Preview) -> Path:
        path = self._folder / f"{run}-{preview.number:05}-step{preview.step}.png"
        if not path.exists():
            buffer = BytesIO()
            preview.image.save(buffer, "PNG", compress_level=1)
            write_atomically(path, buffer.getvalue())
        return path


def _caption(preview: Preview) -> str:
    return f"Step {preview.step}" if preview.columns == 1 else f"Step {preview.step}, prompt {preview.column}"


def _newest_first(preview: Preview) -> tuple[int, int]:
    """A step's prompts stay in their order."""
    return preview.column - preview.number, preview.column
