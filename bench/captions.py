"""The captions editor against reading the files once.

    python -m bench.captions --counts 1000 10000 50000

For each number of captions (30 tags each, in one folder): open, one batch edit (a tag replaced in every caption), undo,
frequency table, and the filter, as multiples of the time that reading every caption file once takes in the same run.
Then how each step grows: its seconds per caption over those of the smallest set. 1 is linear.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lib_trainer.captions.edits import make_edit
from lib_trainer.captions.filters import Record, parse_filter
from lib_trainer.dataset.editor import Editor

WORDS = [
    f"{one} {other}" for one in ("long", "red", "white", "small", "left", "torn") for other in map(str, range(200))
]
TAGS = 30


def write_set(root: Path, count: int) -> None:
    """Empty picture files with captions of 30 tags; the editor decodes no picture for what is measured here."""
    rng = random.Random(count)
    folder = root / "10_thing"
    folder.mkdir(parents=True)
    for index in range(count):
        (folder / f"{index:05}.png").touch()
        tags = ["thing", *rng.sample(WORDS, TAGS - 1)]
        (folder / f"{index:05}.txt").write_text(", ".join(tags), encoding="utf-8")


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def steps_of(root: Path, paths: list[Path]) -> dict[str, Callable[[], object]]:
    """What is measured, in this order; each step goes on from the one before."""
    editors: list[Editor] = []
    edit = make_edit("replace", {"tags": "thing", "by": "other thing"})
    chosen = parse_filter("long 1 AND NOT (red 2 OR white*)")
    return {
        "read": lambda: [path.read_bytes() for path in paths],
        "open": lambda: editors.append(Editor(root)),
        "frequency table": lambda: editors[0].counts(),
        "filter": lambda: [chosen.matches(Record(key, "", editors[0].caption(key))) for key in editors[0].keys],
        "preview": lambda: editors[0].preview(edit),
        "batch edit": lambda: editors[0].apply(editors[0].preview(edit)),
        "undo": lambda: editors[0].undo(),
        "close": lambda: editors[0].history.close(),
    }


def measure(root: Path, rounds: int) -> dict[str, float]:
    """Medians of the steps' seconds; 'read' is the reference."""
    found: dict[str, list[float]] = {}
    paths = sorted((root / "10_thing").glob("*.txt"))
    for _ in range(rounds):
        shutil.rmtree(root / ".trainer", ignore_errors=True)
        for name, step in steps_of(root, paths).items():
            found.setdefault(name, []).append(seconds(step))
    return {name: statistics.median(values) for name, values in found.items() if name != "close"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results = {}
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            write_set(Path(folder) / "set", count)
            results[count] = measure(Path(folder) / "set", options.rounds)
        read = results[count]["read"]
        print(f"\n{count:,} captions × {TAGS} tags: reading the files once takes {read:.3f} s")
        print("| step | seconds | ratio to reading once |\n|---|---|---|")
        for name, value in results[count].items():
            print(f"| {name} | {value:.3f} | {value / read:.2f} |", flush=True)
    least = min(results)
    print(f"\nGrowth: seconds per caption over those of {least:,} captions\n| step | {' | '.join(map(str, results))} |")
    print("|---|" + "---|" * len(results))
    for name in results[least]:
        row = [results[count][name] / count / (results[least][name] / least) for count in results]
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in row)} |")


if __name__ == "__main__":
    main()
