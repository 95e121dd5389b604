"""Which file belongs to which picture: the same answer in the trainer, the tagger and the Dataset tab."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_trainer.captions.knowledge import built_in
from lib_trainer.captions.tokens import TokenCounter
from lib_trainer.cli import main as cli
from lib_trainer.dataset.editor import Editor
from lib_trainer.dataset.facts import FactsCache
from lib_trainer.dataset.folder import Misnamed, checked_folder, file_like, list_folder, walk
from lib_trainer.dataset.mending import rename_captions
from lib_trainer.dataset.report import Finding, make_report
from lib_trainer.dataset.scan import scan_folder
from lib_trainer.refusals import DatasetError, Sentence, TaggerError
from lib_trainer.tagging.pictures import CaptionPlaces, list_pictures

MakePicture = Any
COMPOSED, APART = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")


def told(sentences: Iterable[Sentence]) -> tuple[str, ...]:
    return tuple(map(str, sentences))


def seen(root: Path) -> dict[str, list[str]]:
    """{door: its pictures, relative to the set}."""
    return {
        "trainer": [
            s.path.relative_to(root).as_posix() for s in scan_folder(root, trigger_word="t", repeats=1).samples
        ],
        "tagger": [path.relative_to(root).as_posix() for path in list_pictures(root).pictures],
        "editor": Editor(root).keys,
    }


def caption_files(root: Path) -> list[dict[str, str]]:
    """{picture: its caption's name} as the trainer, the tagger and the editor have it."""
    listing = list_folder(root)
    places = CaptionPlaces()
    editor = Editor(root)
    return [
        dict(listing.captions),
        {name: path.name for name in listing.pictures if (path := places.path(root / name)).exists()},
        {key: item.caption for key, item in editor.items.items() if editor.has_file(key)},
    ]


def findings(root: Path) -> dict[str, Finding]:
    editor, cache = Editor(root), FactsCache(root)
    report = make_report(editor, cache.get(editor.keys), TokenCounter(len), built_in(), width=8, height=8)
    return {one.kind: one for one in report.findings}


@pytest.mark.parametrize("caption", ["a.txt", "a.TXT", "a.Txt"])
def test_a_captions_ending_in_any_case(tmp_path: Path, make_picture: MakePicture, caption: str) -> None:
    """Case 7."""
    make_picture("a.PNG")
    make_picture("a.png")
    (tmp_path / caption).write_text("my hand tag", encoding="utf-8")
    for found in caption_files(tmp_path):
        assert found == {"a.PNG": caption, "a.png": caption}
    assert list_folder(tmp_path).pictures_of(caption) == ("a.PNG", "a.png")
    assert scan_folder(tmp_path, trigger_word="", repeats=1).samples[0].caption == "my hand tag"


@pytest.mark.parametrize(("picture", "caption"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_names_that_look_the_same(tmp_path: Path, make_picture: MakePicture, picture: str, caption: str) -> None:
    make_picture(f"{picture}.png")
    (tmp_path / f"{caption}.TXT").write_text("hand", encoding="utf-8")
    for found in caption_files(tmp_path):
        assert found == {f"{picture}.png": f"{caption}.TXT"}
    (tmp_path / f"{picture}.txt").write_text("its own", encoding="utf-8")
    for found in caption_files(tmp_path):
        assert found == {f"{picture}.png": f"{picture}.txt"}


def test_the_caption_that_is_not_taken_of_two_is_named(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("a.png", caption="read")
    (tmp_path / "a.TXT").write_text("passed by", encoding="utf-8")
    scan = scan_folder(tmp_path, trigger_word="", repeats=1)
    assert scan.samples[0].caption == "read"
    assert told(scan.notes) == ("1 file is not read, as the picture has another caption: a.TXT.",)
    assert findings(tmp_path)["second-caption"].paths == ("a.TXT",)
    assert "orphan" not in findings(tmp_path)


@pytest.mark.parametrize("ending", ["jfif", "JPE", "pjpeg", "jif"])
def test_a_jpeg_by_another_ending_is_read(tmp_path: Path, make_picture: MakePicture, ending: str) -> None:
    """Case 17."""
    path = make_picture("a.jpg", caption="c")
    path.rename(tmp_path / f"a.{ending}")
    assert set(map(tuple, seen(tmp_path).values())) == {(f"a.{ending}",)}


def test_pictures_that_are_not_read_are_counted(tmp_path: Path, make_picture: MakePicture) -> None:
    """Case 17: before the run, in the tagger, and in the check."""
    make_picture("10_x/a.png", caption="c")
    for name in ("b.heic", "10_x/c.HEIC", "10_x/d.jxl", "10_x/e.svg", "10_x/f.jpg_large"):
        (tmp_path / name).write_bytes(b"x")
    said = "5 pictures are not read (2 .heic, 1 .jpg_large, 1 .jxl, 1 .svg): save them as PNG, JPEG or WebP."
    assert told(scan_folder(tmp_path, trigger_word="", repeats=1).notes) == (said,)
    assert told(list_pictures(tmp_path).notes) == (said,)
    assert set(findings(tmp_path)["format"].paths) == {
        "b.heic", "10_x/c.HEIC", "10_x/d.jxl", "10_x/e.svg", "10_x/f.jpg_large"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animations_are_named(tmp_path: Path, make_picture: MakePicture, name: str) -> None:
    """Case 17: what lies behind the first frame is not trained, and that is said."""
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)
    make_picture("still.png", caption="c")
    scan = scan_folder(tmp_path, trigger_word="t", repeats=1)
    assert told(scan.notes) == (f"Of 1 animation the first frame is trained: {name}.",)
    assert findings(tmp_path)["animated"].pictures == (name,)
    assert findings(tmp_path)["animated"].pictures == (name,), "also as it was kept"


def test_where_nothing_else_is_there_the_refusal_names_them(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    for error, look in (
        (DatasetError, lambda: scan_folder(tmp_path, trigger_word="t", repeats=1)),
        (TaggerError, lambda: list_pictures(tmp_path)),
    ):
        with pytest.raises(error, match=r"holds no pictures that can be read \(1 .heic are there\): save them as PNG"):
            look()


MEANT = ["a.caption", "a.png.txt", "a.txt.txt", "A.txt", "a .txt", "a.tags", "a.png.caption", "a.text"]


@pytest.mark.parametrize("name", MEANT)
def test_what_is_meant_as_a_caption_is_named_and_renamed(
    tmp_path: Path, make_picture: MakePicture, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Case 14: a sentence before the run, a finding, and an action that undo takes back."""
    if name == "A.txt" and sys.platform in ("win32", "darwin"):
        pytest.skip("there it is the caption")
    make_picture("a.png")
    make_picture("b.png", caption="b")
    (tmp_path / name).write_text("by hand", encoding="utf-8")
    scan = scan_folder(tmp_path, trigger_word="zorb", repeats=1)
    assert scan.samples[0].caption == "zorb"
    assert len(scan.notes) == 1 and f"1 file is not read as a caption: {name}; a caption has" in str(scan.notes[0])
    assert list_pictures(tmp_path).notes == scan.notes
    found = findings(tmp_path)["misnamed"]
    assert (found.paths, found.pictures, found.remedy) == ((name,), ("a.png",), "rename")
    assert cli.main(["captions", str(tmp_path), "--dry-run", "rename"]) == 0
    assert f"{name} → a.txt" in capsys.readouterr().out and (tmp_path / name).exists()
    editor = Editor(tmp_path)
    rename_captions(editor)
    assert editor.caption("a.png").text == "by hand" and not (tmp_path / name).exists()
    again = scan_folder(tmp_path, trigger_word="zorb", repeats=1)
    assert again.samples[0].caption == "zorb, by hand" and again.notes == ()
    editor.undo()
    assert (tmp_path / name).read_text("utf-8") == "by hand" and not editor.has_file("a.png")


def test_a_caption_is_never_renamed_over_another(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("a.png", caption="there")
    make_picture("b.png")
    make_picture("b.jpg")
    for name in ("a.caption", "b.png.txt", "b.jpg.txt"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert list_folder(tmp_path).misnamed() == [
        Misnamed("a.caption", "a.png", ""), Misnamed("b.jpg.txt", "b.jpg", "b.txt"), Misnamed("b.png.txt", "b.png", "")
    ]  # fmt: skip
    rename_captions(Editor(tmp_path))
    assert {path.name: path.read_text("utf-8") for path in tmp_path.glob("*.[ct][xa][tp]*")} == {
        "a.txt": "there", "a.caption": "a.caption", "b.txt": "b.jpg.txt", "b.png.txt": "b.png.txt"
    }  # fmt: skip
    with pytest.raises(DatasetError, match="There is no caption to rename"):
        rename_captions(Editor(tmp_path))


def test_captions_by_a_template_of_ones_own_are_no_mistake(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("x/a.png")
    (tmp_path / "x" / "a.png.TXT").write_text("mine", encoding="utf-8")
    assert list_pictures(tmp_path, template="{name}.{extension}.txt").notes == ()
    assert len(list_pictures(tmp_path).notes) == 1


def test_all_captions_misnamed_is_said_where_the_run_is_refused(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("a.png")
    (tmp_path / "a.caption").write_text("c", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"has a caption: .*1 file is not read as a caption: a\.caption;"):
        scan_folder(tmp_path, trigger_word="", repeats=1)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_to_folders_are_followed_by_all(tmp_path: Path, make_picture: MakePicture) -> None:
    """Case 8."""
    make_picture("elsewhere/a.png", caption="c")
    root = tmp_path / "set"
    root.mkdir()
    (root / "10_zorb").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert set(map(tuple, seen(root).values())) == {("10_zorb/a.png",)}
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    assert seen(tmp_path / "link")["tagger"] == ["10_zorb/a.png"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_loops_of_links_end(tmp_path: Path, make_picture: MakePicture) -> None:
    root = tmp_path / "set"
    make_picture("set/1_a/a.png", caption="c")
    make_picture("other/b.png", caption="c")
    links = {"set/5_self": "set", "set/1_a/2_up": "set", "set/3_out": "other", "other/4_back": "set"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target, target_is_directory=True)
    (root / "loop").symlink_to(root / "loop")
    (root / "loop.png").symlink_to(root / "loop.png")
    assert seen(root)["tagger"] == ["loop.png", "1_a/a.png", "3_out/b.png"]
    scan = scan_folder(root, trigger_word="", repeats=1)
    assert [s.path.name for s in scan.samples] == ["a.png", "b.png"]
    assert [s.path.name for s in scan.skipped] == ["loop.png"]
    assert Editor(root).keys == ["loop.png", "1_a/a.png", "3_out/b.png"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_into_the_set_is_walked_once(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("b/a.png")
    make_picture(".store/x/c.png")
    (tmp_path / "a").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "c").symlink_to(tmp_path / ".store" / "x", target_is_directory=True)
    assert [p.relative_to(tmp_path).as_posix() for p in list_pictures(tmp_path).pictures] == ["b/a.png", "c/c.png"]


@pytest.mark.skipif(os.name == "nt", reason="pipes and such names are of Unix")
@pytest.mark.timeout(30)
def test_pipes_are_passed_by(tmp_path: Path, make_picture: MakePicture) -> None:
    """Opening one would wait for ever."""
    make_picture("a.png")
    for name in ("a.txt", "b.png"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "c.png").symlink_to(tmp_path / "b.png")
    assert set(map(tuple, seen(tmp_path).values())) == {("a.png",)}
    assert caption_files(tmp_path)[0] == {}


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_names_that_are_no_text_are_told_of(tmp_path: Path, make_picture: MakePicture) -> None:
    make_picture("a.png", caption="c")
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.png"), "wb") as file:
        Image.new("RGB", (8, 8)).save(file, "PNG")
    assert set(map(tuple, seen(tmp_path).values())) == {("a.png",)}
    note = r"1 file is not read, as its name is not UTF-8: \xff.png; rename it."
    assert told(scan_folder(tmp_path, trigger_word="", repeats=1).notes) == (note,)
    assert told(list_pictures(tmp_path).notes) == (note,)


@pytest.mark.parametrize(
    "name", ["a[1].png", "it's.png", '".png', "a.b.c.png", "x" * 250 + ".png", "100%.png", "a#b?.png"]
)
def test_legal_names_are_read_alike(tmp_path: Path, make_picture: MakePicture, name: str) -> None:
    if os.name == "nt":
        pytest.skip("not legal there")
    make_picture(name, caption="hand")
    assert set(map(tuple, seen(tmp_path).values())) == {(name,)}
    for found in caption_files(tmp_path):
        assert found == {name: name[:-4] + ".txt"}


def test_one_folder_written_in_several_ways(tmp_path: Path) -> None:
    for text in (str(tmp_path), f' "{tmp_path}" ', f"'{tmp_path}'", f"{tmp_path}/x/.."):
        assert checked_folder(text) == tmp_path
    for text, sentence in (("", "No folder"), ("\0", "is not a path"), (str(tmp_path / ("x" * 300)), "not a path")):
        with pytest.raises(DatasetError, match=sentence):
            checked_folder(text)


def test_a_folder_that_may_not_be_read_is_told_of_and_the_rest_walked(
    tmp_path: Path, make_picture: MakePicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_picture("a/a.png")
    make_picture("b/b.png")
    original = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listed = list_pictures(tmp_path)
    assert [path.name for path in listed.pictures] == ["b.png"]
    assert [(one.path.name, str(one.reason)) for one in listed.skipped] == [("a", "Permission denied")]
    assert len(list(walk(tmp_path, recursive=False))) == 1


@pytest.mark.parametrize(
    "there", [["a.txt", "a.TXT"], ["a.TXT", "a.Txt"], ["b.txt", "aa.txt"], ["a.txt.txt"], ["e\u0301.txt", "\u00e9.TXT"]]
)
@pytest.mark.parametrize("stem", ["a", "\u00e9", "e\u0301"])
def test_one_file_is_found_as_in_a_whole_listing(tmp_path: Path, there: list[str], stem: str) -> None:
    for name in there:
        (tmp_path / name).touch()
    like = list_folder(tmp_path).files.like(f"{stem}.txt")
    assert file_like(tmp_path / f"{stem}.txt") == (None if like is None else tmp_path / like)
