"""`python -m lib_trainer tag`: what it writes, what it says, how it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib_trainer.cli import main as cli_main
from lib_trainer.cli import tag as cli_tag
from lib_trainer.cli.main import main
from lib_trainer.tagging.scores.store import ScoreStore
from miniature.world import Scene, tags_of
from tests.tagging.conftest import MINI, MakeModel, draw_scenes


@pytest.fixture
def folder(tmp_path: Path, drawn: tuple[Path, list[Scene]]) -> Path:
    return Path(shutil.copytree(drawn[0], tmp_path / "set"))


def tag(folder: Path, *options: str) -> int:
    return main(["tag", str(folder), "--model", str(MINI), "--device", "cpu", "--threads", "1", *options])


def test_it_tags_a_folder(folder: Path, drawn: tuple[Path, list[Scene]], capsys: pytest.CaptureFixture[str]) -> None:
    assert tag(folder, "--trigger", "zork", "--exclude", "simple_background, /^(polygon|round)$/") == 0
    scene = drawn[1][0]
    tags = (folder / "000.txt").read_text("utf-8").split(", ")
    assert tags[0] == "zork" and scene.shape in tags and "simple background" not in tags
    assert set(tags[1:]) & set(tags_of(scene)) and not {"polygon", "round"} & set(tags)
    assert "24 scored on CPU, 0 known before." in capsys.readouterr().out
    assert tag(folder, "--trigger", "zork", "--exclude", "simple_background, /^(polygon|round)$/") == 0
    out = capsys.readouterr().out
    assert "0 scored on CPU, 24 known before." in out and "0 captions written, 24 were right already." in out


def test_a_dry_run_writes_nothing_and_shows_what_would_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tag(folder, "--dry-run", "--general", "0.5") == 0
    assert list(folder.glob("*.txt")) == []
    out = capsys.readouterr().out
    assert "24 captions would change" in out and "simple background" in out


def test_captions_are_written_where_nobody_reads_what_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tag … | head` may close the output at the first line."""

    def gone(*words: object, **more: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(cli_tag, "print", gone, raising=False)
    options = cli_main._parser().parse_args(
        ["tag", str(folder), "--model", str(MINI), "--device", "cpu", "--threads", "1"]
    )
    with pytest.raises(BrokenPipeError):
        options.run(options)
    assert len(list(folder.glob("*.txt"))) == 24


def test_two_models_together(folder: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_model("colours", labels=[("general", 9), ("red", 0), ("glow", 0)])
    assert tag(folder, "--model", str(other), "--ensemble", "union", "--general", "0.2") == 0
    assert "colours: 24 scored on CPU" in capsys.readouterr().out
    with ScoreStore(folder) as store:
        assert sorted(store.models().values()) == ["colours", "wd-mini"]
        assert any("wd-mini + colours" in origin for origin in store.origins(folder / "000.png").values())


def test_sorted_by_frequency(folder: Path) -> None:
    assert tag(folder, "--sort", "frequency") == 0
    assert (folder / "001.txt").read_text("utf-8").startswith("simple background, ")


def test_a_corrupt_picture_is_listed_and_the_exit_code_tells(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.png").write_bytes(b"no picture")
    assert tag(folder) == 1
    assert "left out:" in (told := capsys.readouterr().err) and "bad.png (it is not in a format" in told
    assert len(list(folder.glob("*.txt"))) == 24


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--general", "0"], "The general threshold is 0"),
        (["--exclude", "/(/"], "--exclude: /(/ is not a regular expression"),
        (["--tag-threshold", "hat"], "write 'long hair: 0.5'"),
        (["--file-name", "x.txt"], "put {name} into it"),
        (["--model", "nowhere"], "There is no tagger called 'nowhere'"),
    ],
)
def test_refusals(folder: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tag(folder, *options) == 2
    assert sentence in capsys.readouterr().err
    assert list(folder.glob("*.txt")) == []


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tag(tmp_path / "nowhere") == 2
    assert "does not exist: check its path." in capsys.readouterr().err


def scores_in(folder: Path) -> int:
    if not (folder / ".trainer" / "scores.sqlite").exists():
        return 0
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(folder / ".trainer/scores.sqlite")) as base,
    ):
        return int(base.execute("SELECT count(*) FROM scores").fetchone()[0])
    return 0


@pytest.mark.skipif(os.name == "nt", reason="no signals")
def test_an_interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    draw_scenes(folder, 8)
    for copy in range(1, 50):
        for number in range(8):  # many files of different bytes
            (folder / f"{copy}-{number}.png").write_bytes((folder / f"{number:03}.png").read_bytes() + bytes([copy]))
    command = [sys.executable, "-m", "lib_trainer", "tag", str(folder), "--model", str(MINI), "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as run:
        while not scores_in(folder) and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=60)
    assert run.returncode == 0 and "the same command goes on from here" in out
    assert 0 < len(list(folder.glob("*.txt"))) < 400
