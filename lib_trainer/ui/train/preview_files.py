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
        """(file, caption) for the gallery, the newest first."""
        if view is None:
            return []
        return [(str(self._file(view.id, preview)), f"Step {preview.step}") for preview in reversed(view.previews)]

    def _file(self, run: str, preview: Preview) -> Path:
        path = self._folder / f"{run}-{preview.number:05}-step{preview.step}.png"
        if not path.exists():
            buffer = BytesIO()
            preview.image.save(buffer, "PNG", compress_level=1)
            write_atomically(path, buffer.getvalue())
        return path
