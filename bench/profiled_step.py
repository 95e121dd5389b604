"""Where the time of a training step goes: kernels, operations and waits, by torch's profiler.

What is told comes from the profiler's own trace (the file that Chrome reads): its categories `kernel`, `gpu_memcpy`,
`gpu_memset` on the device, `cpu_op` and `cuda_runtime`, `cuda_driver` on the host.
"""

from __future__ import annotations

import collections
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

STEPS = 3
TOP = 25
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
CALLS = ("cuda_runtime", "cuda_driver")
SORTS = {
    "products": ("gemm", "gemv", "cutlass", "xmma", "nvjet", "splitk", "wgrad", "dgrad", "conv", "implicit"),
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "norms": ("norm", "rowwisemoments", "computefusedparams", "computeinternalgradients", "computebackward"),
    "copies and casts": ("copy", "memcpy", "memset", "cat", "transpose", "nchwtonhwc", "nhwctonchw", "fill"),
    "optimizer": ("multi_tensor", "adam"),
    "sums": ("reduce",),
}
"""Words in a kernel's name, the first that fits; attention is looked for before products, all else is elementwise."""

Events = list[dict[str, Any]]


def profiled(step: Callable[[int], Any], device: torch.device, name: str) -> str:
    """Take `STEPS` steps untraced and as many traced; a report of both."""
    usual = _timed(step, device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        traced = _timed(step, device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    return report(events, name, usual, traced)


def _timed(step: Callable[[int], Any], device: torch.device) -> float:
    """Seconds of a step."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    step(STEPS)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / STEPS


def report(events: Events, name: str, usual: float, traced: float) -> str:
    """`usual` and `traced`: seconds of a step without and with the profiler, which slows the host down."""
    device = [one for one in events if one.get("cat") in ON_DEVICE]
    calls = nested(events)
    busy, own = busy_time(device), totals((call.event["name"], call.own) for call in calls)
    waits = {call: spent for call, spent in own.items() if "ynchronize" in call}
    launches = collections.Counter(one["cat"] for one in device)
    said = [
        f"# {name}",
        f"a step: {1e3 * usual:.2f} ms untraced, {1e3 * traced:.2f} ms traced; torch {torch.__version__}",
        f"launched in a step: {launches['kernel'] / STEPS:.0f} kernels, {launches['gpu_memcpy'] / STEPS:.0f} copies, "
        f"{launches['gpu_memset'] / STEPS:.0f} fills",
        f"the device is busy {busy / STEPS / 1e3:.2f} ms of a step"
        + (f", {busy / STEPS / 1e6 / usual:.0%} of an untraced one" if usual else ""),
        f"the host computes {(_spent(own) - _spent(waits)) / STEPS / 1e3:.2f} ms of a traced step inside "
        f"{_count(own) / STEPS:.0f} operations and calls, and waits {_spent(waits) / STEPS / 1e3:.2f} ms in "
        f"{_count(waits) / STEPS:.0f} of them; the rest is Python",
    ]
    sorts = totals((sort_of(one["name"]), one["dur"]) for one in device)
    said += table("device time by sort of kernel", sorts, len(SORTS) + 1)
    said += table("device time by kernel", totals((one["name"], one["dur"]) for one in device))
    for heading, names in zip(("operation", "outermost operation"), zip(*launchers(calls, device)), strict=False):
        said += table(
            f"device time by {heading}", totals((name, one["dur"]) for name, one in zip(names, device, strict=True))
        )
    said += table("the host's own time by operation or call", own)
    return "\n".join(said)


def _spent(times: dict[str, tuple[float, int]]) -> float:
    return sum(spent for spent, _ in times.values())


def _count(times: dict[str, tuple[float, int]]) -> int:
    return sum(count for _, count in times.values())


def table(heading: str, times: dict[str, tuple[float, int]], top: int = TOP) -> list[str]:
    """The largest, in ms and times a step; `times` are µs and counts of all steps."""
    if not times:
        return []
    whole = _spent(times)
    said = ["", f"## {heading}", "| ms a step | share | times a step | µs each | name |", "|---|---|---|---|---|"]
    for name, (spent, count) in sorted(times.items(), key=lambda item: -item[1][0])[:top]:
        numbers = f"{spent / STEPS / 1e3:.3f} | {spent / (whole or 1):.1%} | {count / STEPS:.1f} | {spent / count:.1f}"
        said.append(f"| {numbers} | {shortened(name)} |")
    return said


def shortened(name: str, most: int = 200) -> str:
    """A kernel's name without what all of them have; of a long one both ends, as what is computed stands in its middle
    and its types at its end."""
    name = name.replace("at::native::", "").replace("(anonymous namespace)::", "").removeprefix("void ")
    return name if len(name) <= most else f"{name[: most - 45]} … {name[-40:]}"


def totals(pairs: Iterable[tuple[str, float]]) -> dict[str, tuple[float, int]]:
    """µs and times, by name."""
    spent: dict[str, float] = collections.defaultdict(float)
    counts: dict[str, int] = collections.Counter()
    for name, one in pairs:
        spent[name] += one
        counts[name] += 1
    return {name: (spent[name], counts[name]) for name in spent}


def sort_of(kernel: str) -> str:
    small = kernel.lower()
    for sort in ("attention", *SORTS):
        if any(word in small for word in SORTS[sort]):
            return sort
    return "elementwise"


def busy_time(device: Events) -> float:
    """µs in which at least one kernel or copy runs; streams may overlap."""
    busy, end = 0.0, float("-inf")
    for one in sorted(device, key=lambda one: one["ts"]):
        busy += max(0.0, one["ts"] + one["dur"] - max(one["ts"], end))
        end = max(end, one["ts"] + one["dur"])
    return busy


@dataclass
class Call:
    """An operation or a call on the host: its µs less those of what it calls; the operation that it is or stands in,
    and the outermost one around that."""

    event: dict[str, Any]
    own: float
    operation: str
    outermost: str


def nested(events: Events) -> list[Call]:
    threads: dict[Any, Events] = collections.defaultdict(list)
    for one in events:
        if one.get("cat") in ("cpu_op", *CALLS) and "dur" in one:
            threads[one.get("tid")].append(one)
    found: list[Call] = []
    for own in threads.values():
        around: list[Call] = []
        for one in sorted(own, key=lambda one: (one["ts"], -one["dur"])):
            while around and around[-1].event["ts"] + around[-1].event["dur"] <= one["ts"]:
                around.pop()
            if around:
                around[-1].own = max(0.0, around[-1].own - one["dur"])
            operation = one["name"] if one["cat"] == "cpu_op" or not around else around[-1].operation
            around.append(Call(one, one["dur"], operation, around[0].outermost if around else one["name"]))
            found.append(around[-1])
    return found


def launchers(calls: Sequence[Call], device: Events) -> list[tuple[str, str]]:
    """Of each kernel the operation that launched it, and the outermost one around that.

    A kernel has the number of the call that launched it; where that was not traced, the operation's.
    """
    launched = {_number(call.event, "correlation"): call for call in calls if call.event["cat"] in CALLS}
    operations = {_number(call.event, "External id"): call for call in calls if call.event["cat"] == "cpu_op"}
    found = []
    for one in device:
        call = launched.get(_number(one, "correlation")) or operations.get(_number(one, "External id"))
        found.append(("?", "?") if call is None else (call.operation, call.outermost))
    return found


def _number(event: dict[str, Any], name: str) -> Any:
    """Of its own kind for an event that has none."""
    return (event.get("args") or {}).get(name, id(event))
