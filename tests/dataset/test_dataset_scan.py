"""Folders, captions, repeats, and sentences for what is wrong with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lib_trainer.captions.document import read_document
from lib_trainer.dataset.folder import natural_key
from lib_trainer.dataset.scan import Scan, scan_folder, with_trigger
from lib_trainer.refusals import DatasetError

MakePicture = Any


def scan(folder: Path, trigger_word: str = "", repeats: int = 3) -> Scan:
    return scan_folder(folder, trigger_word=trigger_word, repeats=repeats)


def rows(result: Scan, root: Path) -> list[tuple[str, str, int, str]]:
    return [(s.path.relative_to(root).as_posix(), s.caption, s.repeats, s.concept) for s in result.samples]


def test_flat_pictures_and_concept_folders(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("b10.png", caption="ten")
    make_picture("B2.jpg", size=(30, 40), caption="two")
    make_picture("10_sks dog/x.webp", caption="a dog")
    make_picture("2_my_style/y.bmp")
    result = scan(tmp_path)
    assert rows(result, tmp_path) == [
        ("B2.jpg", "two", 3, ""),
        ("b10.png", "ten", 3, ""),
        ("2_my_style/y.bmp", "my_style", 2, "my_style"),
        ("10_sks dog/x.webp", "a dog", 10, "sks dog"),
    ]
    assert [s.size for s in result.samples] == [(30, 40), (24, 16), (24, 16), (24, 16)]
    assert result.skipped == () and result.notes == ()


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.Jpeg", "a.webp", "a.BMP", "a.gif", "a.tif", "a.TIFF"])
def test_extensions_in_any_case(tmp_path: Path, make_picture: MakePicture, name: str) -> None:
    path = make_picture(name, caption="c")
    assert [s.path for s in scan(tmp_path).samples] == [path]


def test_other_files_and_hidden_ones_do_not_count(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("a.png", caption="c")
    for name in (".hidden.png", "._a.png", ".hidden/1.png", ".5_hidden/1.png"):
        make_picture(name)
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / "folder.png").mkdir()
    result = scan(tmp_path)
    assert rows(result, tmp_path) == [("a.png", "c", 3, "")]
    assert result.notes == () and result.skipped == ()


def test_the_size_follows_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert scan(tmp_path, "t").samples[0].size == (20, 30)


def test_photographs(photographs: Path) -> None:
    result = scan(photographs, "photo")
    sizes = {s.path.name: s.size for s in result.samples}
    assert sizes["astronaut.png"] == (512, 512) and sizes["chelsea.png"] == (451, 300)
    assert {s.caption for s in result.samples} == {"photo"}


@pytest.mark.parametrize(
    ("folder", "said"),
    [("5_a/nested/1.png", "nested"), ("plain/1.png", "plain"), ("0_reg/1.png", "0_reg"), ("_x/1.png", "_x")],
)
def test_folders_that_are_not_read_are_mentioned(
    tmp_path: Path, make_picture: MakePicture, folder: str, said: str
) -> None:
    make_picture("5_a/a.png")
    make_picture(folder)
    result = scan(tmp_path)
    assert len(result.samples) == 1
    assert len(result.notes) == 1 and f"{said}' are not read" in str(result.notes[0])


def test_shares_of_a_picture_in_a_folders_name(tmp_path: Path, make_picture: MakePicture) -> None:
    for name in ("0.5_a/1.png", "1.50_b/1.png", "2.0_c/1.png", "0.0_d/1.png", ".5_e/1.png", "1._f/1.png"):
        make_picture(name)
    result = scan(tmp_path)
    assert [(s.concept, s.repeats) for s in result.samples] == [("a", 0.5), ("b", 1.5), ("c", 2)]
    assert [str(note).rpartition("/")[2][:4] for note in result.notes] == ["0.0_", "1._f"]


def test_numbers_that_may_not_be_meant_are_mentioned(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("10_root/a.png", caption="c")
    make_picture("10_root/2023_summer/a.png")
    result = scan(tmp_path / "10_root")
    assert [s.repeats for s in result.samples] == [3, 2023]
    assert len(result.notes) == 2
    assert "2023 repeats" in str(result.notes[0]) and "not read as repeats" in str(result.notes[1])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"1girl, solo", "1girl, solo"),
        (b"\xef\xbb\xbf1girl, solo\r\n", "1girl, solo"),
        (b"1girl\nsolo\n\n long  hair \n", "1girl, solo, long hair"),
        (b"1girl,\nsolo,", "1girl, solo,"),
        (b"A dog.\nIt runs.", "A dog. It runs."),
        (b"a\tb", "a b"),
        ("猫, saber_(fate)".encode(), "猫, saber_(fate)"),
        (b"", ""),
        (b" \n ", ""),
    ],
)
def test_captions_become_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert read_document(tmp_path / "a.txt").trained() == (expected,)


@given(st.text())
def test_any_text_becomes_one_tidy_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(text.encode("utf-8", "ignore"))
    (caption,) = read_document(path).trained()
    assert caption == " ".join(caption.split())
    assert [c for c in caption if c not in " ,"] == [c for c in "".join(text.split()) if c not in ",\ufeff"] or (
        "\ufeff" in text or any("\ud800" <= c <= "\udfff" for c in text)
    )


def test_a_caption_that_is_not_utf8_is_named(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("a.png", caption="café".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"a\.txt' is not UTF-8 text: it reads as cp1252, and can be converted\."):
        scan(tmp_path)


def test_captions_are_found_in_any_case_and_for_names_with_dots(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("a.v1.final.png")
    (tmp_path / "a.v1.final.TXT").write_text("caption")
    assert scan(tmp_path).samples[0].caption == "caption"


@pytest.mark.parametrize(
    ("caption", "trigger", "expected"),
    [
        ("1girl, solo", "sks", "sks, 1girl, solo"),
        ("1girl, sks, solo", "sks", "1girl, sks, solo"),
        ("a photo of SKS dog", "sks", "a photo of SKS dog"),
        ("sksy, asks", "sks", "sks, sksy, asks"),
        ("sks-like", "sks", "sks, sks-like"),
        ("1girl, saber_(fate), solo", "saber_(fate)", "1girl, saber_(fate), solo"),
        ("1girl, saber_(fate)x", "saber_(fate)", "saber_(fate), 1girl, saber_(fate)x"),
        ("my own style, cat", "my own style", "my own style, cat"),
        ("", "sks", "sks"),
        ("1girl", "", "1girl"),
        ("", "", ""),
    ],
)
def test_trigger_word(caption: str, trigger: str, expected: str) -> None:
    assert with_trigger(caption, trigger) == expected
    assert with_trigger(expected, trigger) == expected


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [("", ["cap", "dog", "cap", ""]), (" sks ", ["sks, cap", "sks", "sks, cap", "sks"])],
)
def test_what_stands_in_for_a_caption(
    tmp_path: Path, make_picture: MakePicture, trigger: str, expected: list[str]
) -> None:
    make_picture("1_dog/a.png", caption="cap")
    make_picture("1_dog/b.png")
    make_picture("a.png", caption="cap")
    make_picture("b.png", caption="\n")
    captions = {s.path.relative_to(tmp_path).as_posix(): s.caption for s in scan(tmp_path, trigger).samples}
    assert [captions[name] for name in ("1_dog/a.png", "1_dog/b.png", "a.png", "b.png")] == expected
    notes = scan(tmp_path, trigger).notes
    assert len(notes) == (not trigger)
    assert trigger or "1 of 4 pictures have no caption" in str(notes[0])


def test_nothing_to_learn_from(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("a.png")
    make_picture("b.png")
    with pytest.raises(DatasetError, match=r"None of the 2 pictures .* give a trigger word"):
        scan(tmp_path)


def test_tag_frequency_counts_as_sd_scripts_does(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("10_dog/a.png", caption="Dog, park,, dog ,")
    make_picture("10_dog/b.png", caption="park")
    make_picture("c.png", caption="cat")
    result = scan(tmp_path)
    assert result.tag_frequency() == {tmp_path.name: {"cat": 1}, "10_dog": {"dog": 2, "park": 2}}
    with_word = scan(tmp_path, "sks").tag_frequency()  # put in front of all, written by nobody
    assert with_word == result.tag_frequency()
    assert scan(tmp_path, "park").tag_frequency() == result.tag_frequency()  # written in two
    assert result.dataset_dirs() == {
        tmp_path.name: {"n_repeats": 3, "img_count": 1},
        "10_dog": {"n_repeats": 10, "img_count": 2},
    }
    for repeats, told in ((10.0, "10"), (0.5, "0.5")):
        whole = json.dumps(scan_folder(tmp_path, trigger_word="", repeats=repeats).dataset_dirs())
        assert f'"n_repeats": {told}, "img_count": 1' in whole


def test_broken_pictures_are_left_out_with_a_reason(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("a.png", caption="c")
    for name, content in {"b.png": b"", "c.jpg": b"<html>", "d.avif": b"\0\0\0\x20ftypavif" + b"\0" * 50}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "b.txt").write_bytes(b"\xff")  # the caption of a picture that is left out does not matter
    result = scan(tmp_path)
    assert [s.path.name for s in result.samples] == ["a.png"]
    assert [s.path.name for s in result.skipped] == ["b.png", "c.jpg", "d.avif"]
    assert str(result.skipped[0].reason) == "the file is empty"


def test_no_readable_picture_names_the_first_few(tmp_path: Path) -> None:
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"None of the 5 .*: 0.png \(the file is empty\), 1.png .*2.png .*2 more;"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("missing", "missing' does not exist: check its path"),
        ("file.txt", "file.txt' is not a folder"),
        ("empty", "empty' holds no pictures: put .png"),
        ("around", "subfolder 'inner' is not called N_concept.*rename it '10_inner'"),
    ],
)
def test_unusable_folders(tmp_path: Path, make_picture: MakePicture, folder: str, said: str) -> None:
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    make_picture("around/inner/a.png")
    with pytest.raises(DatasetError, match=said):
        scan(tmp_path / folder)


def test_an_empty_field_is_not_the_working_folder() -> None:
    with pytest.raises(DatasetError, match="No folder of pictures is given"):
        scan(Path(""))


@pytest.mark.parametrize("denied", ["folder", "caption", "picture"])
def test_what_may_not_be_read_is_named(
    tmp_path: Path, make_picture: MakePicture, monkeypatch: pytest.MonkeyPatch, denied: str
) -> None:
    make_picture("a.png", caption="c")
    make_picture("b.png", caption="c")

    def refuse(original: Any, name: str) -> Any:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *args, **kwargs)

        return call

    # tests run as root too, whom no file mode stops
    if denied == "folder":
        monkeypatch.setattr(os, "scandir", refuse(os.scandir, tmp_path.name))
        with pytest.raises(DatasetError, match=r"cannot be read \(Permission denied\): check its permissions"):
            scan(tmp_path)
    elif denied == "caption":
        monkeypatch.setattr(Path, "open", refuse(Path.open, "b.txt"))
        with pytest.raises(DatasetError, match=r"b\.txt' cannot be read \(Permission denied\)"):
            scan(tmp_path)
    else:
        monkeypatch.setattr(Path, "open", refuse(Path.open, "b.png"))
        assert [(s.path.name, str(s.reason)) for s in scan(tmp_path).skipped] == [
            ("b.png", "there is no permission to read it")
        ]


def test_natural_order() -> None:
    names = ["b", "a10", "A2", "a2", "10", "9", "a", "a02b", "é", "2_x"]
    assert sorted(names, key=natural_key) == ["2_x", "9", "10", "a", "A2", "a2", "a02b", "a10", "b", "é"]


@given(st.lists(st.text(alphabet="aA0129_. é²", max_size=6)))
def test_natural_order_is_total(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)
