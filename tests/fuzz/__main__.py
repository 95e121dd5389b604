"""The long run: `python -m tests.fuzz --count 10000 --seed 1`. Exit code 1 where something went wrong."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.formats import FORMATS, make
from tests.fuzz.harness import run, shares


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="inputs over all formats (10,000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=list(FORMATS), action="append", help="these formats; may be repeated")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where inputs that did harm are written")
    options = parser.parse_args()
    counts = {name: count for name, count in shares(options.count).items() if name in (options.only or FORMATS)}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        troubles = run(Path(folder), counts, options.seed)
    for one in troubles:
        print(f"{one.name} {one.number}: {one.what}")
        if options.keep and one.name:
            options.keep.mkdir(parents=True, exist_ok=True)
            path = options.keep / f"{one.name}-{one.number}{FORMATS[one.name].ending}"
            path.write_bytes(make(one.name, one.number, options.seed))
    total = sum(counts.values())
    print(f"{total} inputs in {time.monotonic() - started:.0f} s, seed {options.seed}: {len(troubles)} went wrong.")
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
