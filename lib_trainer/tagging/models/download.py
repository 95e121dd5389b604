"""Fetching a known model from the hub: resumable, checked, and whole or absent.

Plain HTTPS of the standard library: `huggingface_hub` checks no content hash, reads HF_ENDPOINT only when it is
imported, and reports to a terminal. The protocol is the hub's: `<endpoint>/<repo>/resolve/<revision>/<file>` answers
a HEAD with the file's size and its SHA-256 (`X-Linked-Etag`, large files) or git's blob hash (`ETag`, small ones), and
a GET with `Range` goes on where an earlier one ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from lib_trainer.refusals import Sentence, TaggerError
from lib_trainer.tagging.models.registry import KINDS, KnownModel
from lib_trainer.work.events import Phase
from lib_trainer.work.meter import Meter

HUB = "https://huggingface.co"
BLOCK = 1 << 20
TIMEOUT_SECONDS = 30.0
SPARE_BYTES = 64 << 20
"""Room on the disk that is left after the download."""

REDIRECTS = 5
BYTES = "bytes"


class Stopped(TaggerError):
    """The user has stopped a download; what was fetched is kept for the next time."""


@dataclass(frozen=True)
class Remote:
    """What the hub says of a file. `digest`: SHA-256 or git's SHA-1 in hexadecimal; empty where it names none."""

    url: str
    size: int
    digest: str


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def endpoint() -> str:
    """HF_ENDPOINT, or the hub itself. `hf-mirror.com` means https."""
    address = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or HUB
    return address if "://" in address else f"https://{address}"


def download(
    model: KnownModel,
    folder: Path,
    *,
    stop: Callable[[], bool] = lambda: False,
    listener: Callable[[Phase], None] = lambda phase: None,
    files: tuple[str, ...] = (),
) -> Path:
    """Fetch a model into `folder`/<name> and return that folder. What is there already and whole is not fetched again.

    `files`: those of the model's kind by default. They are written as `<file>.part`, checked against size and hash, and
    then renamed. Raises `TaggerError` in one sentence (no connection, no such file, a full disk, damaged on the way),
    `Stopped` when `stop` answers yes.
    """
    target = folder / model.name
    base = f"{endpoint()}/{model.repo}/resolve/{urllib.parse.quote(model.revision, safe='')}"
    remotes = {name: _known(_ask(f"{base}/{name}"), model, name) for name in files or KINDS[model.kind].files}
    missing = {n: r for n, r in remotes.items() if not _is_whole(target / n, r)}
    try:
        target.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target).free
    except OSError as error:
        raise TaggerError("download.no_folder", folder=target, reason=error) from error
    needed = sum(remote.size - _fetched(target / name, remote) for name, remote in missing.items())
    if needed + SPARE_BYTES > free:
        raise TaggerError("download.no_room", model=model.name, needed=_mib(needed), folder=target, free=_mib(free))
    total = sum(remote.size for remote in remotes.values())
    done = total - sum(remote.size for remote in missing.values())
    meter = Meter()
    for name, remote in sorted(missing.items(), key=lambda item: item[1].size):  # the large one last
        before = done

        def tell(count: int, name: str = name, before: int = before) -> None:
            listener(meter.phase(Sentence("phase.downloading", name=name), before + count, total, BYTES))

        _fetch(remote, target / name, stop, tell)
        done += remote.size
    return target


def _known(remote: Remote, model: KnownModel, name: str) -> Remote:
    """With the hash that is known here, which no server can change. Raises `TaggerError` where it names another."""
    digest = model.hashes.get(name, "")
    if digest and len(remote.digest) == 64 and remote.digest != digest:
        raise TaggerError("download.another_file", url=remote.url, model=model.name)
    return replace(remote, digest=digest) if digest else remote


def _ask(url: str) -> Remote:
    """A HEAD that follows the hub's own redirects and stops at the one to its storage, which carries the facts."""
    opener = urllib.request.build_opener(_NoRedirect)
    for _ in range(REDIRECTS):
        request = urllib.request.Request(url, method="HEAD", headers={"Accept-Encoding": "identity"})
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return _remote(url, answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                place = error.headers.get("Location")
                if error.code not in (301, 302, 303, 307, 308) or not place:
                    raise _refused(url, error) from None
                if error.headers.get("X-Linked-Size"):
                    return _remote(url, error.headers)
                url = urllib.parse.urljoin(url, place)
        except (OSError, HTTPException) as error:
            raise TaggerError("download.unreachable", host=_host(url), reason=_why(error)) from error
    raise TaggerError("download.circles", url=url)


def _remote(url: str, headers: Message) -> Remote:
    size = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
    tag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"').lower()
    if not size.isdigit():
        raise TaggerError("download.no_size", url=url)
    return Remote(url, int(size), tag if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", tag) else "")


def _fetch(remote: Remote, path: Path, stop: Callable[[], bool], tell: Callable[[int], None]) -> None:
    part, note = _part(path), _part(path).with_suffix(".json")
    done = _fetched(path, remote)
    try:
        note.write_text(json.dumps(asdict(remote)), encoding="utf-8")
        if done < remote.size or not part.exists():
            _receive(remote, part, done, stop, tell)
        if not _is_whole(part, remote):
            size = part.stat().st_size
            part.unlink()
            raise TaggerError("download.damaged", name=path.name, size=size, expected=remote.size)
        os.replace(part, path)
        note.unlink(missing_ok=True)
    except (HTTPException, urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise TaggerError("download.interrupted", host=_host(remote.url), reason=_why(error)) from error
    except OSError as error:
        raise TaggerError("download.not_written", path=part, reason=error) from error


def _receive(remote: Remote, part: Path, done: int, stop: Callable[[], bool], tell: Callable[[int], None]) -> None:
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={done}-"} if done else {})}
    request = urllib.request.Request(remote.url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        if done and answer.status != 206:  # this server does not know ranges
            done = 0
        with part.open("r+b" if done else "wb") as file:
            file.seek(done)
            for block in _blocks(answer):
                if done + len(block) > remote.size:
                    raise HTTPException(str(Sentence("download.too_much")))
                file.write(block)
                done += len(block)
                tell(done)
                if stop():
                    raise Stopped("download.stopped", name=part.stem)
            file.truncate()
    if done < remote.size:
        raise HTTPException(str(Sentence("download.cut", done=_mib(done), all=_mib(remote.size))))


def _blocks(answer: HTTPResponse) -> Iterator[bytes]:
    """What comes, piece by piece. Raises `HTTPException` for all that the network does to it: TLS and lost routes come
    as an `OSError` like the disk's."""
    while True:
        try:
            block = answer.read(BLOCK)
        except OSError as error:
            raise HTTPException(str(error)) from error
        if not block:
            return
        yield block


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _fetched(path: Path, remote: Remote) -> int:
    """How many bytes of this very file an earlier download has left."""
    part = _part(path)
    try:
        known = json.loads(part.with_suffix(".json").read_text("utf-8"))
        size = part.stat().st_size
    except (OSError, ValueError):
        return 0
    same = (known.get("size"), known.get("digest")) == (remote.size, remote.digest) and bool(remote.digest)
    return size if same and size <= remote.size else 0


def _is_whole(path: Path, remote: Remote) -> bool:
    """Size and hash; the size alone where the server names no hash."""
    try:
        if path.stat().st_size != remote.size:
            return False
        if not remote.digest:
            return True
        digest = hashlib.sha256() if len(remote.digest) == 64 else hashlib.sha1(b"blob %d\0" % remote.size)
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError:
        return False
    return digest.hexdigest() == remote.digest


def _refused(url: str, error: urllib.error.HTTPError) -> TaggerError:
    if error.code == 404:
        return TaggerError("download.not_found", url=url)
    return TaggerError("download.refused", url=url, code=error.code, reason=error.reason)


def _why(error: Exception) -> object:
    return getattr(error, "reason", None) or error


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


def _mib(count: int) -> int:
    return -(-count // (1 << 20))
