"""Captions of pictures that a host saves, in the history of their set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from lib_trainer.dataset.history import History
from lib_trainer.refusals import DatasetError
from lib_trainer.tagging.captions.saved import SavedCaptions, home_of


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    return path


def test_a_batch_is_one_entry_that_undo_takes_back(tmp_path: Path) -> None:
    writer = SavedCaptions("Captions by the Extras tab")
    old = "von Hand, schön".encode("cp1252")
    (tmp_path / "b.TXT").write_bytes(old)
    for name in ("a", "b"):
        writer.write(picture(tmp_path / f"{name}.png"), "red, square")
    history = History(tmp_path)
    (entry,) = history.entries()
    assert (entry.label, entry.files) == ("Captions by the Extras tab", 2)
    assert [(tmp_path / name).read_text("utf-8") for name in ("a.txt", "b.TXT")] == ["red, square"] * 2
    assert not (tmp_path / "b.txt").exists() or (tmp_path / "b.txt").samefile(tmp_path / "b.TXT")
    history.undo()
    assert not (tmp_path / "a.txt").exists() and (tmp_path / "b.TXT").read_bytes() == old
    history.close()


def test_a_batch_does_not_list_its_folder_for_each_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time would grow with the square of what lies there."""
    listed: list[object] = []
    for name in ("scandir", "listdir"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, real=real: listed.append(given) or real(*given))
    writer = SavedCaptions("x")
    for number in range(4):
        writer.write(picture(tmp_path / f"{number}.png"), "red")
    assert listed == [] and (tmp_path / "3.txt").read_text("utf-8") == "red"


def test_a_picture_that_is_saved_again_is_undone_too(tmp_path: Path) -> None:
    """A batch from a folder keeps the names of its files: the second time it finds captions of the first."""
    writer = SavedCaptions("Captions by the Extras tab")
    for caption in ("red", "red, square", "square"):
        writer.write(picture(tmp_path / "a.png"), caption)
    history = History(tmp_path)
    assert len(history.entries()) == 1 and (tmp_path / "a.txt").read_text("utf-8") == "square"
    history.undo()
    assert not (tmp_path / "a.txt").exists()
    history.redo()
    assert (tmp_path / "a.txt").read_text("utf-8") == "square"
    history.close()


@pytest.mark.parametrize(
    ("existing", "joined"),
    [("", "new"), ("Ignore", "new"), ("Keep", "old words"), ("Append", "new old words"), ("Prepend", "old words new")],
)
def test_a_caption_that_is_there_is_joined_as_the_host_does(tmp_path: Path, existing: str, joined: str) -> None:
    (tmp_path / "a.txt").write_text("old words\n", "utf-8")
    SavedCaptions("x").write(picture(tmp_path / "a.png"), "new", existing)
    assert (tmp_path / "a.txt").read_text("utf-8") == joined
    SavedCaptions("x").write(picture(tmp_path / "b.png"), "new", existing)
    assert (tmp_path / "b.txt").read_text("utf-8") == "new", "nothing is there to be joined"


@pytest.mark.parametrize("old", ["café, größer", "ロングヘア", "\ufeffone,two\nthree"])
def test_a_caption_that_is_utf_8_is_read_as_it(tmp_path: Path, old: str) -> None:
    """As the editor does: its mark, its letters and its line breaks stay."""
    (tmp_path / "a.txt").write_bytes(old.encode())
    SavedCaptions("x").write(picture(tmp_path / "a.png"), "new", "Prepend")
    assert (tmp_path / "a.txt").read_bytes() == (old + " new").encode()


def test_the_history_is_that_of_the_set_around(tmp_path: Path) -> None:
    SavedCaptions("x").write(picture(tmp_path / "set" / "a.png"), "one")
    inner = picture(tmp_path / "set" / "5_zork" / "b.png")
    SavedCaptions("x").write(inner, "two")
    assert home_of(inner.parent) == tmp_path / "set" and not (inner.parent / ".trainer").exists()
    assert home_of(tmp_path) == tmp_path
    history = History(tmp_path / "set")
    assert [entry.files for entry in history.entries()] == [1, 1]
    history.close()


def test_what_changes_nothing_is_no_entry(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("same", "utf-8")
    for caption in ("same", "  "):
        SavedCaptions("x").write(picture(tmp_path / "a.png"), caption)
    assert not (tmp_path / ".trainer").exists()


def test_a_refusal_leaves_the_caption_to_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise DatasetError("no")

    monkeypatch.setattr(History, "commit", refuse)
    with pytest.raises(DatasetError):
        SavedCaptions("x").write(picture(tmp_path / "a.png"), "new")
    assert not (tmp_path / "a.txt").exists()
