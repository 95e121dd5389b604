"""Whether a model's files are all there, told by their first bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

WD_FILES = ("model.onnx", "selected_tags.csv")
POINTER = b"version https://git-lfs"


def problem_of_files(folder: Path, names: Sequence[str]) -> str:
    """Why one of the files cannot be used, as the end of a sentence; empty if nothing is seen to be wrong."""
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                start = file.read(len(POINTER))
        except FileNotFoundError:
            return f"{name} is missing: download the model again, or put the file there."
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error}): check its permissions."
        if not start:
            return f"{name} is empty: download the model again."
        if start == POINTER:
            return f"{name} is a Git LFS pointer and not the file itself: download the model again."
    return ""
