"""An edit, its undo and its redo are all or nothing, whatever the files say when they begin or when they are killed.

Every file of a transaction may hold what it was before, what it becomes, something else, or be gone.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_trainer.captions.edits import make_edit
from lib_trainer.dataset import begun, file_moves, journal
from lib_trainer.dataset.editor import Editor
from lib_trainer.dataset.file_moves import Change, ConflictError, Move
from lib_trainer.dataset.history import History
from lib_trainer.refusals import DatasetError

OTHER = b"by somebody else"
NAMES = [f"{n}.txt" for n in range(4)]
STATES = ("before", "after", "other", "gone")
MIXTURES = st.lists(st.sampled_from(STATES), min_size=4, max_size=4)
STEPS = [Change("0.txt", b"red", b"blue"), Change("1.txt", b"a, b, c", b"a"), Change("2.txt", b"x", b"x, y")]
STEPS += [Change("3.txt", None, b"new")]

again = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def put(root: Path, states: list[str]) -> dict[str, bytes]:
    """The files of `STEPS` in these states; returns the folder's content."""
    for step, state in zip(STEPS, states, strict=True):
        content = {"before": step.before, "after": step.after, "other": OTHER, "gone": None}[state]
        if content is None:
            (root / step.path).unlink(missing_ok=True)
        else:
            (root / step.path).write_bytes(content)
    return contents(root)


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}


def made(tmp_path: Path, number: int) -> tuple[Path, History]:
    root = tmp_path / f"set{number}"
    root.mkdir(exist_ok=True)
    (root / ".trainer" / "history.sqlite").unlink(missing_ok=True)
    put(root, ["before"] * 4)
    return root, History(root)


def holds(states: list[str], wanted: str) -> bool:
    """Whether every file is what a transaction expects."""
    return all(
        state == wanted or (wanted == "before" and step.before is None and state == "gone")
        for step, state in zip(STEPS, states, strict=True)
    )


@again
@given(MIXTURES)
@pytest.mark.parametrize("what", ["do", "undo", "redo"])
def test_a_refused_one_writes_nothing(tmp_path: Path, what: str, states: list[str]) -> None:
    root, history = made(tmp_path, 0)
    if what != "do":
        history.commit("edit", STEPS)
    if what == "redo":
        history.undo()
    act: Callable[[], object] = {
        "do": lambda: history.commit("edit", STEPS),
        "undo": history.undo,
        "redo": history.redo,
    }[what]
    mixture, entries = put(root, states), history.entries()
    if holds(states, "after" if what == "undo" else "before"):
        act()
        assert contents(root) == put(root, ["before" if what == "undo" else "after"] * 4)
    else:
        with pytest.raises(ConflictError):
            act()
        assert contents(root) == mixture
        assert history.entries() == entries
        again = History(root)  # nor does opening it later
        assert contents(root) == mixture and again.recovered is None and again.entries() == entries
        again.close()
    history.close()


@again
@given(st.integers(0, 4), MIXTURES, st.booleans())
def test_a_crash_is_told_from_what_somebody_has_changed(
    tmp_path: Path, steps: int, states: list[str], half: bool
) -> None:
    """Killed before a step; then the files are changed. What was not begun stays as it is found."""
    root, history = made(tmp_path, 1)

    class Killed(BaseException):
        pass

    count, real, write = 0, begun.Begun.one_more, file_moves._write

    def one_more(self: begun.Begun) -> None:
        nonlocal count
        if count == steps:
            raise Killed
        count += 1
        real(self)

    def half_written(path: Path | str, data: bytes | None, *, flush: bool = False) -> None:
        if half and count == steps and data is not None:
            with open(path, "ab") as file:
                file.truncate(min(1, len(data)))
            raise Killed
        write(path, data, flush=flush)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(begun.Begun, "one_more", one_more)
        patch.setattr(file_moves, "_write", half_written)
        if steps == 4 and not half:
            history.commit("edit", STEPS)
            history.close()
            return
        with pytest.raises(Killed):
            history.commit("edit", STEPS)
    history.close()
    found = put(root, states)
    again = History(root)
    for number, (step, state) in enumerate(zip(STEPS, states, strict=True)):
        ours = number < steps and state == "after"
        expected = step.before if ours else found.get(step.path)
        assert contents(root).get(step.path) == expected, (step, state)
    assert again.entries() == [] and "cut short" in str(again.recovered)
    again.close()


def test_many_steps_are_announced_in_chunks_and_counted_exactly(tmp_path: Path) -> None:
    """After a kill the count is exact; after the machine has stopped, what may have been begun counts."""
    path, total = tmp_path / "begun", begun.CHUNK + 30
    record = begun.Begun(path, "t" * 32)
    assert begun.begun_steps(path, "t" * 32, total) == 0
    for _ in range(begun.CHUNK + 2):
        record.one_more()
    record.close()
    assert begun.begun_steps(path, "another", total) == 0
    with pytest.MonkeyPatch.context() as patch:
        for boot, expected in (("x", begun.CHUNK + 2), ("other", total), ("", total)):
            patch.setattr(begun, "_boot", lambda boot=boot: boot)
            if boot == "x":
                record = begun.Begun(path, "t" * 32)
                for _ in range(begun.CHUNK + 2):
                    record.one_more()
                record.close()
            assert begun.begun_steps(path, "t" * 32, total) == expected
    begun.taken_back(path, 3)
    assert path.stat().st_size == begun._LENGTH + 3
    path.write_bytes(path.read_bytes()[:20])
    assert begun.begun_steps(path, "t" * 32, total) == 0
    path.unlink()
    assert begun.begun_steps(path, "t" * 32, total) == 0


def test_the_case_of_three_captions(tmp_path: Path) -> None:
    """Dataset removes a tag; another program puts it back at the end; Undo is refused and loses nothing."""
    for n in range(18):
        (tmp_path / f"{n:02}.png").write_bytes(b"picture")
        (tmp_path / f"{n:02}.txt").write_text("red, zorb" if n < 3 else "zorb, red, round")
    editor = Editor(tmp_path)
    editor.apply(editor.preview(make_edit("remove", {"tags": "red"})))
    for n in range(18):
        path = tmp_path / f"{n:02}.txt"
        path.write_text("red, zorb" if n < 3 else f"{path.read_text()}, red")
    before = contents(tmp_path)
    for _ in range(2):
        with pytest.raises(ConflictError, match="nothing has been written"):
            editor.undo()
        assert contents(tmp_path) == before
        editor.history.close()
        editor = Editor(tmp_path)
        assert contents(tmp_path) == before


def test_a_refused_undo_of_the_others_forgets_nothing(tmp_path: Path) -> None:
    root, history = made(tmp_path, 2)
    history.commit("edit", STEPS)
    put(root, ["other", "other", "after", "after"])
    with pytest.raises(ConflictError):
        history.undo(["0.txt"])
    put(root, ["after"] * 4)
    assert history.undo().files == 4
    assert contents(root) == put(root, ["before"] * 4)
    history.close()


def test_a_file_that_changes_while_it_is_written_ends_in_the_old_files(tmp_path: Path) -> None:
    root, history = made(tmp_path, 3)
    real = begun.Begun.one_more

    def one_more(self: begun.Begun) -> None:
        real(self)
        if self.count == 2:
            (root / "2.txt").write_bytes(OTHER)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(begun.Begun, "one_more", one_more)
        with pytest.raises(ConflictError):
            history.commit("edit", STEPS)
    assert contents(root) == {"0.txt": b"red", "1.txt": b"a, b, c", "2.txt": OTHER}
    assert history.entries() == []
    history.close()


def test_a_move_that_was_not_begun_is_left(tmp_path: Path) -> None:
    """A picture at the place of the trash that somebody else has put there does not come back."""
    root, history = made(tmp_path, 4)

    class Killed(BaseException):
        pass

    def killed(self: begun.Begun) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(begun.Begun, "one_more", killed)
        with pytest.raises(Killed):
            history.commit("trash", [Move("0.txt", "away/0.txt")])
    history.close()
    (root / "away").mkdir()
    os.rename(root / "0.txt", root / "away" / "0.txt")
    again = History(root)
    assert (root / "away" / "0.txt").read_bytes() == b"red" and not (root / "0.txt").exists()
    assert "cut short" in str(again.recovered)
    again.close()


def test_a_journal_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    """With a transaction that was cut short: how far it came is in no record, so the files tell."""
    root, history = made(tmp_path, 5)
    history.commit("edit", STEPS)
    history.close()
    database = sqlite3.connect(history.path)
    database.executescript(
        "DROP TABLE origin; DROP TABLE pending; CREATE TABLE pending (entry INTEGER NOT NULL, direction TEXT NOT NULL);"
        "INSERT INTO pending VALUES (1, 'do'); PRAGMA user_version = 1;"
    )
    database.close()
    put(root, ["after", "before", "after", "gone"])
    history = History(root)
    assert "cut short" in str(history.recovered) and contents(root) == put(root, ["before"] * 4)
    history.commit("edit", STEPS, origins={"0.txt": {"red": "hand"}})
    assert history.origins() == {"0.txt": {"red": "hand"}}
    assert journal.VERSION == 2
    history.close()


def test_an_entry_grows_while_nothing_comes_after_it(tmp_path: Path) -> None:
    root, history = made(tmp_path, 6)
    first = history.commit("tags", STEPS[:1], origins={"0.txt": {"blue": "wd 0.9", "red": ""}})
    grown = history.commit("tags", STEPS[1:3], onto=first, origins={"1.txt": {"b": "removed"}})
    assert (grown.id, grown.files) == (first.id, 3)
    assert history.origins() == {"0.txt": {"blue": "wd 0.9", "red": ""}, "1.txt": {"b": "removed"}}
    (root / "3.txt").write_bytes(OTHER)
    with pytest.raises(ConflictError):
        history.commit("tags", STEPS[3:], onto=grown)
    assert history.entries() == [grown]
    history.undo()
    assert {name: data for name, data in contents(root).items() if name != "3.txt"} == {
        "0.txt": b"red", "1.txt": b"a, b, c", "2.txt": b"x",
    }  # fmt: skip
    assert history.origins() == {}
    history.redo()
    assert history.origins()["1.txt"] == {"b": "removed"}
    other = history.commit("by hand", [Change("3.txt", OTHER, b"mine")])
    late = history.commit("tags", [Change("2.txt", b"x, y", b"z")], onto=grown)
    assert late.id > other.id > grown.id
    history.undo(), history.undo()
    assert history.origins()["0.txt"] == {"blue": "wd 0.9", "red": ""}
    history.close()


def test_a_journal_that_is_copied_over_another_one_tells_its_own_origins(tmp_path: Path) -> None:
    """The file is the same one for the disk, and as many edits are in it."""
    history, other = made(tmp_path, 7)[1], made(tmp_path, 8)[1]
    history.commit("tags", STEPS[:1], origins={"0.txt": {"blue": "wd 0.9"}})
    other.commit("tags", STEPS[:1], origins={"0.txt": {"blue": "hand"}})
    assert history.origins() == {"0.txt": {"blue": "wd 0.9"}}
    history.path.write_bytes(other.path.read_bytes())
    os.utime(history.path, (1, 1))
    assert history.origins() == {"0.txt": {"blue": "hand"}}


def test_another_process_that_holds_the_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_trainer.dataset.history.WAIT_SECONDS", 0.1)
    root, one = made(tmp_path, 7)
    other = History(root)
    with one.writing(), pytest.raises(DatasetError, match="Another program is changing"):
        other.commit("edit", STEPS)
    other.commit("edit", STEPS)
    one.close(), other.close()
