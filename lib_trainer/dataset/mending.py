"""What the check of a set has found and can be mended without a question, as transactions of the set's history."""

from __future__ import annotations

from lib_trainer.dataset.editor import Editor
from lib_trainer.dataset.file_moves import Move, Step
from lib_trainer.dataset.history import Entry
from lib_trainer.errors import DatasetError


def rename_captions(editor: Editor) -> Entry:
    """Give every file that is meant as a caption the name under which it is read, where that name is free.

    Raises `DatasetError` where there is none.
    """
    with editor.lock:
        steps: list[Step] = [Move(one.name, one.wanted) for one in editor.library.misnamed if one.wanted]
        if not steps:
            raise DatasetError("There is no caption to rename.")
        entry = editor.history.commit(f"Rename {len(steps)} captions", steps)
        editor.reload()
        return entry
