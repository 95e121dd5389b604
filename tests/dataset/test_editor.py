"""Edits of a set as transactions: undone byte for byte, all or nothing whatever kills them, nothing overwritten."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_trainer.captions.document import Caption
from lib_trainer.captions.edits import make_edit
from lib_trainer.dataset import file_moves
from lib_trainer.dataset.editor import Editor
from lib_trainer.dataset.facts import FactsCache
from lib_trainer.dataset.file_moves import Change, ConflictError, Move
from lib_trainer.dataset.history import History
from lib_trainer.refusals import ConfigError, DatasetError
from tests.protected import write_protected

CONTENTS = {
    "a.txt": b"\xef\xbb\xbfzorb, long_hair,smile\r\n",
    "5_dog/b.txt": b"zorb\nshort hair\nsmile\n",
    "5_dog/c.txt": b"zorb ||| smile, smile, 1girl",
    "5_dog/d.txt": b"",
}
PICTURES = ("a.png", "5_dog/b.jpg", "5_dog/c.webp", "5_dog/d.png", "5_dog/e.png")


def make_set(root: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    for name, data in {**dict.fromkeys(PICTURES, b"picture"), **CONTENTS}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def files(root: Path) -> dict[str, bytes]:
    """Everything in the set but the hidden folder."""
    found = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found if ".trainer" not in path.parts}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_set(tmp_path / "set")


EDITS = st.sampled_from(
    [
        ("add", {"tags": "new, tag", "where": "back"}),
        ("add", {"tags": "front"}),
        ("remove", {"tags": "smile"}),
        ("remove", {"tags": "*"}),
        ("replace", {"tags": "* hair", "by": "hair"}),
        ("regex-captions", {"expression": r"[\r\n]+", "replacement": ", "}),
        ("dedupe", {}),
        ("sort", {"by": "alphabet"}),
        ("trigger", {"word": "other", "replaces": "zorb", "separator": True}),
        ("keep-tokens", {"count": 1}),
        ("prune-count", {"fewer_than": 2}),
        ("spelling", {"to": "underscores"}),
    ]
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(EDITS, st.sampled_from(["undo", "redo", "reopen", "trash"])), min_size=1, max_size=7))
def test_any_sequence_undone_and_redone_gives_the_bytes_back(tmp_path: Path, actions: list[object]) -> None:
    root = make_set(tmp_path / "set")
    editor = Editor(root)
    past, future = [files(root)], []
    for action in actions:
        if action == "undo" and len(past) > 1:
            editor.undo()
            future.append(past.pop())
        elif action == "redo" and future:
            editor.redo()
            past.append(future.pop())
        elif action == "reopen":
            editor.history.close()
            editor = Editor(root)
        elif action == "trash":
            keys = [key for key in editor.keys if key.endswith(("b.jpg", "e.png"))]
            if keys:
                editor.to_trash(keys)
                past, future = [*past, files(root)], []
        elif isinstance(action, tuple):
            preview = editor.preview(make_edit(*action))
            if preview.altered:
                editor.apply(preview)
                past, future = [*past, files(root)], []
        assert files(root) == past[-1]
    last = past[-1]
    editor.history.close()
    editor = Editor(root)
    for state in reversed(past[:-1]):
        editor.undo()
        assert files(root) == state
    for state in past[1:]:
        editor.redo()
        assert files(root) == state
    assert files(root) == last
    editor.history.close()


def killed_at(number: int, root: Path, action: Callable[[Editor], object]) -> bool:
    """Do something in a process that is killed with -9 at its `number`-th call of the file system.

    Before most calls; in the middle of a write, when half of it is done. Says whether it was killed; the process that
    gets to its end exits by itself.
    """
    child = os.fork()
    if child == 0:
        try:
            editor = Editor(root)
            count, real_write = 0, os.write

            def count_down(half: Callable[[], object] = lambda: None) -> None:
                nonlocal count
                count += 1
                if count == number:
                    half()
                    os.kill(os.getpid(), signal.SIGKILL)

            def heard(event: str, arguments: tuple[object, ...]) -> None:
                if event in ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "shutil.move"):
                    count_down()

            def write(file: int, data: bytes) -> int:
                count_down(lambda: real_write(file, data[: len(data) // 2]))
                return real_write(file, data)

            sys.addaudithook(heard)
            os.write = write
            action(editor)
            for _ in range(3):  # also before what comes after the last write: sqlite's own calls are not heard
                count_down()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("what", ["edit", "undo", "redo", "trash"])
def test_killed_between_any_two_writes_all_or_nothing_is_left(root: Path, what: str) -> None:
    edit = make_edit("trigger", {"word": "other", "replaces": "zorb"})
    actions: dict[str, Callable[[Editor], object]] = {
        "edit": lambda editor: editor.apply(editor.preview(edit)),
        "undo": lambda editor: editor.undo(),
        "redo": lambda editor: editor.redo(),
        "trash": lambda editor: editor.to_trash(editor.keys[:2]),
    }
    action = actions[what]
    for name in ("5_dog/c.webp", "5_dog/c.txt", "5_dog/d.png", "5_dog/d.txt", "5_dog/e.png"):
        (root / name).unlink()
    editor = Editor(root)
    editor.apply(editor.preview(make_edit("add", {"tags": "early"})))
    if what in ("undo", "redo"):
        editor.apply(editor.preview(edit))
    if what == "redo":
        editor.undo()
    editor.history.close()
    template = root.with_name("template")
    shutil.copytree(root, template)
    before = files(root)
    editor = Editor(root)
    action(editor)
    editor.history.close()
    after, seen, half = files(root), set(), 0
    assert before != after
    for number in range(1, 500):
        shutil.rmtree(root)
        shutil.copytree(template, root)
        killed = killed_at(number, root, action)
        half += files(root) not in (before, after)
        editor = Editor(root)  # recovers
        found = files(root)
        assert found in (before, after), f"killed before call {number}"
        if found == before and what == "edit":
            assert [entry.label for entry in editor.history.entries()] == ["Add early at the front"]
        seen.add(found == after)
        editor.history.close()
        if not killed:
            break
    assert not killed and number > 8
    assert seen == {True, False}
    assert half, "the kill never came between two writes"


def test_a_full_disk_leaves_everything_as_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = Editor(root)
    before = files(root)
    edit, count, real = make_edit("add", {"tags": "new"}), 0, os.write

    def full(file: int, data: bytes) -> int:
        """The third file gets half of its content; after that only what is no longer than before fits."""
        nonlocal count
        count += b"new" in data
        if count < 3 or b"new" not in data:
            return real(file, data)
        if count == 3:
            return real(file, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DatasetError, match=r"No space left on device.*nothing has been changed"):
        editor.apply(editor.preview(edit))
    assert count > 3
    assert files(root) == before
    assert editor.history.entries() == []
    monkeypatch.undo()
    editor.apply(editor.preview(edit))
    assert len(editor.history.entries()) == 1


@given(st.binary(max_size=12), st.binary(max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_whatever_a_write_leaves_half_done_is_known(old: bytes, new: bytes, place: int, back: int) -> None:
    def begun(there: bytes, data: bytes, count: int) -> bytes:
        """What is in a file after the first `count` bytes of `data` were written over what is there."""
        return data[:count] + there[len(data[:count]) :]

    forward = begun(old, new, place)
    assert file_moves._is_between(forward, old, new)
    assert file_moves._is_between(begun(forward, old, back), old, new)


def test_a_caption_of_another_program_is_not_taken_for_half_written() -> None:
    assert not file_moves._is_between(b"theirs", b"a, b", b"new, a, b")
    assert not file_moves._is_between(b"new, a, b, c", b"a, b", b"new, a, b")


def test_a_caption_that_changed_outside_is_a_conflict_with_both_versions(root: Path) -> None:
    editor = Editor(root)
    preview = editor.preview(make_edit("add", {"tags": "new"}))
    (root / "a.txt").write_bytes(b"by another program")
    before = files(root)
    with pytest.raises(
        ConflictError, match=r"^a\.txt changed outside of this editor.*nothing has been written\.$"
    ) as told:
        editor.apply(preview)
    assert [(one.path, one.expected, one.found) for one in told.value.conflicts] == [
        ("a.txt", CONTENTS["a.txt"], b"by another program")
    ]
    assert files(root) == before
    assert [one.path for one in editor.outside_changes()] == ["a.txt"]
    editor.reload()
    assert editor.outside_changes() == []
    editor.apply(editor.preview(make_edit("add", {"tags": "new"})))
    (root / "a.txt").write_bytes(b"again")
    with pytest.raises(ConflictError):
        editor.undo()
    assert (root / "a.txt").read_bytes() == b"again"


def test_the_rest_of_a_transaction_can_be_undone(root: Path) -> None:
    editor = Editor(root)
    editor.apply(editor.preview(make_edit("remove", {"tags": "smile"})))
    after = files(root)
    (root / "a.txt").write_bytes(b"theirs")
    with pytest.raises(ConflictError):
        editor.undo()
    assert editor.undo(["a.txt"]).files == 2
    assert files(root) == {**dict.fromkeys(PICTURES, b"picture"), **CONTENTS, "a.txt": b"theirs"}
    editor.redo()
    assert files(root) == {**after, "a.txt": b"theirs"}


def test_one_caption_written_over_anothers_only_when_both_were_seen(root: Path) -> None:
    editor = Editor(root)
    seen = editor.caption("a.png")
    (root / "a.txt").write_bytes(b"theirs")
    with pytest.raises(ConflictError):
        editor.write("a.png", Caption.parse("mine"), seen)
    assert (root / "a.txt").read_bytes() == b"theirs"
    editor.write("a.png", Caption.parse("mine"), seen, force=True)
    assert (root / "a.txt").read_bytes() == b"mine"
    editor.undo()
    assert (root / "a.txt").read_bytes() == b"theirs"


def test_two_editors_of_one_set(root: Path) -> None:
    one, other = Editor(root), Editor(root)
    stale = other.preview(make_edit("add", {"tags": "second"}))
    one.apply(one.preview(make_edit("add", {"tags": "first"})))
    with pytest.raises(ConflictError):
        other.apply(stale)
    assert other.follow() and not other.follow()
    with pytest.raises(DatasetError, match="have changed since this preview"):
        other.apply(stale)
    assert other.caption("a.png").tags[0] == "first"
    other.undo()
    assert one.follow()
    assert one.caption("a.png").encode() == CONTENTS["a.txt"]


def test_redo_survives_a_refused_edit_and_ends_with_a_new_one(root: Path) -> None:
    editor = Editor(root)
    editor.apply(editor.preview(make_edit("add", {"tags": "first"})))
    editor.undo()
    preview = editor.preview(make_edit("add", {"tags": "x"}))
    (root / "a.txt").write_bytes(b"outside")
    with pytest.raises(ConflictError):
        editor.apply(preview)
    (root / "a.txt").write_bytes(CONTENTS["a.txt"])
    editor.redo()
    editor.undo()
    editor.apply(editor.preview(make_edit("add", {"tags": "x"})))
    with pytest.raises(DatasetError, match="nothing to redo"):
        editor.redo()


def test_a_preview_writes_nothing_and_counts(root: Path) -> None:
    editor = Editor(root)
    before = files(root)
    preview = editor.preview(make_edit("remove", {"tags": "smile"}))
    assert (len(preview.altered), preview.total) == (3, 5)
    assert preview.gone() == {"smile": 3} and preview.added() == {}
    assert files(root) == before and not (root / ".trainer").exists()
    only = editor.preview(make_edit("remove", {"tags": "smile"}), ["a.png"])
    assert [one.path for one in only.altered] == ["a.txt"]


def test_a_bad_expression_is_refused_before_anything(root: Path) -> None:
    with pytest.raises(ConfigError, match="is not a regular expression"):
        make_edit("regex-tags", {"expression": "("})


def test_the_trash_takes_picture_and_caption_together_and_gives_them_back(root: Path) -> None:
    editor = Editor(root)
    before = files(root)
    editor.to_trash(["5_dog/b.jpg"])
    assert "5_dog/b.jpg" not in editor.items
    assert not (root / "5_dog" / "b.txt").exists()
    assert (root / ".trainer/trash/1/5_dog/b.txt").read_bytes() == CONTENTS["5_dog/b.txt"]
    editor.undo()
    assert files(root) == before and "5_dog/b.jpg" in editor.items
    (root / "orphan.txt").write_bytes(b"alone")
    editor.reload()
    assert editor.library.orphans == ("orphan.txt",)
    editor.to_trash([], ["orphan.txt"])
    assert files(root) == before


def test_pictures_that_share_a_caption(root: Path) -> None:
    (root / "a.jpg").write_bytes(b"picture")
    editor = Editor(root)
    preview = editor.preview(make_edit("add", {"tags": "new"}), ["a.jpg"])
    assert [(one.path, set(one.keys)) for one in preview.altered] == [("a.txt", {"a.jpg", "a.png"})]
    editor.to_trash(["a.jpg"])
    assert (root / "a.txt").exists()


def test_other_encodings_are_listed_and_converted_on_demand(root: Path) -> None:
    (root / "5_dog" / "d.txt").write_bytes("grüne Augen".encode("cp1252"))
    editor = Editor(root)
    before = files(root)
    assert list(editor.unreadable) == ["5_dog/d.txt"]
    editor.apply(editor.preview(make_edit("add", {"tags": "new"})))
    assert (root / "5_dog" / "d.txt").read_bytes() == before["5_dog/d.txt"]
    editor.convert_all()
    assert editor.caption("5_dog/d.png").text == "grüne Augen"
    editor.undo()
    editor.undo()
    assert files(root) == before
    with pytest.raises(DatasetError, match="does not read as utf-16"):
        editor.convert("5_dog/d.txt", "utf-16")


def test_a_snapshot_is_compared_and_restored(root: Path) -> None:
    editor = Editor(root)
    before = files(root)
    editor.take_snapshot("as  it was")
    with pytest.raises(DatasetError, match="a snapshot called 'as it was' already"):
        editor.take_snapshot("as it was")
    editor.apply(editor.preview(make_edit("remove", {"tags": "smile"})))
    editor.apply(editor.preview(make_edit("add", {"tags": "x"})))
    compared = editor.compare_snapshot("as it was")
    assert {one.path for one in compared.altered} == {*CONTENTS, "5_dog/e.txt"}
    editor.apply(compared)
    after = {name: data for name, data in files(root).items() if name != "5_dog/e.txt"}
    assert after == before  # a caption that did not exist then is an empty one now
    editor.undo()
    assert files(root) != before
    with pytest.raises(DatasetError, match="no snapshot called 'other'"):
        editor.compare_snapshot("other")


def test_a_journal_that_cannot_be_read_is_named(root: Path) -> None:
    (root / ".trainer").mkdir()
    (root / ".trainer" / "history.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(DatasetError, match=r"The history '.*history\.sqlite' cannot be used"):
        Editor(root)


def test_a_newer_journal_is_left_alone(root: Path) -> None:
    history = History(root)
    history.commit("x", [Change("new.txt", None, b"1")])
    with history.writing() as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(DatasetError, match="newer version of the trainer"):
        Editor(root)


def test_a_move_never_overwrites(root: Path) -> None:
    history = History(root)
    before = files(root)
    with pytest.raises(ConflictError):
        history.commit("x", [Move("a.txt", "5_dog/b.txt")])
    assert files(root) == before
    history.close()


def test_files_keep_their_permissions_and_links_their_place(root: Path) -> None:
    os.chmod(root / "a.txt", 0o640)
    (root / "real").mkdir()
    shutil.move(root / "5_dog" / "b.txt", root / "real" / "b.txt")
    (root / "5_dog" / "b.txt").symlink_to(root / "real" / "b.txt")
    editor = Editor(root)
    editor.apply(editor.preview(make_edit("add", {"tags": "new"})))
    assert (root / "a.txt").stat().st_mode & 0o777 == 0o640
    assert (root / "5_dog" / "b.txt").is_symlink()
    assert (root / "real" / "b.txt").read_bytes().startswith(b"new")


def test_a_file_is_neither_made_nor_removed_behind_a_link(root: Path) -> None:
    """It may be another set's. The user is told, and can leave the link as it is."""
    target, history = root.parent / "elsewhere.txt", History(root)
    (root / "n.txt").symlink_to(target)
    with pytest.raises(ConflictError, match=r"n\.txt"):
        history.commit("make", [Change("n.txt", None, b"zorb")])
    assert (root / "n.txt").is_symlink() and not target.exists()
    target.write_bytes(b"zorb")
    with pytest.raises(ConflictError, match=r"n\.txt"):
        history.commit("remove", [Change("n.txt", b"zorb", None)])
    history.commit("write", [Change("n.txt", b"zorb", b"cat")])
    history.undo()
    assert (root / "n.txt").is_symlink() and target.read_bytes() == b"zorb"


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_caption_of_two_names_is_changed_once(root: Path, link: Callable[..., None]) -> None:
    os.remove(root / "5_dog" / "b.txt")
    link(root / "a.txt", root / "5_dog" / "b.txt")
    editor, old = Editor(root), (root / "a.txt").read_bytes()
    editor.apply(editor.preview(make_edit("add", {"tags": "new"})))
    assert (root / "a.txt").read_bytes() == (root / "5_dog" / "b.txt").read_bytes() != old
    editor.undo()
    assert (root / "5_dog" / "b.txt").read_bytes() == old
    editor.redo()
    editor.undo()
    assert (root / "a.txt").read_bytes() == old and editor.outside_changes() == []
    history = History(root)
    with pytest.raises(ConflictError):  # two changes that are not the same
        history.commit("x", [Change("a.txt", old, b"one"), Change("5_dog/b.txt", old, b"two")])
    assert (root / "a.txt").read_bytes() == old


def test_undo_leaves_what_lies_behind_a_link_that_took_a_new_files_place(root: Path) -> None:
    target, history = root.parent / "elsewhere.txt", History(root)
    history.commit("make", [Change("n.txt", None, b"zorb"), Change("m.txt", None, b"zorb")])
    shutil.move(root / "n.txt", target)
    (root / "n.txt").symlink_to(target)
    with pytest.raises(ConflictError, match=r"n\.txt"):
        history.undo()
    assert target.read_bytes() == (root / "m.txt").read_bytes() == b"zorb"
    history.undo(leaving=["n.txt"])
    assert (root / "n.txt").read_bytes() == b"zorb" and not (root / "m.txt").exists()


def test_what_is_put_back_is_not_removed_behind_a_link(root: Path) -> None:
    target = root.parent / "elsewhere.txt"
    target.write_bytes(b"zorb")
    (root / "n.txt").symlink_to(target)
    assert file_moves.put_back(root, [Change("n.txt", None, b"zorb")], lambda left: None) == ["n.txt"]
    assert target.read_bytes() == b"zorb"


@pytest.fixture
def linked(root: Path) -> Path:
    """A set with a picture and its caption as links that lead on from where they lie, as git-annex makes them."""
    (root.parent / "store").mkdir()
    for name, data in (("f.png", b"picture"), ("f.txt", b"zorb")):
        (root.parent / "store" / name).write_bytes(data)
        (root / name).symlink_to(Path("..", "store", name))
    return root


def test_links_come_back_from_the_trash_where_they_lead_nowhere(linked: Path) -> None:
    before, editor = files(linked), Editor(linked)
    editor.to_trash(["f.png"])
    assert "f.png" not in editor.items and os.path.lexists(linked / ".trainer" / "trash" / "1" / "f.png")
    editor.undo()
    assert files(linked) == before and (linked / "f.png").is_symlink() and "f.png" in editor.items
    editor.redo()
    editor.undo()
    assert files(linked) == before


def test_a_link_comes_back_where_the_next_file_cannot_be_moved(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, editor, move = files(linked), Editor(linked), shutil.move

    def full(source: Path, target: Path) -> None:
        if source.name == "a.png":
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        move(source, target)

    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(DatasetError, match="nothing has been changed"):
        editor.to_trash(["f.png", "a.png"])
    assert files(linked) == before and (linked / "f.png").is_symlink()


def test_where_the_system_cannot_flush_everything_each_file_is_flushed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under Windows: before the journal says that it is done, however many there are, and on the way back too."""
    flushed, fsync = [0], os.fsync

    def counting(file: int) -> None:
        flushed[0] += stat.S_ISREG(os.fstat(file).st_mode)
        fsync(file)

    monkeypatch.setattr(os, "fsync", counting)
    monkeypatch.delattr(os, "sync")
    steps = [Change(f"{number}.txt", None, b"zorb") for number in range(file_moves.FEW + 8)]
    file_moves.apply_steps(root, steps, file_moves.checked(root, steps), lambda: None)
    changed = [Change(step.path, b"cat", step.after) for step in steps]
    assert flushed == [len(steps)] and file_moves.put_back(root, changed, lambda left: None) == []
    assert flushed == [2 * len(steps)]


def test_an_empty_file_that_appears_where_a_file_is_to_go_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a transaction that fails takes back is its own alone."""
    history, seen = History(root), file_moves.checked
    target = root / "5_dog" / "new.txt"

    def late(*given: object) -> list[file_moves.Signature]:
        found = seen(*given)  # type: ignore[arg-type]
        target.touch()
        return found

    monkeypatch.setattr("lib_trainer.dataset.history.checked", late)
    with pytest.raises(DatasetError):
        history.commit("x", [Move("a.txt", "5_dog/new.txt")])
    assert target.exists() and (root / "a.txt").read_bytes() == CONTENTS["a.txt"]


def test_a_file_that_an_entry_changes_twice_is_undone_and_redone(root: Path) -> None:
    history = History(root)
    first = history.commit("x", [Change("a.txt", CONTENTS["a.txt"], b"one"), Change("new.txt", None, b"1")])
    history.commit("x", [Change("a.txt", b"one", b"two, three"), Change("new.txt", b"1", b"2")], onto=first)
    before, editor = files(root), Editor(root)
    editor.undo()
    assert files(root) == {name: data for name, data in make_files().items() if name != "new.txt"}
    assert editor.caption("a.png") == Caption.read(CONTENTS["a.txt"], "a.txt")
    editor.redo()
    assert files(root) == before and editor.caption("a.png").text == "two, three"
    (root / "a.txt").write_bytes(b"one")  # what it was between the two is none of both ends
    with pytest.raises(ConflictError):
        editor.undo()
    assert files(root) == {**before, "a.txt": b"one"}


def make_files() -> dict[str, bytes]:
    return {**dict.fromkeys(PICTURES, b"picture"), **CONTENTS}


def test_an_edit_whose_end_the_journal_cannot_take_writes_nothing(root: Path) -> None:
    """What was undone before is forgotten with it, and that needs room, too."""
    history = History(root)
    history.commit("x", [Change("a.txt", CONTENTS["a.txt"], b"one")])
    history.undo()
    refuses = "CREATE TRIGGER no BEFORE DELETE ON entry WHEN OLD.undone BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
    with history.writing() as database:
        database.execute(refuses)
    before = files(root)
    with pytest.raises(DatasetError, match="free some space"):
        history.commit("y", [Change("a.txt", CONTENTS["a.txt"], b"two")])
    assert files(root) == before and [entry.label for entry in history.entries()] == ["x"]
    history.redo()
    assert (root / "a.txt").read_bytes() == b"one"
    history.close()


def test_a_write_protected_set_is_looked_at_and_not_changed(root: Path) -> None:
    editor = Editor(root)
    editor.apply(editor.preview(make_edit("add", {"tags": "new"})))
    editor.history.close()
    before = files(root)
    with write_protected(root, root / "5_dog", root / ".trainer"):
        editor = Editor(root)
        assert editor.caption("a.png").tags[0] == "new" and len(editor.history.entries()) == 1
        preview = editor.preview(make_edit("remove", {"tags": "smile"}))
        assert preview.altered
        for change in (lambda: editor.apply(preview), editor.undo):
            with pytest.raises(DatasetError, match="nothing has been changed"):
                change()
        editor.history.close()
    assert files(root) == before
    editor = Editor(root)
    editor.undo()
    assert files(root) == make_files()


def test_a_write_protected_set_with_half_an_edit_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process has left is put back first, or nothing is looked at."""
    before, history = files(root), History(root)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        own = SimpleNamespace(**vars(os) | {"ftruncate": lambda file, length: exec("raise KeyboardInterrupt")})
        killed.setattr(file_moves, "os", own)  # some versions of filelock call the system's, too
        history.commit("x", [Change("a.txt", CONTENTS["a.txt"], b"zorb, new")])
    history.close()
    assert files(root) != before
    with write_protected(root, root / ".trainer"), pytest.raises(DatasetError, match="cannot be changed"):
        Editor(root)
    Editor(root)
    assert files(root) == before


@pytest.mark.parametrize("restored", [True, False])
def test_a_set_whose_folder_was_replaced_goes_on(root: Path, restored: bool) -> None:
    """By its backup, or by another of the same name: while its journal stayed open, no edit was possible any more."""
    editor, facts = Editor(root), FactsCache(root)
    editor.apply(editor.preview(make_edit("add", {"tags": "new"})))
    facts.get(["a.png"])
    kept = root.with_name("kept")
    root.rename(kept)
    if restored:
        shutil.copytree(kept, root)
    else:
        make_set(root)
    editor.reload()
    editor.apply(editor.preview(make_edit("add", {"tags": "newer"})))
    facts.get(["a.png"])
    assert "newer" in editor.caption("a.png").tags and len(editor.history.entries()) == 1 + restored
    assert b"newer" in (root / "a.txt").read_bytes() and (root / ".trainer" / "thumbnails" / "cache.sqlite").exists()
    editor.undo()
    assert not restored or files(root)["a.txt"] == files(kept)["a.txt"]


def test_a_set_that_was_deleted_is_not_made_again(root: Path) -> None:
    editor, facts = Editor(root), FactsCache(root)
    preview = editor.preview(make_edit("add", {"tags": "new"}))
    shutil.rmtree(root)
    assert facts.get(["a.png"])["a.png"].reason
    with pytest.raises(DatasetError):
        editor.apply(preview)
    assert not root.exists()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux says which files are open")
def test_a_set_that_is_looked_at_holds_no_file_open(root: Path) -> None:
    """Under Windows its folder could not be moved, renamed or deleted."""
    editor, facts = Editor(root), FactsCache(root)
    editor.apply(editor.preview(make_edit("add", {"tags": "new"})))
    facts.get(["a.png"])
    assert editor.history.origins() and editor.follow() is False
    held = [os.readlink(one) for one in Path("/proc/self/fd").iterdir() if os.path.islink(one)]
    assert not [path for path in held if path.startswith(str(root))]


def test_nothing_to_do_is_a_sentence(root: Path) -> None:
    editor = Editor(root)
    for action, sentence in ((editor.undo, "nothing to undo"), (editor.redo, "nothing to redo")):
        with pytest.raises(DatasetError, match=sentence):
            action()
    with pytest.raises(DatasetError, match="Nothing would change"):
        editor.apply(editor.preview(make_edit("remove", {"tags": "absent"})))
    for folder, sentence in (("", "No folder"), (root / "no", "does not exist")):
        with pytest.raises(DatasetError, match=sentence):
            Editor(folder)
