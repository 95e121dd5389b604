"""What is known of each picture: size, how it is stored, a small copy, and fingerprints that find duplicates.

Pictures are decoded once, when somebody looks at them or asks for a check; the answers are kept in
`<set>/.trainer/thumbnails/cache.sqlite` under the file's time and size, so that a changed picture is looked at again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from lib_trainer.dataset.history import HIDDEN
from lib_trainer.dataset.pictures import PictureError, load_picture, read_header

SIDE = 256
"""Longest side of a small copy in pixels."""
WORKERS = 4
BATCH = 32
COLUMNS = (
    "stamp TEXT, width INT, height INT, turned INT, transparent INT, reason TEXT, prints BLOB, small BLOB, animated INT"
)

Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PictureFacts:
    """`size`: (width, height) upright, None where the file cannot be read, and then `reason` says why.

    `small`: a JPEG of at most `SIDE` pixels. `prints`: 16 bytes of the file's own hash, 8 bytes of difference hash, 48
    bytes of mean colours (4×4 RGB).
    """

    size: tuple[int, int] | None
    turned: bool = False
    transparent: bool = False
    reason: str = ""
    prints: bytes = b""
    small: bytes = b""
    animated: bool = False

    @property
    def digest(self) -> bytes:
        return self.prints[:16]


def look_at(path: Path) -> PictureFacts:
    """Decode a picture and say what it is like; what is wrong with it is part of the answer."""
    try:
        data = path.read_bytes()
        header = read_header(path, data)
        picture = load_picture(path, data)
    except PictureError as error:
        return PictureFacts(None, reason=str(error.reason))
    except OSError as error:
        return PictureFacts(None, reason=error.strerror or str(error))
    small = picture.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    prints = hashlib.blake2b(data, digest_size=16).digest() + difference_hash(small) + mean_colours(small)
    return PictureFacts(header.size, header.turned, header.transparent, "", prints, buffer.getvalue(), header.animated)


def difference_hash(picture: Image.Image) -> bytes:
    """64 bits, one for each of 8×8 places: whether it is darker than its right neighbour (D. Hensley's dHash)."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    # a small step is noise of the encoder: flat places give zeros, whatever they are stored as
    return bytes(np.packbits(grey[:, 1:] > grey[:, :-1] + 2).tobytes())


def mean_colours(picture: Image.Image) -> bytes:
    """48 bytes: RGB means of 4×4 fields."""
    return bytes(picture.convert("RGB").resize((4, 4), Image.Resampling.BOX).tobytes())


class FactsCache:
    """The facts of one set's pictures, by relative path. Safe for several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._sizes: dict[tuple[str, str], tuple[int, int] | None] = {}

    def size(self, key: str) -> tuple[int, int] | None:
        """(width, height) from the header alone; None where it cannot be read."""
        stamp = self._stamp(key)
        if (key, stamp) not in self._sizes:
            try:
                self._sizes[key, stamp] = read_header(self.root / key).size
            except PictureError:
                self._sizes[key, stamp] = None
        return self._sizes[key, stamp]

    def get(
        self,
        keys: Sequence[str],
        progress: Callable[[int, int], None] = lambda done, total: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> dict[str, PictureFacts]:
        """The facts of these pictures; those not known yet are decoded. Stopped early, it answers with what it has."""
        stamps = {key: self._stamp(key) for key in keys}
        found = self._known(stamps)
        missing = [key for key in keys if key not in found]
        with ThreadPoolExecutor(WORKERS) as pool:
            for start in range(0, len(missing), BATCH):
                if stopping():
                    break
                progress(len(found), len(stamps))
                batch = missing[start : start + BATCH]
                fresh = dict(zip(batch, pool.map(look_at, [self.root / key for key in batch]), strict=True))
                self._keep(fresh, stamps)
                found.update(fresh)
        progress(len(found), len(stamps))
        return found

    def _stamp(self, key: str) -> str:
        try:
            status = os.stat(self.root / key)
        except OSError:
            return ""
        return f"{status.st_mtime_ns}:{status.st_size}"

    def _known(self, stamps: dict[str, str]) -> dict[str, PictureFacts]:
        found: dict[str, PictureFacts] = {}
        # a cache that is broken is no cache
        with self._lock, contextlib.suppress(sqlite3.Error, OSError), self._opened() as database:
            for key, stamp in stamps.items():
                row = database.execute("SELECT * FROM pictures WHERE key = ?", (key,)).fetchone()
                if row is not None and row[1] == stamp and stamp:
                    size = (row[2], row[3]) if row[2] else None
                    found[key] = PictureFacts(size, bool(row[4]), bool(row[5]), row[6], row[7], row[8], bool(row[9]))
        return found

    def _keep(self, fresh: dict[str, PictureFacts], stamps: dict[str, str]) -> None:
        rows = []
        for key, one in fresh.items():
            width, height = one.size or (0, 0)
            rows.append(
                (
                    key,
                    stamps[key],
                    width,
                    height,
                    one.turned,
                    one.transparent,
                    one.reason,
                    one.prints,
                    one.small,
                    one.animated,
                )
            )
        # a full disk costs time, nothing else
        with self._lock, contextlib.suppress(sqlite3.Error, OSError), self._opened() as database:
            database.executemany("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            database.commit()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The cache, open for one question or answer: see `History`."""
        folder = self.root / HIDDEN / "thumbnails"
        folder.parent.mkdir(exist_ok=True)  # not the set itself, which may have been deleted
        folder.mkdir(exist_ok=True)
        with contextlib.closing(sqlite3.connect(folder / "cache.sqlite", timeout=10)) as database:
            database.execute("PRAGMA synchronous = OFF")
            database.execute("DROP TABLE IF EXISTS picture")  # of earlier versions, which knew less
            database.execute(f"CREATE TABLE IF NOT EXISTS pictures (key TEXT PRIMARY KEY, {COLUMNS})")
            yield database


def duplicates(facts: dict[str, PictureFacts]) -> list[tuple[str, ...]]:
    """Groups of pictures whose files are the same, byte for byte."""
    groups: dict[bytes, list[str]] = {}
    for key, one in facts.items():
        if one.prints:
            groups.setdefault(one.digest, []).append(key)
    return [tuple(keys) for keys in groups.values() if len(keys) > 1]


def near_duplicates(
    facts: dict[str, PictureFacts], bits: int = 3, colour: float = 6.0, shape: float = 0.02
) -> list[tuple[str, ...]]:
    """Groups of pictures that look the same: difference hashes within `bits` (at most 3), mean colours within `colour`
    of 255, and width to height within `shape`; and those that look the same as one of a group."""
    keys = [key for key, one in facts.items() if one.prints and one.size]
    if len(keys) < 2:
        return []
    looks = _Looks([facts[key] for key in keys], bits, colour, shape)
    leader = list(range(len(keys)))

    def root(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    for first, others in looks.chains():
        for other in others:
            leader[root(other)] = root(first)
    groups: dict[int, list[str]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(root(index), []).append(key)
    return [tuple(group) for group in groups.values() if len({facts[key].digest for key in group}) > 1]


class _Looks:
    """What pictures look like, as arrays."""

    def __init__(self, facts: list[PictureFacts], bits: int, colour: float, shape: float) -> None:
        self.hashes = np.frombuffer(b"".join(one.prints[16:24] for one in facts), dtype=np.uint8).reshape(-1, 8)
        colours = np.frombuffer(b"".join(one.prints[24:] for one in facts), np.uint8).reshape(len(facts), -1)
        self.colours = colours.astype(np.int16)
        self.aspects = np.array([size[0] / size[1] for one in facts if (size := one.size)])
        self.bits, self.colour, self.shape = bits, colour, shape

    def alike(self, index: int, others: Indices) -> npt.NDArray[np.bool_]:
        """Which of the others look the same as one picture; width to height is compared with the earlier one's."""
        far = np.unpackbits(self.hashes[others] ^ self.hashes[index], axis=1).sum(axis=1)
        here, there = self.aspects[index], self.aspects[others]
        ratios = np.where(others > index, there / here, here / there)
        found = (far <= self.bits) & (np.abs(ratios - 1) <= self.shape)
        found[found] = np.abs(self.colours[others[found]] - self.colours[index]).max(axis=1) <= self.colour
        return np.asarray(found, dtype=np.bool_)

    def chains(self) -> Iterator[tuple[int, list[int]]]:
        """Pictures, and others that look the same. Of two hashes that differ in at most 3 of 64 bits one of 4 bands of
        16 is the same. Whoever was found is compared with those alone that were not: of pictures that all look the same
        the first finds them all."""
        for band in range(4):
            buckets: dict[bytes, list[int]] = {}
            for index, hashed in enumerate(self.hashes):
                buckets.setdefault(hashed[2 * band : 2 * band + 2].tobytes(), []).append(index)
            for members in buckets.values():
                rest = np.array(members)
                while len(rest) > 1:
                    waiting, rest = [int(rest[0])], rest[1:]
                    while waiting and len(rest):
                        index = waiting.pop()
                        found = self.alike(index, rest)
                        others = rest[found].tolist()
                        yield index, others
                        waiting += others
                        rest = rest[~found]
