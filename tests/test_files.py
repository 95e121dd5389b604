"""Files are whole or absent."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from lib_trainer.files import TRASH, by_stem, found, to_trash, whole_file, write_atomically


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".tmp")


def full(*args: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_writes_and_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    write_atomically(path, b"data")
    assert path.read_bytes() == b"data"
    assert leftovers(path.parent) == []


def test_replaces_by_default(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


NO_LINKS = pytest.param(False, marks=pytest.mark.skipif(os.name == "nt", reason="Windows renames without links"))


@pytest.mark.parametrize("links", [True, NO_LINKS])
def test_keeps_an_existing_file_where_it_must_not_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Also on a file system without links."""

    def unsupported(*args: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", unsupported)
    path = tmp_path / "a.bin"
    write_atomically(path, b"old", overwrite=False)
    with pytest.raises(FileExistsError):
        write_atomically(path, b"new", overwrite=False)
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, where, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.bin", b"new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such bits")
def test_the_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.write_bytes(b"")
    write_atomically(ours, b"")
    assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_the_process_wide_umask_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(mask: int) -> int:
        raise AssertionError("another thread's files would get this one")

    monkeypatch.setattr(os, "umask", touched)
    write_atomically(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"new"


@pytest.mark.skipif(os.name == "nt", reason="needs limits of a process")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_that_is_full_in_the_middle_of_a_file(tmp_path: Path, *, overwrite: bool) -> None:
    """The system itself refuses the second block."""
    import resource

    (tmp_path / "old.bin").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match=r".+"):
            write_atomically(tmp_path / ("old.bin" if overwrite else "new.bin"), b"x" * (1 << 20), overwrite=overwrite)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["old.bin"]
    assert (tmp_path / "old.bin").read_bytes() == b"old"


def test_a_file_is_written_piece_by_piece_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with whole_file(path) as file:
        file.write(b"one")
        assert not path.exists()
        file.write(b"two")
    assert path.read_bytes() == b"onetwo"
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert [one.name for one in tmp_path.iterdir()] == ["a.bin"] and path.read_bytes() == b"onetwo"


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(b"old")
    (tmp_path / "link.bin").symlink_to("real.bin")
    write_atomically(tmp_path / "link.bin", b"new")
    assert (tmp_path / "link.bin").is_symlink() and (tmp_path / "real.bin").read_bytes() == b"new"


@pytest.mark.skipif(os.name == "nt", reason="Windows takes fewer bytes")
def test_the_longest_name_that_a_folder_takes(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 125 + ".data")
    write_atomically(path, b"new", overwrite=False)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_names_that_look_the_same_are_found(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "é ü.txt")
    folder = tmp_path / unicodedata.normalize("NFD", "ñ")
    folder.mkdir()
    (folder / apart).write_bytes(b"here")
    typed = tmp_path / "ñ" / "é ü.txt"
    assert found(typed).read_bytes() == b"here"
    assert found(folder / apart) == folder / apart
    for nowhere in (tmp_path / "gone", tmp_path / ("x" * 5000), Path(f"{tmp_path}/a\0b"), Path("")):
        assert found(nowhere) == nowhere
    assert by_stem(folder, [".TXT"]) == {"é ü": folder / apart}
    assert by_stem(tmp_path / "gone", [".txt"]) == {}


def test_what_is_replaced_is_kept_in_a_trash(tmp_path: Path) -> None:
    for _ in range(2):  # in the same second
        for name in ("a.bin", "b.bin"):
            (tmp_path / name).write_bytes(name.encode())
        kept = to_trash([tmp_path / "a.bin", tmp_path / "b.bin"])
        assert [path.read_bytes() for path in kept] == [b"a.bin", b"b.bin"]
        assert all(path.name.endswith(".bin.old") and TRASH in path.parts for path in kept)
    assert [one.name for one in tmp_path.iterdir()] == [TRASH]
    assert len([path for path in (tmp_path / TRASH).rglob("*") if path.is_file()]) == 4
    (tmp_path / "a.bin").write_bytes(b"a")
    with pytest.raises(OSError, match="gone"):
        to_trash([tmp_path / "a.bin", tmp_path / "gone"])
    assert (tmp_path / "a.bin").read_bytes() == b"a"
