"""Runs mutated inputs in processes of their own, and says what went wrong.

A process that dies is begun anew behind the input that killed it. Everything that readers could write to (the working
folder, the home, the folder of temporary files) lies in one sandbox, which is compared afterwards.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.formats import FORMATS

ROOT = Path(__file__).parents[2]
WALL_SECONDS = 300.0
"""So long no process is silent: against one that waits and uses no processor."""


@dataclass(frozen=True)
class Trouble:
    """What an input did; `name` and `number` make it again with the same seed."""

    name: str
    number: int
    what: str


def run(sandbox: Path, counts: dict[str, int], seed: int, module: str = "tests.fuzz.formats") -> list[Trouble]:
    """Read `counts[name]` inputs of each format of `module`. Returns what went wrong, nothing if all is well."""
    for name in ("given", "work", "home", "tmp"):
        (sandbox / name).mkdir(parents=True, exist_ok=True)
    spans = {name: (0, count) for name, count in counts.items()}
    troubles: list[Trouble] = []
    while spans:
        place, found, ended = _process(sandbox, module, spans, seed)
        troubles += found
        if ended == "":
            break
        name, number = place
        troubles.append(Trouble(name, number, ended))
        order = list(spans)
        spans = {one: spans[one] for one in order[order.index(name) :]}
        spans[name] = (number + 1, spans[name][1])
    troubles += [Trouble("", 0, f"was written: {path}") for path in _strange(sandbox)]
    return troubles


def _process(
    sandbox: Path, module: str, spans: dict[str, tuple[int, int]], seed: int
) -> tuple[tuple[str, int], list[Trouble], str]:
    """One process over all inputs: the input it was at, what it told, and how it died (empty: at its end)."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "HOME": str(sandbox / "home"), "TMPDIR": str(sandbox / "tmp"),
        "XDG_CACHE_HOME": str(sandbox / "home"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    asked = [f"{name}:{first}:{end}" for name, (first, end) in spans.items()]
    command = [sys.executable, "-m", "tests.fuzz.worker", module, str(sandbox / "given"), str(seed), *asked]
    place, troubles = (next(iter(spans)), next(iter(spans.values()))[0]), []
    with (sandbox / "errors.txt").open("wb") as errors:
        with subprocess.Popen(
            command, cwd=sandbox / "work", env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
            encoding="utf-8", errors="replace",
        ) as process:  # fmt: skip
            lines = _lines(process)
        code = process.returncode
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "start":
            place = rest.split(" ")[0], int(rest.split(" ")[1])
        elif word == "wrong":
            troubles.append(Trouble(*place, rest))
    if lines[-1:] == ["done"]:
        return place, troubles, ""
    told = (sandbox / "errors.txt").read_text("utf-8", "replace")[-300:]
    return place, troubles, f"the process ended with {code} {told}".strip()


def _lines(process: subprocess.Popen[str]) -> list[str]:
    """All that a process says until its end. One that is silent for too long is ended."""
    lines: list[str] = []

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))

    listener = threading.Thread(target=listen)
    listener.start()
    before, since = len(lines), time.monotonic()
    while listener.is_alive():
        listener.join(0.5)
        if len(lines) != before:
            before, since = len(lines), time.monotonic()
        elif time.monotonic() - since > WALL_SECONDS:
            process.kill()
    process.wait()
    return lines


def _strange(sandbox: Path) -> list[Path]:
    """Files that nobody was to write."""
    known = {sandbox / "errors.txt"}
    return [path for path in sandbox.rglob("*") if path.is_file() and path not in known and path.parent.name != "given"]


def shares(count: int) -> dict[str, int]:
    """`count` inputs over all formats, the same number of each."""
    return {name: -(-count // len(FORMATS)) for name in FORMATS}
