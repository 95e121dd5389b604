"""The preview is what writing does, writing is whole or nothing, and the border is where it is said to be."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_trainer.captions.tags import split_tags, tag_key
from lib_trainer.dataset import file_moves
from lib_trainer.refusals import ConfigError, TaggerError
from lib_trainer.tagging.captions import writing
from lib_trainer.tagging.captions.effect import Opened
from lib_trainer.tagging.captions.style import Style
from lib_trainer.tagging.captions.writing import write_captions
from lib_trainer.tagging.choices import POLICIES
from lib_trainer.tagging.models.labels import Labels
from lib_trainer.tagging.pictures import list_pictures
from lib_trainer.tagging.scores.store import ScoreStore
from lib_trainer.tagging.scores.table import Thresholds, sparse
from tests.tagging.conftest import record_origins

LABELS = Labels(("safe", "lewd", "long_hair", "sword", "hat", "saber_(fate)"), (9, 9, 0, 0, 0, 4))
CAPTIONS = ["", None, "mine, Long_Hair", "hat, sword, mine, saber \\(fate\\)", "zork, hat ||| sword, other", "hat"]
ORIGINS = {"hat": "wd 0.6000", "sword": "wd 0.7000", "saber (fate)": "hand"}


def scored(folder: Path, count: int = 24, seed: int = 1) -> ScoreStore:
    """Pictures with random scores and every kind of caption."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    store = ScoreStore(folder)
    rows = []
    for number in range(count):
        path = folder / f"{number:02}.png"
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        text = CAPTIONS[number % len(CAPTIONS)]
        if text is not None:
            path.with_suffix(".txt").write_text(text, encoding="utf-8")
        scores = rng.random(len(LABELS)) * rng.integers(0, 2, len(LABELS))
        rows.append((path, path.stat(), f"content {number}", sparse(scores.astype(np.float32))))
    store.put("f", "wd", LABELS, rows)
    record_origins(store, ((path, ORIGINS) for path, *_ in rows))
    return store


def open_all(store: ScoreStore, style: Style | None = None) -> Opened:
    return Opened.read(store, list_pictures(store.dataset).pictures, ["f"], style or Style())


def keys_of(folder: Path, path: Path) -> set[str]:
    caption = path.with_suffix(".txt")
    text = caption.read_text("utf-8") if caption.exists() else ""
    return {tag_key(tag) for tag in split_tags(text.replace("|||", ","))}


@pytest.mark.parametrize(("policy", "foreign"), list(itertools.product(POLICIES, [False, True])))
def test_the_preview_tells_what_writing_does(tmp_path: Path, policy: Any, foreign: bool) -> None:
    from lib_trainer.captions.tags import TagPatterns

    store = scored(tmp_path)
    excluded = TagPatterns.parse("sw*")
    style = Style(policy=policy, foreign=foreign, trigger="zork", always=("solo",), excluded=excluded)
    thresholds = Thresholds(0.4, 0.4, ratings=True)
    opened = open_all(store, style)
    opened.decide(3, "saber (fate)", False)
    opened.decide(4, "long hair", True)
    before = {path: keys_of(tmp_path, path) for path in opened.paths}
    preview = opened.preview(thresholds, style)
    report = write_captions(opened, thresholds, style)
    assert report.failed == ()
    after = {path: keys_of(tmp_path, path) for path in opened.paths}
    assert preview.added == sum(len(after[path] - before[path]) for path in after)
    assert preview.removed == sum(len(before[path] - after[path]) for path in after)
    assert preview.changed == sum(after[path] != before[path] for path in after)
    for line in preview.tags:
        key = tag_key(line.tag)
        counts = [sum(key in tags[path] for path in tags) for tags in (before, after)]
        added = sum(key in after[path] - before[path] for path in after)
        removed = sum(key in before[path] - after[path] for path in after)
        assert len(opened.examples(preview, line.tag)) == min(8, added + removed)
        assert (line.before, line.after, line.added, line.removed) == (*counts, added, removed), line.tag
        for row in opened.examples(preview, line.tag):
            path = opened.paths[row]
            assert (key in before[path]) != (key in after[path])
    assert {tag_key(line.tag) for line in preview.tags} == set().union(*before.values(), *after.values())
    again = open_all(store, style).preview(thresholds, style)
    assert (again.changed, again.added, again.removed) == (0, 0, 0)


def test_the_border_is_where_it_is_said_to_be_and_verdicts_hold(tmp_path: Path) -> None:
    store = scored(tmp_path, 60)
    opened, thresholds = open_all(store), Thresholds(0.5, 0.5)
    near = opened.borderline(thresholds, "LONG_HAIR")
    assert near and all(abs(item.score - 0.5) <= 0.05 + 1e-6 and item.tag == "long hair" for item in near)
    distances = [abs(item.score - item.line) for item in near]
    assert distances == sorted(distances)
    below = next(item for item in near if item.score < 0.5)
    above = next(item for item in near if item.score > 0.5)
    opened.decide(below.row, "long hair", True)
    opened.decide(above.row, "long hair", False)
    for judged in (opened, open_all(store)):
        chosen = judged.choose(thresholds, Style())
        assert "long_hair" in {guess.name for guess in judged.guesses(below.row, chosen)}
        assert "long_hair" not in {guess.name for guess in judged.guesses(above.row, chosen)}
        marks = {item.row: item.accepted for item in judged.borderline(thresholds, "long hair")}
        assert marks[below.row] is True and marks[above.row] is False
    write_captions(opened, thresholds, Style())
    assert store.origins(opened.paths[below.row])["long hair"] == "hand"
    higher = open_all(store)
    assert write_captions(higher, Thresholds(0.99, 0.99), Style()).failed == ()
    assert "long hair" in keys_of(tmp_path, opened.paths[below.row]), "accepted by hand: it survives"


def test_the_border_of_a_line_by_mcut_is_each_pictures_own(tmp_path: Path) -> None:
    opened = open_all(scored(tmp_path, 60))
    thresholds = Thresholds(mcut_general=True)
    near = opened.borderline(thresholds, "sword", width=0.2)
    lines = {item.row: item.line for item in near}
    assert len({round(line, 4) for line in lines.values()}) > 3
    for row, line in lines.items():
        span = slice(int(opened.table.starts[row]), int(opened.table.starts[row + 1]))
        general = opened.table.categories[span] == 0
        found = np.append(np.sort(opened.table.values[span][general])[::-1], 0.0)
        place = int((found[:-1] - found[1:]).argmax())
        assert line == pytest.approx((found[place] + found[place + 1]) / 2), "the middle of the widest gap"


def test_captions_that_cannot_be_read_are_listed_and_stay(tmp_path: Path) -> None:
    store = scored(tmp_path, 4)
    (tmp_path / "01.txt").write_bytes("schön".encode("latin-1"))
    (tmp_path / "02.txt").write_bytes(b"\xef\xbb\xbfmit BOM")
    opened = open_all(store)
    assert [(item.path.name, "UTF-8" in str(item.reason)) for item in opened.skipped] == [("01.png", True)]
    write_captions(opened, Thresholds(), Style(trigger="zork"))
    assert (tmp_path / "01.txt").read_bytes() == "schön".encode("latin-1")
    assert b"\xef\xbb\xbfzork, mit BOM" in (tmp_path / "02.txt").read_bytes()


def test_a_caption_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    store = scored(tmp_path, 6)
    opened = open_all(store)
    (tmp_path / "05.txt").write_text("edited by another program")
    (tmp_path / "01.txt").write_text("made by another program")
    report = write_captions(opened, Thresholds(0.01, 0.01), Style())
    assert [(item.path.name, str(item.reason)) for item in report.failed] == [
        ("01.txt", "another program has changed it in the meantime"),
        ("05.txt", "another program has changed it in the meantime"),
    ]
    assert (tmp_path / "05.txt").read_text() == "edited by another program"
    assert report.written + report.unchanged == 4


def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    real = file_moves._write

    def write(path: Path | str, data: bytes | None, *, flush: bool = False) -> None:
        if Path(path).name == name and data != b"hat, sword, mine, saber \\(fate\\)":
            raise OSError(code, os.strerror(code), str(path))
        real(path, data, flush=flush)

    monkeypatch.setattr(file_moves, "_write", write)


def test_a_locked_caption_is_listed_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = scored(tmp_path, 6)
    opened = open_all(store)
    failing(monkeypatch, "03.txt", errno.EACCES)
    report = write_captions(opened, Thresholds(0.01, 0.01), Style(trigger="zork"))
    assert [(item.path.name, str(item.reason)) for item in report.failed] == [("03.txt", "Permission denied")]
    assert report.written == 5
    assert (tmp_path / "03.txt").read_text() == CAPTIONS[3]
    assert store.origins(tmp_path / "03.png") == ORIGINS, "as before"
    assert len(store.history.entries()) == 1
    assert "zork" in (tmp_path / "05.txt").read_text()


def test_a_full_disk_ends_it_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_all(scored(tmp_path, 6))
    failing(monkeypatch, "03.txt", errno.ENOSPC)
    monkeypatch.setattr(writing, "CHUNK", 2)
    with pytest.raises(TaggerError, match=r"disk is full: the 2 captions before are written, the rest keep their old"):
        write_captions(opened, Thresholds(0.01, 0.01), Style(trigger="zork"))
    assert (tmp_path / "02.txt").read_text() == CAPTIONS[2]
    assert (tmp_path / "03.txt").read_text() == CAPTIONS[3] and (tmp_path / "04.txt").read_text() == CAPTIONS[4]
    assert "zork" in (tmp_path / "01.txt").read_text()
    assert not list(tmp_path.glob("*.tmp"))


def test_stopping_keeps_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "CHUNK", 16)
    opened = open_all(scored(tmp_path, 40))
    stop = iter([False, False, True]).__next__
    report = write_captions(opened, Thresholds(0.01, 0.01), Style(trigger="zork"), stop=stop)
    assert report.stopped and report.written + report.unchanged == 32
    assert [entry.files for entry in opened.store.history.entries()] == [report.written], (
        "one entry, whatever the chunks"
    )


def test_only_the_first_of_two_pictures_writes_a_shared_caption(tmp_path: Path) -> None:
    store = scored(tmp_path, 3)
    twin = tmp_path / "01.jpg"
    Image.new("RGB", (4, 4)).save(twin)
    store.put("f", "wd", LABELS, [(twin, twin.stat(), "twin", sparse(np.ones(6, np.float32)))])
    opened = open_all(store)
    assert [(item.path.name, str(item.reason)) for item in opened.skipped] == [
        ("01.png", "its caption file belongs to 01.jpg")
    ]
    apart = open_all(store, Style(template="{name}.{extension}.txt"))
    assert apart.skipped == []


def test_frequency_is_counted_over_the_set(tmp_path: Path) -> None:
    opened = open_all(scored(tmp_path, 40))
    style = Style(policy="replace", sort="frequency", foreign=True)
    chosen = opened.choose(Thresholds(0.3, 0.3), style)
    frequency = opened.frequency(chosen)
    for row in range(40):
        done = opened.compose(row, chosen, style, frequency)
        if done is not None and "|||" not in done.text:
            counts = [frequency[tag_key(t)] for t in split_tags(done.text) if tag_key(t) != "saber (fate)"]
            assert counts == sorted(counts, reverse=True)


def test_an_expression_that_takes_too_long_is_a_sentence(tmp_path: Path) -> None:
    from lib_trainer.captions.tags import TagPatterns

    with pytest.raises(ConfigError, match="is not a regular expression"):
        TagPatterns.parse("/(/", "Exclude")
    opened = open_all(scored(tmp_path, 3))
    preview = opened.preview(Thresholds(0.01, 0.01), Style(excluded=TagPatterns.parse("/(sword|hat)/, long*")))
    assert {line.tag for line in preview.tags if line.added} <= {"saber (fate)"}
