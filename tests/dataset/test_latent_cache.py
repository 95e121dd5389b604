"""What is kept encoded: counted, removed when nothing has read it for a while, and never from under a run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer.cli import main as cli
from lib_trainer.dataset import latent_cache
from lib_trainer.dataset.latent_cache import DAY, READERS, Amount, contents, prune, reading, shown_bytes
from lib_trainer.dataset.latent_store import DiskStore
from lib_trainer.refusals import ConfigError, DatasetError

SHAPE = (8, 4, 4)


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    """Four of them, read 0, 10, 20 and 30 days ago; other files beside them are nobody's."""
    store, found = DiskStore(tmp_path), [f"{index:064x}" for index in range(4)]
    for index, key in enumerate(found):
        store.put(key, torch.full(SHAPE, float(index)))
        age = time.time() - 10 * index * DAY - 60
        os.utime(store.path(key), (age, age))
    (tmp_path / "notes.safetensors").write_bytes(b"mine")
    (tmp_path / "class").mkdir()
    return found


def left(folder: Path) -> list[int]:
    return sorted(int(path.stem, 16) for path in folder.glob("0*.safetensors"))


def test_what_is_there_and_what_is_unused(tmp_path: Path, keys: list[str]) -> None:
    size = DiskStore(tmp_path).path(keys[0]).stat().st_size
    found = contents(tmp_path, 15)
    assert (found.all, found.unused) == (Amount(4, 4 * size), Amount(2, 2 * size))
    assert prune(tmp_path, 15) == found.unused and left(tmp_path) == [0, 1]
    assert prune(tmp_path, 0).pictures == 2 and left(tmp_path) == []
    assert (tmp_path / "notes.safetensors").read_bytes() == b"mine" and (tmp_path / "class").is_dir()
    assert contents(tmp_path / "nowhere") == latent_cache.Contents(Amount(), Amount())
    assert prune(tmp_path / "nowhere") == Amount()


def test_a_file_that_is_read_is_a_used_one(tmp_path: Path, keys: list[str]) -> None:
    with reading(tmp_path) as since:
        store = DiskStore(tmp_path, since)
        assert store.get(keys[3]) is not None
        assert DiskStore(tmp_path).get(keys[2]) is not None, "who only looks changes nothing"
        date = store.path(keys[3]).stat().st_mtime_ns
        assert store.get(keys[3]) is not None
        assert store.path(keys[3]).stat().st_mtime_ns == date, "touched once"
    assert contents(tmp_path, 5).unused.pictures == 2


def test_what_a_run_reads_or_writes_stays(tmp_path: Path, keys: list[str]) -> None:
    with reading(tmp_path) as since:
        store = DiskStore(tmp_path, since)
        assert store.get(keys[1]) is not None
        store.put(f"{9:064x}", torch.zeros(SHAPE))
        with reading(tmp_path) as later:  # another run, which began after what the first one has read
            assert prune(tmp_path, 0).pictures == 3
            assert left(tmp_path) == [1, 9] and store.get(keys[1]) is not None and later >= since
        assert prune(tmp_path, 0).pictures == 0
    assert prune(tmp_path, 0).pictures == 2 and list((tmp_path / READERS).iterdir()) == []


def test_a_run_of_another_process_counts_until_it_is_dead(tmp_path: Path, keys: list[str]) -> None:
    code = (
        "import sys; from pathlib import Path; from lib_trainer.dataset.latent_cache import reading\n"
        "from lib_trainer.dataset.latent_store import DiskStore\n"
        "with reading(Path(sys.argv[1])) as since:\n"
        "    assert DiskStore(Path(sys.argv[1]), since).get(sys.argv[2]) is not None\n"
        "    print('read', flush=True); sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), keys[2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "read\n"
        assert prune(tmp_path, 0).pictures == 3 and left(tmp_path) == [2]
    finally:
        child.kill()
        child.communicate()
    assert len(list((tmp_path / READERS).iterdir())) == 1, "killed, it has left its mark"
    assert prune(tmp_path, 0).pictures == 1 and list((tmp_path / READERS).iterdir()) == []


def test_what_is_touched_while_it_is_removed_comes_back(
    tmp_path: Path, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at its date and its removal a run may come."""
    real, store = os.replace, DiskStore(tmp_path)

    def replace(source: Any, target: Any) -> None:
        if Path(source) == store.path(keys[1]):
            os.utime(source)
        real(source, target)

    monkeypatch.setattr(latent_cache.os, "replace", replace)
    assert prune(tmp_path, 5).pictures == 2 and left(tmp_path) == [0, 1]
    assert not list(tmp_path.glob(".trainer-*"))


def test_what_killed_processes_left_half_done_is_swept(tmp_path: Path, keys: list[str]) -> None:
    old, new = tmp_path / ".trainer-old.tmp", tmp_path / ".trainer-new.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * DAY,) * 2)
    prune(tmp_path, 100)
    assert not old.exists() and new.exists() and left(tmp_path) == [0, 1, 2, 3]


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DatasetError, match="cannot be kept"), reading(tmp_path / "file"):
        raise AssertionError


def test_the_command(tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path
    assert cli.main(["cache", str(root), "--days", "15"]) == cli.DONE
    said = capsys.readouterr().out
    assert f"4 encoded pictures are kept in {root}" in said and "No run has read 2 of them" in said
    assert left(root) == [0, 1, 2, 3]
    assert cli.main(["cache", str(root), "--days", "15", "--remove"]) == cli.DONE
    assert "2 encoded pictures removed" in capsys.readouterr().out and left(root) == [0, 1]
    assert cli.main(["cache", str(root), "--days", "-1", "--remove"]) == cli.BAD_JOB
    assert "is no number of days" in capsys.readouterr().err and left(root) == [0, 1]


@pytest.mark.parametrize("days", ["", "soon", -1, "nan", 1e9])
def test_no_number_of_days(days: Any) -> None:
    with pytest.raises(ConfigError):
        latent_cache.checked_days(days)


@pytest.mark.parametrize(("count", "said"), [(0, "0 B"), (2048, "2 KiB"), (5 * 2**20, "5 MiB"), (3 * 2**30, "3.0 GiB")])
def test_bytes_as_people_read_them(count: int, said: str) -> None:
    assert shown_bytes(Amount(1, count)) == said
