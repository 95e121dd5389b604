"""`python -m lib_trainer captions`: the same edits and plans for scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lib_trainer.cli import captions
from lib_trainer.cli import main as cli


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "5_alba"
    folder.mkdir()
    for index, tags in enumerate(
        ("1girl, silver hair, sword, weapon", "1girl, silver hair, smile", "1girl, silver hair")
    ):
        Image.new("RGB", (80, 64), (index * 50, 0, 0)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(tags, encoding="utf-8")
    return tmp_path


def texts(root: Path) -> list[str]:
    return [path.read_text("utf-8") for path in sorted(root.glob("*/*.txt"))]


def run(*arguments: object) -> int:
    return cli.main(["captions", *map(str, arguments)])


def test_a_dry_run_tells_and_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = texts(root)
    assert run(root, "remove", "--tags", "* hair", "--dry-run") == 0
    assert run(root, "--dry-run", "remove", "--tags", "* hair") == 0
    said = capsys.readouterr().out
    assert said.count("Remove * hair: 3 of 3 captions") == 2
    assert "removed: silver hair (3)" in said and "Dry run: nothing was written." in said
    assert texts(root) == before


def test_edits_plans_undo_and_redo(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = texts(root)
    assert run(root, "implied") == 0
    assert texts(root)[0] == "1girl, silver hair, sword"
    assert run(root, "plan", "delete-all", "--trigger", "alba") == 0
    assert texts(root) == ["alba, 1girl, sword", "alba, 1girl, smile", "alba, 1girl"]
    assert run(root, "--filter", "smile", "add", "--tags", "new", "--where", "back") == 0
    assert texts(root)[1] == "alba, 1girl, smile, new" and "new" not in texts(root)[0]
    for _ in range(3):
        assert run(root, "undo") == 0
    assert texts(root) == before
    assert run(root, "redo") == 0
    assert run(root, "history") == 0
    assert "undone" in capsys.readouterr().out
    assert run(root, "snapshot", "now") == 0
    assert run(root, "sort", "--by", "alphabet") == 0
    assert run(root, "restore", "now") == 0
    assert texts(root)[0] == "1girl, silver hair, sword"


def test_the_report_and_the_tags(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "check", "--html", root / "report.html", "--width", 64, "--height", 64) == 0
    assert run(root, "tags") == 0
    said = capsys.readouterr().out
    assert "3\tsilver hair\thair" in said
    assert "<svg" in (root / "report.html").read_text("utf-8")


def test_a_report_takes_the_place_of_a_report_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = root / "report.html"
    there.write_text("mine", "utf-8")
    assert run(root, "check", "--html", there) == 2
    assert "report.html exists already" in capsys.readouterr().err and there.read_text("utf-8") == "mine"
    there.unlink()
    for _ in range(2):
        assert run(root, "check", "--html", there) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["remove"], "Tags is empty"),
        (["regex-tags", "--expression", "("], "is not a regular expression"),
        (["--filter", "absent", "dedupe"], "lets no picture through"),
        (["--filter", "(a", "dedupe"], "Filter: "),
        (["restore", "none"], "There is no snapshot called 'none'"),
        (["undo"], "nothing to undo"),
    ],
)
def test_what_cannot_be_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    before = texts(root)
    assert run(root, *arguments) == cli.BAD_JOB
    assert sentence in capsys.readouterr().err
    assert texts(root) == before


def test_a_missing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "no", "tags") == cli.BAD_JOB
    assert "does not exist: check its path." in capsys.readouterr().err


@pytest.mark.parametrize("asked", [("remove", "--tags", "silver hair"), ("plan", "delete-all", "--trigger", "alba")])
def test_an_edit_is_done_where_nobody_reads_what_is_said_of_it(
    root: Path, asked: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`captions … | head` closes the output after the first lines."""

    def gone(*words: object, **more: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(captions, "print", gone, raising=False)
    options = cli._parser().parse_args(["captions", str(root), *asked])
    with pytest.raises(BrokenPipeError):
        options.run(options)
    assert "silver hair" not in "".join(texts(root))
    monkeypatch.undo()
    assert run(root, "undo") == 0 and texts(root)[2] == "1girl, silver hair"


def test_scores_are_found_however_the_folder_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    known = captions.known_tags
    monkeypatch.setattr(captions, "known_tags", lambda folder: asked.append(folder) or known(folder))
    for written in (f"'{root}'", f'"{root}"', root / "5_alba" / ".."):
        assert run(written, "history") == 0
    assert asked == [root] * 3
