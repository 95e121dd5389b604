"""Previews as files, which a gallery shows."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from io import BytesIO
from pathlib import Path

from lib_trainer.files import write_atomically
from lib_trainer.work.monitor import Preview, RunView


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
        grid = view.grid
        return [(str(grid), "Steps and prompts"), *items] if grid is not None and grid.is_file() else items

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
