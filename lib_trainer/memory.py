"""How much memory there is, whether an error says that there was too little, and giving back what torch keeps unused.

The one place for the three, over every device that torch knows: CUDA and ROCm (which torch calls cuda as well), Intel's
XPU, Apple's MPS, what a plug-in registers with functions of these names (Ascend's NPU), and the computer's own memory.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

SHARE = 0.9
"""Of the free memory that a run may plan with: the allocator's rounding, and other programs, need the rest."""

FULL = 0.01
"""Share of a card's memory below which it counts as full."""

TRACE = "_trainer_trace"
"""Attribute of an error that was released: its traceback as text."""

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
"""A container's limit, what it uses, and what of that is a file's cache; version 2, then version 1."""

MARKS = (
    "out of memory",  # CUDA, HIP, XPU, MPS and Python say it so
    "outofmemory",  # hipErrorOutOfMemory
    "out_of_memory",
    "out_of_device_memory",  # Level Zero: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY
    "out_of_host_memory",
    "out_of_resources",  # PI_ERROR_OUT_OF_RESOURCES
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "rocblas_status_memory_error",
    "not enough memory",  # torch's allocator on Windows
    "can't allocate memory",  # and elsewhere
    "cannot allocate memory",
    "could not allocate tensor",  # DirectML
    "could not create a memory",  # oneDNN
    "could not create a primitive",
    "bad_alloc",
    "bad allocation",
    "invalid buffer size",  # MPS: a single buffer beyond what the device takes
)
"""What a RuntimeError says when memory is short, in lower case."""

PAGING_FILE_TOO_SMALL = 1455
"""Windows' ERROR_COMMITMENT_LIMIT: neither memory nor the paging file can back what was asked for."""


def is_out_of_memory(error: BaseException) -> bool:
    """Of torch's allocators and libraries on any device, of numpy and Pillow, of the system, or of Python's own."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or getattr(error, "winerror", None) == PAGING_FILE_TOO_SMALL
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(mark in told for mark in MARKS)


def free_bytes(device: torch.device) -> int:
    """Bytes that a run on `device` can have now; what torch holds there unused counts as free.

    A device that does not say gets the computer's free memory as an answer.
    """
    if device.type == "cuda":
        device = indexed(device)
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    backend: Any = getattr(torch, device.type, None)
    if hasattr(backend, "mem_get_info"):
        free, _ = backend.mem_get_info(device)
        return int(free + backend.memory_reserved(device) - backend.memory_allocated(device))
    if device.type == "mps" and hasattr(backend, "recommended_max_memory"):
        return min(int(backend.recommended_max_memory() - backend.current_allocated_memory()), host_free_bytes())
    return host_free_bytes()


def indexed(device: torch.device) -> torch.device:
    """The device with its number: torch before 2.3 refuses to tell the memory of plain `cuda`."""
    number: int | None = device.index  # torch's annotations have it for certain
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and number is None else device


def host_free_bytes() -> int:
    """Available memory of the computer, and what a limit on this process (`ulimit -v`, a container) leaves of it."""
    import psutil

    free = int(psutil.virtual_memory().available)
    return min(free, *_limits(psutil.Process(os.getpid()).memory_info()))


def peak_bytes(device: torch.device) -> int:
    """The most that torch has had in use on the device since `forget_peak`; on the CPU what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    backend: Any = getattr(torch, device.type, None)
    if hasattr(backend, "max_memory_allocated"):
        return int(backend.max_memory_allocated(device))
    if device.type == "mps" and hasattr(backend, "current_allocated_memory"):
        return int(backend.current_allocated_memory())
    import psutil

    return int(psutil.Process().memory_info().rss)


def forget_peak(device: torch.device) -> None:
    """Let the peak be counted anew from what is in use now."""
    backend: Any = getattr(torch, device.type, None)
    if hasattr(backend, "reset_peak_memory_stats"):
        backend.reset_peak_memory_stats(device)


def spills(device: torch.device) -> bool:
    """Whether Windows lends a card memory of the computer's: its driver does so, silently and slowly, when it is full.

    Elsewhere an allocation fails then, and nothing is lent.
    """
    if device.type != "cuda" or os.name != "nt":
        return False
    free, total = torch.cuda.mem_get_info(indexed(device))
    return free < FULL * total


def release_cached(device: torch.device) -> None:
    """Give back what torch holds unused, so that a smaller plan, or another program, finds room."""
    backend: Any = getattr(torch, device.type, None)
    if hasattr(backend, "empty_cache"):
        backend.empty_cache()


def release(error: BaseException, device: torch.device) -> str:
    """Free what an error keeps alive: every frame that it, its cause and its context came through.

    A traceback holds its frames, and they hold the tensors of a step, its graph and the optimizer; so the errors lose
    theirs. Frames that are still running keep what they hold. Returns the traceback as text: of the first time, where
    an error is released again on its way out.
    """
    told: str = (
        getattr(error, TRACE, "")
        or "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()
    )
    setattr(error, TRACE, told)
    for one in chain(error):
        traceback.clear_frames(one.__traceback__)
        one.__traceback__ = None  # a cleared frame has its function still, and that the layers in its closure
    _empty_backward_queue()
    gc.collect()  # graphs and recomputed blocks refer to themselves
    release_cached(device)
    return told


def _empty_backward_queue() -> None:
    """Let torch drop what a failed backward pass on the CPU has left in this thread's queue: most of its graph.

    The queue is worked off by its nodes' numbers, the latest first, and left when the pass at hand is done. Numbers are
    counted by thread, so a node that another thread has made is older than all: what is left over comes before it, and
    is dropped as belonging to no pass. (Devices have threads of their own, which find out by themselves.)
    """
    made: list[torch.Tensor] = []

    def make() -> None:
        leaf = torch.zeros(1, requires_grad=True)
        made.extend((leaf, leaf.view(1), torch.ones(1)))

    thread = threading.Thread(target=make, name="trainer-memory")
    thread.start()
    thread.join()
    with contextlib.suppress(Exception):  # no room for a number: the queue ends with its thread
        leaf, node, gradient = made
        torch.autograd.grad(node, leaf, gradient)


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and whatever it was raised from or while handling, each once."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__context__, one.__cause__]


def _limits(used: object) -> list[int]:
    found = [1 << 62]
    try:
        import resource
    except ImportError:  # Windows
        return found
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(max(limit - int(getattr(used, "vms", 0)), 0))
    for files in CGROUPS:
        try:
            most, now, told = (Path(file).read_text() for file in files)
            found.append(max(int(most) - int(now) + _reclaimable(told), 0))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found


def _reclaimable(told: str) -> int:
    """What of a container's memory is an unused file's cache, which the system gives up when it is asked for more."""
    lines = (line.partition(" ") for line in told.splitlines())
    values = {name: int(value) for name, _, value in lines if name.endswith("inactive_file")}
    return values.get("total_inactive_file", values.get("inactive_file", 0))
