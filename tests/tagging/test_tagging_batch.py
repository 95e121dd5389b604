"""A folder through the pipeline: order, cache, stop, corrupt pictures, errors of every stage, and kill -9."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_trainer.captions.tags import split_tags
from lib_trainer.refusals import TaggerError
from lib_trainer.tagging.captions.effect import Opened
from lib_trainer.tagging.captions.style import Style
from lib_trainer.tagging.captions.writing import write_captions
from lib_trainer.tagging.models.labels import Labels
from lib_trainer.tagging.models.registry import Tagger
from lib_trainer.tagging.pictures import CaptionPlaces, Folder, list_pictures
from lib_trainer.tagging.reports import WriteReport
from lib_trainer.tagging.run import Scored, score_folder
from lib_trainer.tagging.scores import pipeline
from lib_trainer.tagging.scores.pipeline import PixelBudget, score_pictures
from lib_trainer.tagging.scores.store import ScoreStore
from lib_trainer.tagging.scores.table import Thresholds, select
from lib_trainer.work.events import Phase
from miniature.world import Scene
from tests.tagging.conftest import draw_scenes

ROOT = Path(__file__).parents[2]


@dataclass
class Watched:
    """A tagger of one label whose score is the picture's brightness. It can be held, and counts what is in flight."""

    name: str = "watched"
    fingerprint: str = "f"
    labels: Labels = field(default_factory=lambda: Labels(("bright", "sure"), (0, 0)))
    side: int = 4
    max_batch: int = 4
    device: str = "CPU"
    notes: Sequence[str] = ()
    gate: threading.Event = field(default_factory=threading.Event)
    loaded: int = 0
    most: int = 0
    scored: int = 0
    batches: list[int] = field(default_factory=list)
    fail_at: int = -1

    def __post_init__(self) -> None:
        self.gate.set()

    def load(self, path: Path, data: bytes | None = None) -> Any:
        from lib_trainer.tagging.models.preprocess import load

        self.loaded += 1
        self.most = max(self.most, self.loaded - self.scored)
        return load(path, self.side, data)

    def fit(self, image: Image.Image) -> Any:
        raise NotImplementedError

    def batch(self, pictures: Sequence[Any]) -> Any:
        return np.stack(pictures)

    def scores(self, batch: Any) -> Any:
        self.gate.wait(30)
        if len(self.batches) == self.fail_at:
            raise TaggerError("The device gave up.")
        self.batches.append(len(batch))
        self.scored += len(batch)
        brightness = batch.mean(axis=(1, 2, 3)) / 255
        return np.stack([brightness, np.ones(len(batch))], 1).astype(np.float32)


def grey(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.new("RGB", (6, 5), (number * 5,) * 3).save(folder / f"{number:02}.png")
    return list(list_pictures(folder).pictures)


def test_every_picture_gets_its_own_scores(tmp_path: Path) -> None:
    pictures, tagger = grey(tmp_path / "set", 23), Watched()
    seen: list[Phase] = []
    with ScoreStore(tmp_path / "set") as store:
        report = score_pictures(tagger, store, pictures, listener=seen.append, workers=3)
        assert (report.total, report.scored, report.cached, report.skipped, report.stopped) == (23, 23, 0, (), False)
        values = [store.best_scores(path).get("bright", 0.0) for path in pictures]
    assert values == sorted(values) and values[20] > 2 * values[2] > 0, "in the order of their brightness"
    assert tagger.batches == [4, 4, 4, 4, 4, 3]
    done = [progress.done for progress in seen]
    assert done == sorted(done) and done[-1] == 23 and seen[-1].rate > 0


def test_animations_are_counted_and_named(tmp_path: Path) -> None:
    """By their frames and not by their endings; each once, whatever the number of models."""
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "lime", "blue")]
    root = tmp_path / "set"
    (root / "sub").mkdir(parents=True)
    for name in ("a.gif", "sub/b.webp", "c.png"):
        frames[0].save(root / name, save_all=True, append_images=frames[1:], duration=50)
    for name in ("d.gif", "e.png"):
        frames[0].save(root / name)
    folder = list_pictures(root)
    taggers = [Watched(name=name, fingerprint=name) for name in ("one", "two")]
    with ScoreStore(root) as store:
        turns = [lambda own=own: contextlib.nullcontext(own) for own in taggers]
        scored = score_folder(turns, store, folder, stop=lambda: False, listener=lambda progress: None)
    assert [report.scored for report in scored.reports] == [5, 5]
    assert tuple(map(str, scored.notes)) == ("Of 3 animations the first frame is tagged: a.gif, c.png, sub/b.webp.",)


def test_a_second_run_opens_nothing(tmp_path: Path) -> None:
    pictures, tagger = grey(tmp_path / "set", 9), Watched()
    with ScoreStore(tmp_path / "set") as store:
        score_pictures(tagger, store, pictures)
        again = Watched()
        report = score_pictures(again, store, pictures)
        assert (report.scored, report.cached, again.loaded) == (0, 9, 0)
        other = Watched(fingerprint="another model")
        assert score_pictures(other, store, pictures).scored == 9


def test_memory_is_bounded_while_the_model_is_slow(tmp_path: Path) -> None:
    pictures, tagger = grey(tmp_path / "set", 60), Watched()
    tagger.gate.clear()
    threading.Timer(0.5, tagger.gate.set).start()
    with ScoreStore(tmp_path / "set") as store:
        score_pictures(tagger, store, pictures, workers=2)
    held = (pipeline.AHEAD + 4) * 4 + 2
    assert 4 < tagger.most <= held < 60


def test_stop_keeps_what_is_done_and_the_next_run_goes_on(tmp_path: Path) -> None:
    pictures, tagger = grey(tmp_path / "set", 40), Watched()
    with ScoreStore(tmp_path / "set") as store:
        report = score_pictures(tagger, store, pictures, stop=lambda: tagger.scored >= 8)
        assert report.stopped and 8 <= report.scored < 40
        assert len(store.scored("f")) == report.scored
        rest = score_pictures(Watched(), store, pictures)
        assert rest.scored == 40 - report.scored and not rest.stopped


def test_a_corrupt_picture_is_skipped_and_listed(tmp_path: Path) -> None:
    """One kills K."""
    pictures = grey(tmp_path / "set", 7)
    pictures[2].write_bytes(pictures[2].read_bytes()[:40])
    pictures[4].write_bytes(b"")
    Image.new("1", (70_000, 1)).save(pictures[5])
    with ScoreStore(tmp_path / "set") as store:
        report = score_pictures(Watched(), store, pictures)
    assert report.scored == 4 and not report.stopped
    assert [item.path for item in report.skipped] == [pictures[2], pictures[4], pictures[5]]
    assert [str(item.reason).split(":")[0] for item in report.skipped][1:] == ["the file is empty", "70000 × 1 pixels"]


@pytest.mark.parametrize("fail_at", [0, 2])
def test_a_model_that_fails_ends_the_run_and_keeps_what_was(tmp_path: Path, fail_at: int) -> None:
    pictures = grey(tmp_path / "set", 30)
    with ScoreStore(tmp_path / "set") as store:
        with pytest.raises(TaggerError, match="gave up"):
            score_pictures(Watched(fail_at=fail_at), store, pictures)
        assert len(store.scored("f")) == 4 * fail_at
    assert not [thread for thread in threading.enumerate() if "tagger" in thread.name]


@pytest.mark.parametrize("stage", ["put", "listener", "on_scored"])
def test_an_error_behind_the_model_ends_the_run(tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, calls = grey(tmp_path / "set", 50), []

    def broken(*_: Any) -> None:
        calls.append(1)
        if len(calls) > 1 or stage != "listener":
            raise TaggerError("The disk is full.")

    with ScoreStore(tmp_path / "set") as store:
        if stage == "put":
            monkeypatch.setattr(store, "put", broken)
        options = {stage: broken} if stage != "put" else {}
        with pytest.raises(TaggerError, match="disk is full"):
            score_pictures(Watched(), store, pictures, **options)


def test_a_bug_in_decoding_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, tagger = grey(tmp_path / "set", 12), Watched()

    def load(path: Path, data: bytes | None = None) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(tagger, "load", load)
    with ScoreStore(tmp_path / "set") as store, pytest.raises(RuntimeError, match="a bug"):
        score_pictures(tagger, store, pictures)


def test_the_pixel_budget_lets_large_pictures_through_alone() -> None:
    budget, order = PixelBudget(10), []

    def work(size: int) -> None:
        with budget.taken(size):
            order.append(size)

    with budget.taken(6):
        threads = [threading.Thread(target=work, args=(size,)) for size in (50, 3)]
        threads[0].start()
        time.sleep(0.05)
        threads[1].start()
        threads[1].join(5)
        assert order == [3]
    threads[0].join(5)
    assert order == [3, 50]


def test_folders_as_they_are(tmp_path: Path) -> None:
    for name in ("b10.png", "b2.PNG", "sub/c.jpg", ".trainer/thumbnails/t.png", "notes.txt", "sub/.hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = [path.relative_to(tmp_path).as_posix() for path in list_pictures(tmp_path).pictures]
    assert names == ["b2.PNG", "b10.png", "sub/c.jpg"]
    assert len(list_pictures(tmp_path, recursive=False).pictures) == 2
    for folder, sentence in (
        (Path(), "No folder of pictures is given"), (tmp_path / "no", "does not exist"),
        (tmp_path / "notes.txt", "is not a folder"), (tmp_path / "sub" / "..", ""),
    ):  # fmt: skip
        if sentence:
            with pytest.raises(TaggerError, match=sentence):
                list_pictures(folder)
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(TaggerError, match="holds no pictures, and its subfolders are not searched"):
        list_pictures(tmp_path / "empty", recursive=False)


def test_pictures_that_share_a_caption_file() -> None:
    names = [Path("a.jpg"), Path("a.png"), Path("b.png")]
    assert CaptionPlaces("{name}.txt").sharing(names) == {Path("a.png"): Path("a.jpg")}
    assert CaptionPlaces("{name}.{extension}.txt").sharing(names) == {}


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_captions_in_other_letters_and_through_links(tmp_path: Path, mini: Tagger) -> None:
    """Cases 7 and 8: one caption a picture, the hand tags kept, and a linked caption written where it lies."""
    root = tmp_path / "set"
    draw_scenes(tmp_path / "elsewhere", 3)
    root.mkdir()
    (root / "10_zorb").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    kept = tmp_path / "captions" / "one.caption"
    kept.parent.mkdir()
    kept.write_text("linked by hand", encoding="utf-8")
    (tmp_path / "elsewhere" / "000.TXT").write_text("my hand tag, portrait of x", encoding="utf-8")
    (tmp_path / "elsewhere" / "001.txt").symlink_to(kept)
    (tmp_path / "elsewhere" / "002.txt").symlink_to(tmp_path / "gone.txt")
    with ScoreStore(root) as store:
        score(mini, store, list_pictures(root))
        opened = Opened.read(store, list_pictures(root).pictures, [mini.fingerprint], Style())
        report = write_captions(opened, Thresholds(), Style(trigger="zorb"))
    assert (report.written, report.failed) == (2, ())
    assert ["a link to a file that is gone" in str(item.reason) for item in opened.skipped] == [True]
    names = sorted(path.name for path in (tmp_path / "elsewhere").iterdir() if path.suffix.lower() == ".txt")
    assert names == ["000.TXT", "001.txt", "002.txt"]
    assert (tmp_path / "elsewhere" / "000.TXT").read_text("utf-8").startswith("zorb, my hand tag, portrait of x, ")
    assert (tmp_path / "elsewhere" / "001.txt").is_symlink()
    assert kept.read_text("utf-8").startswith("zorb, linked by hand, ")
    assert not (tmp_path / "gone.txt").exists()


def test_a_caption_whose_name_would_be_too_long_is_named(tmp_path: Path, mini: Tagger) -> None:
    """File systems take 255 bytes: such a picture has no such caption, and the others get theirs."""
    draw_scenes(tmp_path, 2)
    (tmp_path / "000.png").rename(tmp_path / f"{'x' * 251}.png")
    style = Style(template="{name}.{extension}.txt", trigger="zorb")
    with ScoreStore(tmp_path) as store:
        score(mini, store, list_pictures(tmp_path))
        opened = Opened.read(store, list_pictures(tmp_path).pictures, [mini.fingerprint], style)
        report = write_captions(opened, Thresholds(), style)
    assert report.written == 1 and (tmp_path / "001.png.txt").is_file()
    assert [(item.path.name[:3], "too long" in str(item.reason)) for item in report.failed] == [("xxx", True)]


def truth_of(path: Path, store: ScoreStore, mini: Tagger, thresholds: Thresholds) -> set[str]:
    """A fresh run: the picture alone, through the session, by the plain definition."""
    scores = mini.scores(mini.batch([mini.load(path)]))[0]
    lines = thresholds.lines(mini.labels)
    return {mini.labels.spaced[n] for n in np.flatnonzero(scores > lines)}


def test_the_cached_rethreshold_equals_a_fresh_run(
    tmp_path: Path, drawn: tuple[Path, list[Scene]], mini: Tagger
) -> None:
    folder = shutil.copytree(drawn[0], tmp_path / "set")
    pictures = list_pictures(folder).pictures
    with ScoreStore(folder) as store:
        score_pictures(mini, store, pictures)
        opened = Opened.read(store, pictures, [mini.fingerprint], Style())
        kinds = set()
        for line in (0.05, 0.2, 0.35, 0.6, 0.95):
            thresholds = Thresholds(line, line)
            chosen = select(opened.table, thresholds)
            for row, path in enumerate(opened.paths):
                found = {guess.name.replace("_", " ") for guess in opened.guesses(row, chosen)}
                assert found == truth_of(path, store, mini, thresholds), (path.name, line)
                kinds.add(len(found))
        assert len(kinds) > 3, "the line does move something"


def score(mini: Tagger, store: ScoreStore, folder: Folder) -> Scored:
    turn = lambda: contextlib.nullcontext(mini)  # noqa: E731
    return score_folder([turn], store, folder, stop=lambda: False, listener=lambda progress: None)


def write(mini: Tagger, store: ScoreStore, folder: Folder) -> WriteReport:
    opened = Opened.read(store, folder.pictures, [mini.fingerprint], Style(trigger="zork"))
    return write_captions(opened, Thresholds(), Style(trigger="zork"))


KILLED = """
import contextlib, sys, time
from pathlib import Path
from lib_trainer.tagging.models.folders import at
from lib_trainer.tagging.pictures import list_pictures
from lib_trainer.tagging.run import score_folder
from lib_trainer.tagging.scores.store import ScoreStore
folder = list_pictures(Path(sys.argv[1]))
tagger = at(Path(sys.argv[2])).open(threads=1, device="cpu")
with ScoreStore(folder.root) as store:
    slowly = lambda progress: (print(progress.done, flush=True), time.sleep(0.02))
    score_folder([lambda: contextlib.nullcontext(tagger)], store, folder, stop=lambda: False, listener=slowly)
"""


def test_kill_in_the_middle_of_a_batch(tmp_path: Path, mini: Tagger) -> None:
    from tests.tagging.conftest import MINI

    folder = tmp_path / "set"
    draw_scenes(folder, 60)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(folder), str(MINI)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 20:
                process.send_signal(signal.SIGKILL)
                break
    assert list(folder.glob("*.txt")) == []
    with ScoreStore(folder) as store:
        done, pictures = len(store.scored(mini.fingerprint)), list_pictures(folder)
        assert 16 <= done < 60, "it was in the middle"
        report = score(mini, store, pictures).reports[0]
        assert report.cached == done and report.scored == 60 - done
        assert write(mini, store, pictures).written == 60
        again = write(mini, store, pictures)
        assert (again.written, again.unchanged, again.failed) == (0, 60, ())
        for path in folder.glob("*.png"):
            tags = split_tags(path.with_suffix(".txt").read_text("utf-8"))
            assert set(tags[1:]) == set(store.origins(path)), "every tag is known to be the tagger's"
        assert [(entry.label, entry.files) for entry in store.history.entries()] == [("Captions by wd-mini", 60)]
