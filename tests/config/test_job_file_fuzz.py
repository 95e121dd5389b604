"""Mutated job files: read, or refused in sentences of printable characters; never another error."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lib_trainer.config import JobConfig, dump_job, load_job
from lib_trainer.refusals import TrainerError, printable

PIECES = [
    b'"', b"'", b"\\", b"[", b"]", b"{", b"}", b"=", b"\n", b"\r", b"\0", b"\xff\xfe", b"nan", b"-inf", b"1e999",
    b"1979-05-27T07:32:00", b"\\u0000", b"9" * 5000, b"true", b"[[dataset]]\n", b"version=true\n", b"\xef\xbb\xbf",
    b'"""', b"#", b".", b"network.kind=1\n", b"\x1b", b"{a=1}", b"[" * 3000,
]  # fmt: skip


def mutated(base: bytes, chance: random.Random) -> bytes:
    data = bytearray(base)
    for _ in range(chance.randint(1, 6)):
        kind, place = chance.random(), chance.randrange(len(data) + 1)
        if kind < 0.35:
            data[place:place] = chance.choice(PIECES)
        elif kind < 0.6:
            del data[place : place + chance.randint(1, 30)]
        elif kind < 0.8:
            data[place : place + 1] = bytes([chance.randrange(256)])
        else:
            start = chance.randrange(len(data) + 1)
            data[place:place] = data[start : start + chance.randint(1, 60)]
    return data.decode("latin-1").encode("utf-16") if chance.random() < 0.05 else bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_job_file_is_read_or_refused(seed: int, tmp_path: Path) -> None:
    path, chance, refused = tmp_path / "job.toml", random.Random(seed), 0
    dump_job(JobConfig(), path)
    base = path.read_bytes()
    for _ in range(150):
        path.write_bytes(mutated(base, chance))
        try:
            load_job(path)
        except TrainerError as error:
            refused += 1
            for problem in error.problems:
                assert str(problem.sentence) and str(problem.sentence) == printable(str(problem.sentence))
    assert 100 < refused <= 150
