"""Readers that do what no reader may, for the test that the harness notices it."""

from __future__ import annotations

import os
from pathlib import Path

from lib_trainer.refusals import DatasetError
from tests.fuzz.formats import Format

SECONDS = 0.5
"""Of the processor: soon used up."""


def _raise(path: Path) -> None:
    raise ValueError("no sentence")


def _say_nothing(path: Path) -> None:
    raise DatasetError(" ")


def _spin(path: Path) -> None:
    while True:
        pass


def _die(path: Path) -> None:
    os.abort()


def _write(path: Path) -> None:
    Path("canary").touch()


def _refuse(path: Path) -> None:
    raise DatasetError("This is a sentence.")


FORMATS = {
    name: Format(".x", list, read)
    for name, read in {
        "raises": _raise, "says_nothing": _say_nothing, "spins": _spin, "dies": _die, "writes": _write, "fine": _refuse
    }.items()
}  # fmt: skip


def make(name: str, number: int, seed: int) -> bytes:
    return b"x"
