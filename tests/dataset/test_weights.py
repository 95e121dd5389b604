"""`weights.csv`: repeats and loss weights of single pictures, and sentences for what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_trainer.dataset.scan import scan_folder
from lib_trainer.dataset.weights import read_weights
from lib_trainer.refusals import DatasetError

MakePicture = Any


@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_single_pictures_and_patterns(tmp_path: Path, make_picture: MakePicture, between: str) -> None:
    """The last line that says something counts; an empty cell leaves what was said before."""
    for name in ("a.png", "b.png", "blurred 1.png", "0.5_more/a.png"):
        make_picture(name, caption="c")
    lines = ["picture,Repeats,weight", "*,,0.5", "blurred*,0.25,", "", "b.png,4,1"]
    (tmp_path / "weights.csv").write_text("\n".join(lines).replace(",", between), encoding="utf-8-sig")
    found = scan_folder(tmp_path, trigger_word="", repeats=2)
    assert {one.path.relative_to(tmp_path).as_posix(): (one.repeats, one.weight) for one in found.samples} == {
        "a.png": (2, 0.5),
        "b.png": (4, 1.0),
        "blurred 1.png": (0.25, 0.5),
        "0.5_more/a.png": (0.5, 1.0),
    }, "a subfolder has a file of its own, or none"
    assert found.notes == ()


def test_a_line_that_means_no_picture_is_told(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("a.png", caption="c")
    (tmp_path / "weights.CSV").write_text("picture,weight\nz.png,2\n")  # the ending in any letters
    (note,) = scan_folder(tmp_path, trigger_word="", repeats=1).notes
    assert "z.png" in str(note) and "weights.CSV" in str(note)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "first line names its columns"),
        ("a.png,2", "first line names its columns"),
        ("picture\na.png", "first line names its columns"),
        ("picture,weight,colour\na.png,1,red", "first line names its columns"),
        ("picture,weight\na.png,0", "line 2: weight = '0'"),
        ("picture,weight\na.png,nan", "line 2: weight = 'nan'"),
        ("picture,repeats\n\na.png,-1", "line 3: repeats = '-1'"),
        ("picture,repeats\na.png,2000", "at most 1000"),
        ("picture,repeats\na, b.png,2", "line 2: 3 cells"),
        ("picture,repeats\n,2", "line 2: the picture is not named"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    tmp_path: Path, make_picture: MakePicture, text: str | bytes, said: str
) -> None:
    make_picture("a.png", caption="c")
    path = tmp_path / "weights.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (lambda: read_weights(path), lambda: scan_folder(tmp_path, trigger_word="", repeats=1)):
        with pytest.raises(DatasetError) as caught:
            read()
        assert said in str(caught.value) and str(path) in str(caught.value)
