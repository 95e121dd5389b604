"""Downloads from a server on this machine that answers as the hub does."""

from __future__ import annotations

import errno
import hashlib
import http.client
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from lib_trainer.refusals import TaggerError
from lib_trainer.tagging.models import download as module
from lib_trainer.tagging.models.download import Stopped, download
from lib_trainer.tagging.models.folders import at
from lib_trainer.work.events import Phase
from tests.tagging.hub import LARGE, MODEL, SMALL, Hub
from tests.tagging.hub import hub as hub


def gets(hub: Hub) -> list[tuple[str, str]]:
    return [
        (path.rsplit("/", 1)[-1], asked) for verb, path, asked in hub.asked if verb == "GET" and "storage" not in path
    ]


def test_both_files_arrive_whole_with_progress(hub: Hub, tmp_path: Path) -> None:
    seen: list[Phase] = []
    folder = download(MODEL, tmp_path, listener=seen.append)
    assert folder == tmp_path / MODEL.name
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == hub.files, "and no remains"
    total = len(LARGE) + len(SMALL)
    done = [progress.done for progress in seen]
    assert done == sorted(done) and done[-1] == total == seen[0].total and len(done) > 10
    assert str(seen[-1].name) == "Downloading model.onnx", (
        "the large one last: until then the folder is not taken for whole"
    )
    assert at(folder).problem is None


def test_what_is_known_by_its_hash_is_that_file_whatever_the_server_says(hub: Hub, tmp_path: Path) -> None:
    """A mirror that names another hash is refused unread; one that names none is found out by the file."""
    right = {name: hashlib.sha256(data).hexdigest() for name, data in hub.files.items()}
    folder = download(replace(MODEL, hashes=right), tmp_path / "right")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == hub.files
    hub.asked.clear()
    for name in ("model.onnx", "selected_tags.csv"):
        other = replace(MODEL, hashes={**right, name: "0" * 64})
        with pytest.raises(TaggerError, match=r"is another file than the one|was damaged on the way"):
            download(other, tmp_path / name)
        assert not (tmp_path / name / MODEL.name / name).exists()
    hub.hashes = False
    with pytest.raises(TaggerError, match="was damaged on the way"):
        download(replace(MODEL, hashes={**right, "model.onnx": "0" * 64}), tmp_path / "silent")
    assert not (tmp_path / "silent" / MODEL.name / "model.onnx").exists()


def test_what_is_there_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    download(MODEL, tmp_path)
    hub.asked.clear()
    download(MODEL, tmp_path)
    assert gets(hub) == []
    (tmp_path / MODEL.name / "selected_tags.csv").write_bytes(SMALL.replace(b"hair", b"hare"))
    download(MODEL, tmp_path)
    assert [name for name, _ in gets(hub)] == ["selected_tags.csv"], "of the same size, and damaged"
    assert (tmp_path / MODEL.name / "selected_tags.csv").read_bytes() == SMALL


def test_an_interrupted_download_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.cut = 3_000_000
    with pytest.raises(TaggerError, match=r"127.0.0.1:\d+ cannot be reached .* What was fetched is kept"):
        download(MODEL, tmp_path)
    assert not (tmp_path / MODEL.name / "model.onnx").exists()
    assert str(at(tmp_path / MODEL.name).problem).startswith("model.onnx is missing")
    hub.cut = 0
    hub.asked.clear()
    folder = download(MODEL, tmp_path)
    assert gets(hub) == [("model.onnx", "bytes=3000000-")]
    assert (folder / "model.onnx").read_bytes() == LARGE
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "selected_tags.csv"]


def test_stop_keeps_what_was_fetched(hub: Hub, tmp_path: Path) -> None:
    seen: list[int] = []
    with pytest.raises(Stopped, match="goes on from there the next time"):
        download(MODEL, tmp_path, stop=lambda: len(seen) > 4, listener=lambda progress: seen.append(progress.done))
    hub.asked.clear()
    folder = download(MODEL, tmp_path)
    assert gets(hub)[0][1].startswith("bytes=") and (folder / "model.onnx").read_bytes() == LARGE


def test_a_server_without_ranges_sends_all_of_it_again(hub: Hub, tmp_path: Path) -> None:
    hub.cut, hub.ranges = 3_000_000, False
    with pytest.raises(TaggerError):
        download(MODEL, tmp_path)
    hub.cut = 0
    assert (download(MODEL, tmp_path) / "model.onnx").read_bytes() == LARGE


def test_the_rest_of_another_version_is_not_glued_on(hub: Hub, tmp_path: Path) -> None:
    hub.cut = 3_000_000
    with pytest.raises(TaggerError):
        download(MODEL, tmp_path)
    hub.cut = 0
    hub.files["model.onnx"] = bytes(reversed(LARGE))
    assert (download(MODEL, tmp_path) / "model.onnx").read_bytes() == bytes(reversed(LARGE))


def test_damage_on_the_way_is_noticed(hub: Hub, tmp_path: Path) -> None:
    hub.spoil = 20
    with pytest.raises(TaggerError, match="was damaged on the way"):
        download(MODEL, tmp_path)
    assert [path.name for path in (tmp_path / MODEL.name).iterdir() if not path.name.endswith(".json")] == []
    hub.spoil = 0
    assert (download(MODEL, tmp_path) / "model.onnx").read_bytes() == LARGE


def test_a_mirror_without_hashes_is_checked_by_size(hub: Hub, tmp_path: Path) -> None:
    hub.hashes = False
    assert (download(MODEL, tmp_path) / "model.onnx").read_bytes() == LARGE


def test_what_does_not_exist_is_a_sentence(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.onnx"]
    with pytest.raises(TaggerError, match=r"resolve/v2.0/model.onnx does not exist \(404\)"):
        download(MODEL, tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing was made"


def test_no_connection_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(TaggerError, match=r"127.0.0.1:9 cannot be reached .* set HF_ENDPOINT to a mirror"):
        download(MODEL, tmp_path)


def test_a_disk_without_room_is_told_before(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPARE_BYTES", 1 << 60)
    with pytest.raises(TaggerError, match=r"needs 5 MiB in .* MiB are free: free some space"):
        download(MODEL, tmp_path)
    assert gets(hub) == []


def test_the_hub_is_asked_where_no_mirror_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert module.endpoint() == "https://huggingface.co"


def test_a_mirror_that_is_named_without_its_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("hf-mirror.com", " https://hf-mirror.com/ ", "hf-mirror.com/"):
        monkeypatch.setenv("HF_ENDPOINT", given)
        assert module.endpoint() == "https://hf-mirror.com"


@pytest.mark.parametrize("error", [OSError(errno.EHOSTUNREACH, "No route to host"), ssl.SSLError("bad record mac")])
def test_a_network_that_breaks_down_is_not_taken_for_the_disk(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    read = http.client.HTTPResponse.read
    whole: list[bytes] = []

    def failing(self: http.client.HTTPResponse, amount: int | None = None) -> bytes:
        if whole:
            raise error
        whole.append(block := read(self, 1000))
        return block

    monkeypatch.setattr(http.client.HTTPResponse, "read", failing)
    with pytest.raises(TaggerError, match=r"127.0.0.1:\d+ cannot be reached .*What was fetched is kept"):
        download(MODEL, tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    assert (download(MODEL, tmp_path) / "model.onnx").read_bytes() == LARGE
