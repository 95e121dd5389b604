"""Mutated files of every format: each is read or refused with a sentence, soon, and nothing is executed or written.

`python -m tests.fuzz --count 10000` is the long run; the seeds here are fixed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lib_trainer.refusals import TrainerError
from tests.fuzz.formats import FORMATS, make
from tests.fuzz.harness import run, shares

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the limit on a process's time is Unix's")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [20261125])
def test_no_file_does_harm(tmp_path: Path, seed: int) -> None:
    assert run(tmp_path, shares(360), seed) == []


@pytest.mark.timeout(300)
def test_this_test_notices(tmp_path: Path) -> None:
    names = ["raises", "says_nothing", "spins", "dies", "writes", "fine"]
    troubles = run(tmp_path, dict.fromkeys(names, 1), 1, "tests.fuzz.bad_formats")
    found = {name: [one.what for one in troubles if one.name == name] for name in ["", *names]}
    assert ["no sentence" in what for what in found["raises"]] == [True]
    assert found["says_nothing"] == ["an error without a sentence"]
    assert ["ended with -27" in what for what in found["spins"]] == [True], "SIGPROF"
    assert ["ended with -6" in what for what in found["dies"]] == [True]
    assert len(found[""]) == 1 and found[""][0].endswith("work/canary")
    assert found["fine"] == found["writes"] == []


@pytest.mark.parametrize("name", FORMATS)
def test_the_sound_files_are_sound(tmp_path: Path, name: str) -> None:
    """Else all that is damaged would be refused for what was wrong before."""
    refused = []
    for number in range(len(FORMATS[name].sound())):
        path = tmp_path / f"input{FORMATS[name].ending}"
        path.write_bytes(make(name, number, 1))
        try:
            FORMATS[name].read(path)
        except TrainerError as error:
            refused.append(str(error))
    expected = {"caption": ["UTF-8"] * 2, "pt": [""] * 12}.get(name, [])
    assert len(refused) == len(expected), "of another encoding; pickles that would run something"
    assert all(part in sentence for part, sentence in zip(expected, refused, strict=True))
