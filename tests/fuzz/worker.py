"""Reads inputs one after the other: `python -m tests.fuzz.worker MODULE FOLDER SEED [NAME:FIRST:END …]`.

`MODULE` has `FORMATS` and `make`, as `tests.fuzz.formats` has them, and maybe its own `SECONDS`.

Each input has `SECONDS` of the processor; the system ends the process where they are used up, so that neither a loop in
C nor a busy machine is mistaken. Says the number of each input before it is read, and what went wrong behind it.
"""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
import warnings
from pathlib import Path

from lib_trainer.refusals import TrainerError

SECONDS = 5.0


def main(module: str, folder: Path, seed: int, spans: list[str]) -> None:
    formats = importlib.import_module(module)
    seconds = getattr(formats, "SECONDS", SECONDS)
    warnings.simplefilter("ignore")  # Pillow tells of what it passes by
    for span in spans:
        name, first, end = span.split(":")
        for number in range(int(first), int(end)):
            path = folder / f"input{formats.FORMATS[name].ending}"
            path.write_bytes(formats.make(name, number, seed))
            print(f"start {name} {number}", flush=True)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            try:
                formats.FORMATS[name].read(path)
            except TrainerError as error:
                if not str(error).strip():
                    print("wrong an error without a sentence", flush=True)
            except BaseException:
                print("wrong " + " | ".join(traceback.format_exc().splitlines()[-7:]), flush=True)
            signal.setitimer(signal.ITIMER_PROF, 0)
            path.unlink()
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
