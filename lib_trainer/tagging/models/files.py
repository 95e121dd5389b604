"""Whether a model's files are all there, told by their first bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lib_trainer.refusals import Sentence

WD_FILES = ("model.onnx", "selected_tags.csv")
POINTER = b"version https://git-lfs"


def problem_of_files(folder: Path, names: Sequence[str]) -> Sentence | None:
    """Why one of the files cannot be used, as the end of a sentence; None if nothing is seen to be wrong."""
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                start = file.read(len(POINTER))
        except FileNotFoundError:
            return Sentence("tagger.file_missing", name=name)
        except OSError as error:
            return Sentence("tagger.file_unreadable", name=name, reason=error)
        if not start:
            return Sentence("tagger.file_empty", name=name)
        if start == POINTER:
            return Sentence("tagger.file_pointer", name=name)
    return None
