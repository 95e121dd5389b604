"""Free bytes, running out of them, and what an error keeps alive."""

from __future__ import annotations

import errno
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lib_trainer import memory
from lib_trainer.memory import (
    chain,
    forget_peak,
    free_bytes,
    host_free_bytes,
    is_out_of_memory,
    peak_bytes,
    release,
    release_cached,
)

CPU = torch.device("cpu")


def windows(code: int) -> OSError:
    error = OSError("The paging file is too small for this operation to complete")
    error.winerror = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("HIP out of memory. Tried to allocate 1.00 GiB (GPU 0)"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1.00 GB)"),
        RuntimeError("XPU out of memory. Tried to allocate 1.00 GiB"),
        RuntimeError("Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)"),
        RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
        RuntimeError("CUDA driver error: cudaErrorMemoryAllocation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("hipErrorOutOfMemory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not create a memory object"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("Could not allocate tensor with 41943040 bytes. There is not enough GPU video memory available!"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        windows(1455),
    ],
    ids=lambda error: str(error)[:30],
)
def test_every_way_to_say_that_memory_is_short(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes do not match"),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        windows(112),
    ],
    ids=str,
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_real_allocation_that_is_too_large_is_one() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as caught_too:
        np.empty(1 << 58, np.uint8)
    assert is_out_of_memory(caught_too.value)


def test_plain_cuda_gets_its_number_as_torch_before_2_3_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(device: torch.device) -> tuple[int, int]:
        if device.index is None:  # what torch 2.1.2 says
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
        return 1000, 9000

    monkeypatch.setattr(torch.cuda, "mem_get_info", told)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700 if device.index == 1 else 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 500 if device.index == 1 else 0)
    assert free_bytes(torch.device("cuda")) == 1200
    assert free_bytes(torch.device("cuda", 0)) == 1000


def test_other_devices_that_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(
        mem_get_info=lambda device: (100, 900), memory_reserved=lambda device: 30, memory_allocated=lambda device: 10
    )
    monkeypatch.setattr(torch, "xpu", told, raising=False)
    assert free_bytes(torch.device("xpu")) == 120
    monkeypatch.setattr(torch, "xpu", SimpleNamespace(), raising=False)  # torch before 2.6 does not tell
    assert free_bytes(torch.device("xpu")) == pytest.approx(host_free_bytes(), rel=0.5)
    monkeypatch.setattr(torch, "privateuseone", told, raising=False)  # a plug-in's, as Ascend's
    assert free_bytes(torch.device("privateuseone")) == 120
    apple = SimpleNamespace(recommended_max_memory=lambda: 50, current_allocated_memory=lambda: 20)
    monkeypatch.setattr(torch, "mps", apple)
    assert free_bytes(torch.device("mps")) == 30


@pytest.mark.parametrize("kind", ["cuda", "xpu", "privateuseone"])
def test_the_peak_is_counted_anew_on_the_device_that_is_used(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, peaks = torch.device(kind, 1), {0: 70, 1: 90}

    def reset(which: torch.device) -> None:
        peaks[which.index] = 20

    told = {"max_memory_allocated": lambda which: peaks[which.index], "reset_peak_memory_stats": reset}
    if not hasattr(torch, kind):
        monkeypatch.setattr(torch, kind, SimpleNamespace(), raising=False)
    for name, function in told.items():
        monkeypatch.setattr(getattr(torch, kind), name, function, raising=False)
    assert peak_bytes(device) == 90
    forget_peak(device)
    assert peak_bytes(device) == 20 and peaks[0] == 70


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps", "privateuseone"])
def test_what_torch_keeps_unused_is_given_back(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    monkeypatch.setattr(torch, kind, SimpleNamespace(empty_cache=lambda: emptied.append(kind)), raising=False)
    release_cached(torch.device(kind))
    release_cached(CPU)
    assert emptied == [kind]


@pytest.mark.parametrize("kind", ["cpu", "mps", "privateuseone", "xpu"])
def test_devices_that_count_no_peak_have_none_to_forget(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's and the processor's say what is in use now; torch before 2.6 says nothing of Intel's."""
    monkeypatch.setattr(torch, "xpu", SimpleNamespace(), raising=False)
    monkeypatch.setattr(torch, "mps", SimpleNamespace(current_allocated_memory=lambda: 40))
    device: Any = SimpleNamespace(type=kind)
    forget_peak(device)
    assert peak_bytes(device) == 40 if kind == "mps" else peak_bytes(device) > 1 << 20


def test_a_containers_limit_counts_without_its_file_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tuple(tmp_path / name for name in ("max", "current", "stat"))
    monkeypatch.setattr(memory, "CGROUPS", ((*map(str, files),),))
    for file, text in zip(files, ("5000", "4500", "anon 1\ninactive_file 300\nactive_file 7\n"), strict=True):
        file.write_text(text)
    assert host_free_bytes() == 800
    files[0].write_text("max\n")
    assert host_free_bytes() > 1 << 20
    files[0].unlink()
    assert host_free_bytes() > 1 << 20


def test_an_error_lets_go_of_what_its_frames_hold() -> None:
    held: list[Any] = []

    def inner() -> None:
        tensor = torch.zeros(8, requires_grad=True)
        held.append(weakref.ref(tensor))
        (tensor * 2).sum()
        raise RuntimeError("out of memory")

    def outer() -> None:
        graph = torch.ones(8, requires_grad=True) * 3
        held.append(weakref.ref(graph))
        try:
            inner()
        except RuntimeError as error:
            raise ValueError("wrapped") from error

    gc.disable()
    try:
        with pytest.raises(ValueError) as caught:
            outer()
        assert [one() is None for one in held] == [False, False], "the error holds them, or this test shows nothing"
        told = release(caught.value, CPU)
        assert "out of memory" in told and "in inner" in told and "wrapped" in told
        assert [one() is None for one in held] == [True, True]
        assert release(caught.value, CPU) == told, "whoever releases it again on its way out logs the same"
    finally:
        gc.enable()


def test_a_backward_pass_that_failed_leaves_no_graph_in_the_queue() -> None:
    """torch leaves the other branches of the graph in the thread's queue; nothing but a later pass takes them out."""

    def fail(gradient: torch.Tensor) -> None:
        raise RuntimeError("out of memory")

    leaf = torch.ones(8, requires_grad=True)
    first, second = leaf * 2, leaf * 3
    saved = second.exp()
    probe = torch.multiprocessing.reductions.StorageWeakRef(saved.untyped_storage())
    late = first * 1
    late.register_hook(fail)
    total = (saved + late).sum()
    try:
        total.backward()
    except RuntimeError as error:
        del saved, second, total, first, late
        assert not probe.expired(), "the queue holds it, or this test shows nothing"
        release(error, CPU)
    assert probe.expired()


def test_the_chain_of_an_error_that_is_its_own_context_ends() -> None:
    one, other = ValueError("one"), KeyError("other")
    one.__context__, other.__cause__ = other, one
    assert [str(error) for error in chain(one)] == ["one", "'other'"]
