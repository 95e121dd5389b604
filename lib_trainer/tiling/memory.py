"""How much memory there is, and whether an error says that there was too little."""

from __future__ import annotations

import os
from pathlib import Path

import torch

SHARE = 0.9
"""Of the free memory that a run may plan with: the allocator's rounding, and other programs, need the rest."""


def free_bytes(device: torch.device) -> int:
    """Bytes that a run on `device` can have now, with what torch holds there unused."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return host_free_bytes()


def host_free_bytes() -> int:
    """Available memory of the computer, and what a limit on this process (`ulimit -v`, a container) leaves of it."""
    import psutil

    free = int(psutil.virtual_memory().available)
    return min(free, *_limits(psutil.Process(os.getpid()).memory_info()))


def _limits(used: object) -> list[int]:
    found = [1 << 62]
    try:
        import resource
    except ImportError:  # Windows
        return found
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(max(limit - int(getattr(used, "vms", 0)), 0))
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = Path(limit_file).read_text(), Path(used_file).read_text()
            found.append(max(int(most) - int(now), 0))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Of torch's allocators, or of Python's own."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    told = str(error).lower()
    marks = ("not enough memory", "can't allocate memory", "out of memory", "could not create a memory", "bad_alloc")
    return isinstance(error, RuntimeError) and any(mark in told for mark in marks)


def release_cached(device: torch.device) -> None:
    """Give back what torch holds unused, so that a smaller plan finds room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
