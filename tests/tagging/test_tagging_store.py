"""The store: what is kept, by what, and what is said when it cannot."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest

from lib_trainer.dataset.history import REMOVED, Change
from lib_trainer.refusals import TaggerError
from lib_trainer.tagging.models.labels import Labels
from lib_trainer.tagging.scores.database import content_of, unwritten
from lib_trainer.tagging.scores.store import ScoreStore, removed_of
from lib_trainer.tagging.scores.table import sparse
from tests.protected import write_protected
from tests.tagging.conftest import record_origins

LABELS = Labels(("safe", "long_hair", ">_<", "rin"), (9, 0, 0, 4), (1, 2, 3, 4))


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    return ScoreStore(tmp_path)


def put(store: ScoreStore, name: str, scores: list[float], model: str = "f1", text: str = "", label: str = "wd") -> str:
    path = store.dataset / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or name)
    content = content_of(path.read_bytes())
    row = sparse(np.array(scores, np.float32))
    store.put(model, label, LABELS, [(path, path.stat(), content, row)])
    return content


def test_scores_come_back_exactly_with_spaces(store: ScoreStore) -> None:
    content = put(store, "sub/a.png", [0.5, 0.123456789, 0.009, 0.99])
    wanted = {"safe": 0.5, "long hair": float(np.float32(0.123456789)), "rin": float(np.float32(0.99))}
    assert store.scores(content, "f1") == store.scores(content, "wd") == wanted
    assert store.scores(content, "other") == store.scores("0", "f1") == {}
    assert store.best_scores(store.dataset / "sub" / "a.png") == wanted
    table = store.table("f1", [content, content])
    assert table.labels == LABELS and table.scores_of(1) == wanted
    assert store.rows_of("f1", [content])[0][0].tolist() == [0, 1, 3]


def test_the_best_of_several_models(store: ScoreStore) -> None:
    put(store, "a.png", [0.5, 0.1, 0.3, 0], "f1")
    put(store, "a.png", [0.4, 0.2, 0, 0.9], "f2", label="other")
    best = store.best_scores(store.dataset / "a.png")
    assert {tag: round(score, 3) for tag, score in best.items()} == {
        "safe": 0.5,
        "long hair": 0.2,
        ">_<": 0.3,
        "rin": 0.9,
    }
    assert store.models() == {"f1": "wd", "f2": "other"}


def test_a_renamed_picture_keeps_its_scores_and_a_changed_one_does_not(store: ScoreStore) -> None:
    content = put(store, "a.png", [0.5, 0, 0, 0])
    path = store.dataset / "a.png"
    moved = path.rename(store.dataset / "b.png")
    assert store.known_content([moved]) == {}, "its bytes have not been seen under this name"
    assert store.content_hash(moved) == content and store.best_scores(moved)
    moved.write_text("something else, longer")
    assert store.known_content([moved]) == {} and store.best_scores(moved) == {}


def test_what_has_not_changed_is_not_read(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    content = put(store, "a.png", [0.5, 0, 0, 0])
    monkeypatch.setattr(Path, "read_bytes", None)
    assert store.content_hash(store.dataset / "a.png") == content


def test_origins_of_an_earlier_version_and_of_the_history(store: ScoreStore) -> None:
    picture = store.dataset / "a.png"
    assert store.origins(picture) == {}
    record_origins(store, [(picture, {"long_hair": "wd 0.9000", "crown": "hand"})])
    assert store.origins(picture) == {"long hair": "wd 0.9000", "crown": "hand"}
    said = {"a.txt": {"long hair": "", "hat": "wd 0.4000", "crown": REMOVED}}
    store.history.commit("tags", [Change("a.txt", None, b"hat, crown")], origins=said)
    assert store.origins(picture) == {"hat": "wd 0.4000", "crown": "hand"}, "what was removed and is there is by hand"
    recorded = store.said_of([picture], {picture: picture.with_suffix(".txt")})
    assert recorded == {"a.png": said["a.txt"]}
    assert removed_of(recorded["a.png"], {"hat"}) == {"crown"}
    assert removed_of({"hat": "wd 0.4"}, {"other"}) == {"hat"} and removed_of({"hat": "wd 0.4"}, set()) == set()
    store.history.undo()
    assert store.origins(picture) == {"long hair": "wd 0.9000", "crown": "hand"}


def test_verdicts(store: ScoreStore) -> None:
    store.decide("c", "Long_Hair", True)
    store.decide("c", "hat", False)
    assert store.verdicts() == {("c", "long hair"): True, ("c", "hat"): False}
    store.decide("c", "long hair", None)
    assert store.verdicts() == {("c", "hat"): False}


def test_a_transaction_is_all_or_nothing(store: ScoreStore) -> None:
    store.decide("c", "hat", True)
    with pytest.raises(RuntimeError), store._writing() as base:
        base.execute("DELETE FROM verdicts")
        raise RuntimeError("in the middle")
    assert store.verdicts() == {("c", "hat"): True}


def test_another_process_reads_while_one_writes(store: ScoreStore) -> None:
    put(store, "a.png", [0.5, 0, 0, 0])
    with store._writing(), ScoreStore(store.dataset) as other:
        assert other.best_scores(store.dataset / "a.png") == {"safe": 0.5}


def test_any_thread_may_use_it(store: ScoreStore) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                put(store, f"{number}-{turn}.png", [0.5, 0, 0, 0])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(store.scored("f1")) == 40


def test_a_data_set_that_was_never_tagged_is_left_alone(tmp_path: Path) -> None:
    with ScoreStore(tmp_path, create=False) as store:
        assert store.best_scores(tmp_path / "a.png") == store.origins(tmp_path / "a.png") == store.models() == {}
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_a_sentence_and_stays(tmp_path: Path) -> None:
    file = tmp_path / ".trainer" / "scores.sqlite"
    file.parent.mkdir()
    file.write_bytes(b"not a database at all" * 100)
    with pytest.raises(TaggerError, match=r"scores.sqlite' is damaged: move it away"):
        ScoreStore(tmp_path)
    assert file.read_bytes().startswith(b"not a database")


def test_a_file_of_a_newer_version_is_refused(store: ScoreStore) -> None:
    store.close()
    base = sqlite3.connect(store.path)
    base.execute("PRAGMA user_version=99")
    base.close()
    with pytest.raises(TaggerError, match="newer version"):
        ScoreStore(store.dataset)


def test_a_full_disk_is_a_sentence_and_what_was_kept_stays(store: ScoreStore) -> None:
    content = put(store, "a.png", [0.5, 0, 0, 0])
    pages = store._base.execute("PRAGMA page_count").fetchone()[0]
    store._base.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(TaggerError, match="The disk is full"):
        record_origins(store, [(store.dataset / "a.png", {f"tag {n}": "wd 0.5" for n in range(5000)})])
    assert store.scores(content, "f1") == {"safe": 0.5}
    assert store.origins(store.dataset / "a.png") == {}


def test_a_folder_that_is_not_writable_is_a_sentence(tmp_path: Path) -> None:
    with write_protected(tmp_path), pytest.raises(TaggerError, match="check the folder's permissions"):
        ScoreStore(tmp_path)


@pytest.mark.parametrize("name", ["scored", "é ? # %20"])
def test_what_is_known_of_a_write_protected_folder_can_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with ScoreStore(tmp_path / name) as store:
        content = put(store, "a.png", [0.5, 0, 0, 0])
        record_origins(store, [(store.dataset / "a.png", {"safe": "wd 0.5"})])
    hidden = store.path.parent
    with write_protected(tmp_path / name, hidden), ScoreStore(tmp_path / name, create=False) as store:
        assert store.scores(content, "f1") == {"safe": 0.5}
        assert store.origins(store.dataset / "a.png") == {"safe": "wd 0.5"}
        with pytest.raises(TaggerError):
            store.decide(content, "safe", True)


def test_a_file_in_the_folders_place_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / ".trainer").write_text("")
    with pytest.raises(TaggerError, match="cannot be used"):
        ScoreStore(tmp_path)


@pytest.mark.parametrize("path", [r"C:\sets\a b\x.sqlite", r"\\server\share\a b\x.sqlite"])
def test_a_file_of_windows_is_an_address_that_sqlite_takes(path: str) -> None:
    """Of a share it took the server for the host of an address, which it does not know."""
    address = unwritten(PureWindowsPath(path))
    assert address.startswith("file:///") and address.endswith("a%20b/x.sqlite?immutable=1")
    with pytest.raises(sqlite3.OperationalError, match="unable to open database file"):  # there is none
        sqlite3.connect(address, uri=True)
