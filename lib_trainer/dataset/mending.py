"""What the check of a set has found and can be mended without a question, as transactions of the set's history."""

from __future__ import annotations

from lib_trainer.counts import counted
from lib_trainer.dataset.editor import Editor
from lib_trainer.dataset.file_moves import Move
from lib_trainer.dataset.history import Entry
from lib_trainer.dataset.previews import Preview
from lib_trainer.refusals import DatasetError


def preview_renaming(editor: Editor) -> Preview:
    """Giving every file that is meant as a caption the name under which it is read, where that name is free.

    Raises `DatasetError` where there is none.
    """
    with editor.lock:
        steps = tuple(Move(one.name, one.wanted) for one in editor.library.misnamed if one.wanted)
        if not steps:
            raise DatasetError("caption.none_to_rename")
        return Preview(f"Rename {counted(len(steps), 'caption')}", (), len(steps), editor.revision, steps)


def rename_captions(editor: Editor) -> Entry:
    """Carry out `preview_renaming`."""
    with editor.lock:
        return editor.apply(preview_renaming(editor))
