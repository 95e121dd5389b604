"""One history of a set: what the tagger writes is undone as any edit is, and what a person has removed stays away."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_trainer.captions.document import Caption
from lib_trainer.captions.edits import make_edit
from lib_trainer.captions.tags import split_tags, tag_key
from lib_trainer.dataset.editor import Editor
from lib_trainer.tagging.captions.effect import Opened, Preview
from lib_trainer.tagging.captions.style import Style
from lib_trainer.tagging.captions.writing import planned, write_captions
from lib_trainer.tagging.choices import POLICIES
from lib_trainer.tagging.models.labels import Labels
from lib_trainer.tagging.pictures import list_pictures
from lib_trainer.tagging.scores.known import known_tags
from lib_trainer.tagging.scores.store import ScoreStore
from lib_trainer.tagging.scores.table import Thresholds, sparse

NAMES = ("red", "round", "long_hair", "hat")
LABELS = Labels(NAMES, (0, 0, 0, 0))
LINE = Thresholds(0.5, 0.5)


def make(folder: Path, captions: list[str | None], scores: list[list[float]] | None = None) -> ScoreStore:
    """Pictures that the model `wd` has scored: all tags at 0.9 but for `hat`, unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    store = ScoreStore(folder)
    rows = []
    for number, text in enumerate(captions):
        path = folder / f"{number}.png"
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        if text is not None:
            path.with_suffix(".txt").write_text(text, encoding="utf-8")
        values = scores[number] if scores else [0.9, 0.8, 0.7, 0.1]
        rows.append((path, path.stat(), f"content {number}", sparse(np.array(values, np.float32))))
    store.put("f", "wd", LABELS, rows)
    return store


def opened(store: ScoreStore, style: Style | None = None) -> Opened:
    return Opened.read(store, list_pictures(store.dataset).pictures, ["f"], style or Style())


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.txt"))}


def test_undo_takes_back_what_the_tagger_has_written_and_redo_writes_it_again(tmp_path: Path) -> None:
    store = make(tmp_path, ["mine", None, "zorb, hat"])
    before = texts(tmp_path)
    write_captions(opened(store), LINE, Style())
    after = texts(tmp_path)
    assert after == {
        "0.txt": "mine, red, round, long hair",
        "1.txt": "red, round, long hair",
        "2.txt": "zorb, hat, red, round, long hair",
    }
    assert store.origins(tmp_path / "0.png") == {"red": "wd 0.9000", "round": "wd 0.8000", "long hair": "wd 0.7000"}
    editor = Editor(tmp_path, known_tags(tmp_path))
    assert editor.undo().label == "Captions by wd"
    assert texts(tmp_path) == before
    assert store.origins(tmp_path / "0.png") == {}, "undone with the tags"
    editor.redo()
    assert texts(tmp_path) == after and store.origins(tmp_path / "1.png")["red"] == "wd 0.9000"


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "skip"])
@pytest.mark.parametrize("how", ["edit", "plan by hand", "other program"])
def test_what_a_person_removed_stays_away_unless_asked(tmp_path: Path, how: str, policy: str) -> None:
    """Also where it never was the tagger's: a set that came with captions."""
    store = make(tmp_path, ["red, zorb", "red, zorb"])
    style = Style(policy=policy)  # type: ignore[arg-type]
    if how != "edit":
        write_captions(opened(store), LINE, Style(foreign=True))
    editor = Editor(tmp_path)
    if how == "other program":
        for path in tmp_path.glob("*.txt"):
            path.write_text(", ".join(tag for tag in split_tags(path.read_text()) if tag != "red"))
    elif how == "edit":
        editor.apply(editor.preview(make_edit("remove", {"tags": "red"})))
    else:
        for key in editor.keys:
            caption = editor.caption(key)
            editor.write(key, caption.remove(lambda tag: tag == "red"), caption)
    preview = opened(store).preview(LINE, style)
    assert preview.withheld == 2 and not [line for line in preview.tags if line.tag == "red" and line.added]
    write_captions(opened(store), LINE, style)
    assert all("red" not in split_tags(text) for text in texts(tmp_path).values())
    assert opened(store).preview(LINE, Style(restore=True)).withheld == 0
    judged = opened(store)
    judged.decide(0, "red", True)
    assert "red" in {guess.name for guess in judged.guesses(0, judged.choose(LINE, style))}, "accepted by hand"
    judged.decide(0, "red", None)
    write_captions(opened(store), LINE, Style(restore=True))
    assert all("red" in split_tags(text) for text in texts(tmp_path).values())


def test_what_was_removed_and_undone_or_typed_again_is_there(tmp_path: Path) -> None:
    store = make(tmp_path, ["red, zorb", "red, zorb"])
    editor = Editor(tmp_path)
    editor.apply(editor.preview(make_edit("remove", {"tags": "red"})))
    editor.undo()
    assert opened(store).preview(LINE, Style()).withheld == 0
    editor.redo()
    caption = editor.caption("0.png")
    editor.write("0.png", caption.insert(0, ["red"]), caption)
    assert opened(store).preview(LINE, Style()).withheld == 1
    write_captions(opened(store), Thresholds(0.95, 0.95), Style())
    assert "red" in split_tags((tmp_path / "0.txt").read_text()), "by hand: it survives"


def test_what_the_tagger_took_away_may_come_back(tmp_path: Path) -> None:
    store = make(tmp_path, [None])
    write_captions(opened(store), LINE, Style())
    write_captions(opened(store), Thresholds(0.75, 0.75), Style())
    assert texts(tmp_path) == {"0.txt": "red, round"}
    assert opened(store).preview(LINE, Style()).withheld == 0
    write_captions(opened(store), LINE, Style())
    assert texts(tmp_path) == {"0.txt": "red, round, long hair"}


def test_the_case_of_eighteen_captions(tmp_path: Path) -> None:
    """Tagged; a tag pruned in the editor; written again; Undo: every step is known to the next one."""
    store = make(tmp_path, [None] * 18)
    write_captions(opened(store), LINE, Style(trigger="zorb"))
    tagged = texts(tmp_path)
    editor = Editor(tmp_path, known_tags(tmp_path))
    editor.apply(editor.preview(make_edit("remove", {"tags": "red"})))
    pruned = texts(tmp_path)
    report = write_captions(opened(store), LINE, Style(trigger="zorb"))
    assert (report.written, report.unchanged) == (0, 18)
    assert opened(store).preview(LINE, Style(trigger="zorb")).changed == 0, "both figures are of the same"
    write_captions(opened(store), LINE, Style(trigger="zorb", restore=True))
    assert editor.follow()
    assert [entry.label for entry in editor.history.entries()] == ["Captions by wd", "Remove red", "Captions by wd"]
    for expected in (pruned, tagged, {}):
        editor.undo()
        assert texts(tmp_path) == expected


SCORE = st.sampled_from([0.0, 0.3, 0.6, 0.9])
TAG = st.sampled_from(["red", "Long_Hair", "long hair", "mine", "hat", "zork"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.lists(TAG, max_size=4), st.lists(SCORE, min_size=4, max_size=4)), min_size=1, max_size=4),
    st.sampled_from(POLICIES),
    st.booleans(),
    st.sampled_from(["score", "alphabet", "frequency"]),
)
def test_the_figures_agree(
    tmp_path: Path, rows: list[tuple[list[str], list[float]]], policy: str, foreign: bool, sort: str
) -> None:
    """Every caption that gets or loses a tag is written; the others that are differ in order or spelling alone."""
    folder = tmp_path / "set"
    shutil.rmtree(folder, ignore_errors=True)
    store = make(folder, [", ".join(tags) or None for tags, _ in rows], [scores for _, scores in rows])
    style = Style(policy=policy, foreign=foreign, sort=sort, trigger="zork")  # type: ignore[arg-type]
    held = opened(store, style)
    preview = held.preview(LINE, style)
    before = texts(folder)
    report = write_captions(held, LINE, style)
    assert report.written - report.reordered == preview.changed and report.failed == ()
    after = texts(folder)
    same = [name for name in after if set(keys(after[name])) == set(keys(before.get(name, "")))]
    assert report.reordered == sum(after[name] != before.get(name) for name in same)
    assert report.written + report.unchanged == len(rows)
    again = opened(store, style)
    assert list(planned(again, range(len(rows)), again.choose(LINE, style), style)) == []
    store.close()


def keys(text: str) -> list[str]:
    return [tag_key(tag) for tag in split_tags(text)]


def test_a_verdict_while_a_preview_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The set of verdicts grows while it is walked through."""
    store = make(tmp_path, [None] * 3)
    held, walking, judged = opened(store), threading.Event(), threading.Event()
    held.decide(0, "red", False)
    held.decide(1, "red", False)
    real = type(held.table).entry

    def entry(self: object, row: int, number: int) -> object:
        walking.set()
        judged.wait(5)
        return real(self, row, number)  # type: ignore[arg-type]

    monkeypatch.setattr(type(held.table), "entry", entry)
    found: list[object] = []

    def preview() -> None:
        try:
            found.append(held.choose(LINE, Style()))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=preview)
    thread.start()
    assert walking.wait(5)
    held.decide(2, "red", False)
    judged.set()
    thread.join()
    assert isinstance(found[0], np.ndarray)
    monkeypatch.undo()
    assert not any(held.choose(LINE, Style())[held.table.columns == 0])


def test_the_same_settings_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = opened(make(tmp_path, [None]))
    counted: list[int] = []
    real: Callable[..., Preview] = Opened._preview
    monkeypatch.setattr(Opened, "_preview", lambda self, *given: (counted.append(1), real(self, *given))[1])
    for _ in range(2):
        held.preview(Thresholds(0.5, 0.5, overrides={"red": 0.3}), Style(trigger="zork"))
    assert len(counted) == 1
    held.preview(LINE, Style(trigger="zork"))
    held.decide(0, "red", False)
    held.preview(LINE, Style(trigger="zork"))
    assert len(counted) == 3, "other lines, and a verdict"


def test_a_caption_that_is_a_link_is_written_through(tmp_path: Path) -> None:
    store = make(tmp_path / "set", [None])
    (tmp_path / "real.txt").write_text("mine")
    (tmp_path / "set" / "0.txt").symlink_to(tmp_path / "real.txt")
    write_captions(opened(store), LINE, Style())
    assert (tmp_path / "set" / "0.txt").is_symlink()
    assert Caption.parse((tmp_path / "real.txt").read_text()).tags == ("mine", "red", "round", "long hair")


def test_what_changed_in_order_alone_is_counted_apart(tmp_path: Path) -> None:
    store = make(tmp_path, ["round, red, long hair", "mine", "red, round, long hair"])
    style = Style(policy="replace", foreign=True)
    report = write_captions(opened(store, style), LINE, style)
    assert (report.written, report.reordered, report.unchanged) == (2, 1, 1)
    assert "2 captions written (1 of them only in order or spelling), 1 were right" in str(report.sentence)
    store.close()
