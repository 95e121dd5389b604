"""One training step of ours against the floor, diffusers + peft, and sd-scripts; `bench/contenders.py` has their steps.

    python -m bench.train_step --size full --precision fp32 --rounds 20
    python -m bench.train_step --family sdxl --size full --device cuda --precision bf16 --batch 4 --scripts FOLDER
    python -m bench.train_step --size full --memory
    python -m bench.train_step --size full --device cuda --precision bf16 --scripts FOLDER --profile FILE.txt
    python -m bench.train_step --table card --device cuda --precision bf16 --scripts FOLDER --rounds 8 --out FILE.json

Time: the contenders alternate inside each round, and the ratio is taken round by round, so that a machine that slows
down slows all of them. A round is `--steps` steps of each in a row, as a run takes them; a device is waited for before
and after them, and in between only by who waits for it in a run. Every loss has to be finite, and all contenders must
adapt as many layers and train as many numbers.

Memory, `--memory`: each contender in a process of its own, after five steps: peak resident size on the CPU, torch's
peak on a GPU. In the table: torch's peak from a contender's beginning to its third step (weights, adapters, optimizer,
activations) less what the others, idle meanwhile, hold; what is cached and not used does not count, nor does the CUDA
context.

`--profile`: where the time of a step goes (`bench/profiled_step.py`), instead of a comparison.

`--table card`: the rows by which cards are compared, in one process that builds each family's models once; with
`--profile` three of them are traced afterwards. Rows are printed, and FILE.json written, as they come; nothing is begun
after `--limit` seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.contenders import CONTENDERS, Contender, Losses, Setting, taking_part
from bench.profiled_step import profiled
from bench.random_models import SIZES
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.training.precision import DTYPES

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
COMPARED = ("floor", "ours", "sd-scripts")
WARM_UP = 3

ROWS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "card": (
        ("sd1", 512, 1, True),
        ("sd1", 512, 4, True),
        ("sd1", 768, 1, True),
        ("sdxl", 1024, 1, True),
        ("sdxl", 1024, 4, True),
        ("sdxl", 1024, 1, False),
        ("sdxl", 1024, 4, False),
    )
}
"""Of each table: family, pixels of a side (an eighth of them for miniatures), batch, text encoder trained."""

TRAINING = ("ours", "sd-scripts")
PROFILED: dict[str, dict[tuple[Any, ...], Sequence[str]]] = {
    "card": {
        ("sdxl", 1024, 1, True): TRAINING,
        ("sdxl", 1024, 4, True): ("ours",),
        ("sd1", 512, 1, True): TRAINING,
    }
}
"""Whose steps are traced in which rows, after all rows are timed: the profiler leaves later launches slower."""

HEAD = "| row | floor s | ours s | sd-scripts s | sd-scripts/ours (min, max of rounds) | GiB floor, ours, sd-scripts |"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


@dataclass
class Field:
    """Contenders with their adapters on, and the peak of each in bytes (None where there is no GPU)."""

    contenders: dict[str, Contender]
    peaks: dict[str, int | None]


def enter(own: Setting, models: Mapping[str, DiffusersModel], stack: contextlib.ExitStack) -> Field:
    """Put every contender's adapters on its own model and take its first steps, which nobody times."""
    field = Field({}, {})
    for name, model in models.items():
        others = 0
        if own.device.type == "cuda":
            others = torch.cuda.memory_allocated(own.device) - _bytes_there(model, own.device)
            torch.cuda.reset_peak_memory_stats(own.device)
        found = field.contenders[name] = CONTENDERS[name](model, own, stack)
        _finite(name, found.step(WARM_UP))
        _wait(own.device)
        peak = _peak(own.device)
        field.peaks[name] = None if peak is None else peak - others
    counts = {name: (one.layers, one.numbers) for name, one in field.contenders.items()}
    assert len(set(counts.values())) == 1, f"adapted layers and trained numbers differ: {counts}"
    return field


def _bytes_there(model: DiffusersModel, device: torch.device) -> int:
    held = [tensor for root in model.roots().values() for tensor in (*root.parameters(), *root.buffers())]
    return sum(one.untyped_storage().nbytes() for one in held if one.device.type == device.type)


def _finite(name: str, losses: Losses) -> None:
    numbers = [float(one) for one in losses]
    assert numbers and all(map(math.isfinite, numbers)), f"{name}: losses are {numbers}"


def time_rounds(
    own: Setting,
    contenders: Mapping[str, Contender],
    rounds: int,
    steps: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    until: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of a step for each contender and round; after `until` (of `time.monotonic`) no third one begins.

    A round before them is not timed: it finds the memory that the contenders leave one another.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    losses: dict[str, Losses] = {name: [] for name in contenders}
    for done in range(-1, rounds):
        if done >= 2 and time.monotonic() > until:
            break
        for name, one in contenders.items():
            _wait(own.device)
            started = clock()
            losses[name] += one.step(steps)
            _wait(own.device)
            if done >= 0:
                seconds[name].append((clock() - started) / steps)
    for name, found in losses.items():
        _finite(name, found)
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], name: str, divisor: str) -> tuple[float, float, float]:
    """Median, least and largest of the rounds' ratios."""
    found = [a / b for a, b in zip(seconds[name], seconds[divisor], strict=True)]
    return statistics.median(found), min(found), max(found)


def measure_time(own: Setting, options: argparse.Namespace) -> None:
    """One setting; each contender holds a model of its own, so that none sees another's changes."""
    names = taking_part(own, options.only)
    with contextlib.ExitStack() as stack:
        models = {name: own.model() for name in names}
        field = enter(own, models, stack)
        clock = CLOCKS[options.clock]
        seconds = time_rounds(own, field.contenders, options.rounds, options.steps, clock)
    print(f"\n{title(own)}, {len(seconds[names[0]])} rounds, {_where(own.device)}")
    print(
        f"| contender | s/step (median) | ratio to {names[0]} (median of rounds) | min | max |\n|---|---|---|---|---|"
    )
    for name in names:
        numbers = (statistics.median(seconds[name]), *ratios(seconds, name, names[0]))
        print(f"| {name} | {' | '.join(f'{number:.3f}' for number in numbers)} |", flush=True)


def profile(own: Setting, options: argparse.Namespace) -> None:
    """Of one setting, where the time goes in ours and in sd-scripts'."""
    names = taking_part(own, options.only, TRAINING)
    model = own.model()
    _profile(own, dict.fromkeys(names, model), options.profile)


def _where(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def title(own: Setting) -> str:
    precision = next(name for name, dtype in DTYPES.items() if dtype is own.dtype)
    text = "" if own.text_encoder else ", text encoder not trained"
    return f"{own.family} {own.size} {own.side}², batch {own.batch}, {precision}{text}"


def measure_table(own: Setting, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every row of a table, printed and written as it is measured; after one that fails the next one follows."""
    names = taking_part(own, [name for name in options.only if name in COMPARED], COMPARED)
    started, until = time.monotonic(), time.monotonic() + options.limit
    print(f"{_where(own.device)}; {options.rounds} rounds of {options.steps} steps\n{HEAD}\n|{'---|' * 6}", flush=True)
    rows: list[dict[str, Any]] = []
    stable = Stable(names)
    for row in ROWS[options.table]:
        if time.monotonic() > until:
            break
        one = _setting(own, row)
        try:
            rows.append(_row(one, stable.models(one), options, until))
        except Exception as error:
            rows.append({"row": title(one), "failed": f"{type(error).__name__}: {error}"[:500]})
        _collect(own.device)
        rows[-1]["at_s"] = round(time.monotonic() - started, 1)
        print(_line(rows[-1]), flush=True)
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for row, wanted in PROFILED[options.table].items() if options.profile else ():
        for name in (name for name in wanted if name in names and time.monotonic() < until):
            one = _setting(own, row)
            try:
                _profile(one, {name: stable.models(one)[name]}, options.profile)
            except Exception as error:
                print(f"{name}: {title(one)} is not traced: {type(error).__name__}: {error}"[:500], flush=True)
            _collect(own.device)
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    return rows


class Stable:
    """A model for each contender; those of one family at a time."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._family = names, ""
        self._models: dict[str, DiffusersModel] = {}

    def models(self, own: Setting) -> dict[str, DiffusersModel]:
        if own.family != self._family:
            self._models.clear()
            _collect(own.device)
            self._family, self._models = own.family, {name: own.model() for name in self._names}
        return self._models


def _setting(own: Setting, row: Sequence[Any]) -> Setting:
    family, side, batch, text_encoder = row
    side = side // 8 if own.size == "mini" else side
    return replace(own, family=family, side=side, batch=batch, text_encoder=text_encoder)


def _row(
    own: Setting, models: Mapping[str, DiffusersModel], options: argparse.Namespace, until: float
) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        field = enter(own, models, stack)
        retried = _retries(own.device)
        seconds = time_rounds(own, field.contenders, options.rounds, options.steps, until=until)
        retried = _retries(own.device) - retried
    first = next(iter(field.contenders.values()))
    found = {"row": title(own), "layers": first.layers, "numbers": first.numbers, "seconds": seconds}
    found["peak_gib"] = {name: None if peak is None else peak / 2**30 for name, peak in field.peaks.items()}
    if {"ours", "sd-scripts"} <= seconds.keys():
        found["ratio"] = ratios(seconds, "sd-scripts", "ours")
    return found | {"allocator_retries": retried}


def _retries(device: torch.device) -> int:
    """How often the allocator had to give cached memory back: such a round says more about memory than about time."""
    return int(torch.cuda.memory_stats(device)["num_alloc_retries"]) if device.type == "cuda" else 0


def _line(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return f"| {row['row']} | {row['failed']} |"
    seconds = [f"{statistics.median(row['seconds'][name]):.4f}" if name in row["seconds"] else "–" for name in COMPARED]
    ratio = "{:.3f} ({:.3f} to {:.3f})".format(*row["ratio"]) if "ratio" in row else "–"
    peaks = [row["peak_gib"].get(name) for name in COMPARED]
    peak = ", ".join("–" if one is None else f"{one:.2f}" for one in peaks)
    more = f" {row['allocator_retries']} allocator retries" if row["allocator_retries"] else ""
    return f"| {row['row']} | {' | '.join(seconds)} | {ratio} | {peak} |{more}"


def _collect(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _profile(own: Setting, models: Mapping[str, DiffusersModel], file: Path) -> None:
    """One after another, each with its own adapters on; a report is added to the file as it is made."""
    for name, model in models.items():
        with contextlib.ExitStack() as stack:
            contender = CONTENDERS[name](model, own, stack)
            contender.step(WARM_UP)
            said = profiled(contender.step, own.device, f"{name}: {title(own)}")
        with file.open("a", encoding="utf-8") as out:
            out.write(said + "\n\n")
        print("\n".join(said.splitlines()[:5]), flush=True)


def measure_memory(own: Setting, wanted: Sequence[str]) -> None:
    print(f"\n{title(own)}: peak memory\n| contender | MiB |\n|---|---|")
    for name in taking_part(own, wanted):
        command = [sys.executable, "-m", "bench.train_step", *sys.argv[1:], "--alone", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"| {name} | {json.loads(done.stdout.splitlines()[-1])['peak_mib']:.0f} |", flush=True)


def run_alone(name: str, own: Setting) -> None:
    with contextlib.ExitStack() as stack:
        CONTENDERS[name](own.model(), own, stack).step(5)
        peak = _peak(own.device) or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak_mib": peak / 2**20}))


def usual_side(options: argparse.Namespace) -> int:
    """Pixels where no side is asked for: the family's own on a GPU, less on a CPU."""
    if options.size == "mini" or options.device.type == "cpu":
        return SIZES[options.size]
    return 1024 if options.family == "sdxl" else 512


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("sd1", "sdxl"), default="sd1")
    parser.add_argument("--size", choices=SIZES, help="mini, or full where a table is asked for")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--side", type=int, help="pixels; on a GPU 512, 768 or 1024")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--no-text-encoder", dest="text_encoder", action="store_false")
    parser.add_argument("--scripts", type=Path, help="a checkout of kohya's sd-scripts, as a further contender")
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, default=[], help="some of them; the first is divided by"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, help="in a row, of each contender in a round; 1, in a table 2")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: seconds of all threads, whatever else is running"
    )
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--table", choices=ROWS, help="several settings; --family, --side and --batch are its own")
    parser.add_argument("--limit", type=float, default=150, help="seconds after which a table begins no row or round")
    parser.add_argument("--out", type=Path, help="a table's rows as JSON, every round in them")
    parser.add_argument("--profile", type=Path, help="a file that is told where the time of three steps goes")
    parser.add_argument("--alone", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    options.size = options.size or ("full" if options.table else "mini")
    options.steps = options.steps or (2 if options.table else 1)
    side, dtype = options.side or usual_side(options), DTYPES[options.precision]
    own = Setting(options.family, options.size, dtype, side, options.batch, options.device, options.text_encoder)
    own = replace(own, scripts=options.scripts)
    if options.profile:
        options.profile.write_text("", encoding="utf-8")
    if options.alone:
        run_alone(options.alone, own)
    elif options.table:
        measure_table(own, options)
    elif options.profile:
        profile(own, options)
    elif options.memory:
        measure_memory(own, options.only)
    else:
        measure_time(own, options)


if __name__ == "__main__":
    main()
