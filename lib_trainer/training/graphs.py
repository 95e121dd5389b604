"""Passes that a card repeats by itself: forward, loss and backward, recorded once for each form that they have.

A step is thousands of small operations, and a fast card is done with one before Python has sent the next. A recorded
pass (a CUDA graph) is sent as one, and computes what it was recorded from on the numbers that lie in its inputs then.
What a pass hangs on besides those numbers is its form: shapes, what gets gradients, where parameters lie. Forms that
come too seldom, what cannot be recorded, and whatever follows an error are computed as ever.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import nn

from lib_trainer.config import JobConfig
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.memory import free_bytes, indexed, is_out_of_memory, peak_bytes, release, release_cached
from lib_trainer.ports import Conditioning
from lib_trainer.refusals import one_line
from lib_trainer.torch_version import torch_version
from lib_trainer.training.objective import Noised

logger = logging.getLogger(__name__)

Work = Callable[[Noised, Conditioning], torch.Tensor]
"""One pass: returns the loss, and adds gradients to the parameters' and to those of what the UNet is told."""

PROVED = (2, 11)
"""The torch that records have been proved with, on a card: older ones record when they are asked to."""
MOST = 8
"""Forms that are recorded in one run."""
PAYS = 64
"""Passes to come of a form from which on recording it, which costs as much as a few of them, is worth it."""
SEEN = 2
"""Passes of a form before it is recorded: what is made at the first use of anything is there by then."""
CLOSE = 1e-2
"""Relative difference between a pass and its first repetition up to which they are the same: sums on a card differ."""


class Recorder(Protocol):
    """A device that records."""

    def has_room(self) -> bool:
        """Whether what is recorded may take as much memory as a pass, and others find as much beside it."""

    def tried(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Do the work where it will be recorded, so that what is made at the first use is made outside of a record."""

    def recorded(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """What the work returns, with no sense yet, and what repeats it, into the same memory. Nothing is computed."""

    def forget(self) -> None:
        """Give back the memory of all that was recorded; none of it is repeated any more."""


@dataclass(frozen=True)
class _Pass:
    """A recorded pass. `work` is kept for all that the record reads: parameters, the scaler's scale."""

    work: Work
    noised: Noised
    told: Conditioning
    loss: torch.Tensor
    leaves: Sequence[nn.Parameter]
    repeat: Callable[[], None]


class Graphs:
    """What is recorded of one run's passes. One that fails, or takes memory that others need, is the last one."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder, self._on, self._used = recorder, True, False
        self._passes: dict[Hashable, _Pass] = {}
        self._buffers: dict[nn.Parameter, torch.Tensor] = {}
        """Where gradients arrive: one place for all forms."""
        self._seen, self._count = Counter[int](), 0
        self._failure = ""

    @property
    def holds(self) -> int:
        """Forms that are recorded now."""
        return len(self._passes)

    def take_failure(self) -> str:
        """Why nothing is recorded any more, where something went wrong; told once."""
        told, self._failure = self._failure, ""
        return told

    def passed(
        self, work: Work, noised: Noised, told: Conditioning, leaves: Sequence[nn.Parameter], left: int, form: Hashable
    ) -> torch.Tensor:
        """`work(noised, told)`, and the backward pass through what `told` was made by.

        `leaves` may get gradients; `left` passes are to come; `form` is what `work` hangs on besides what it is given.
        """
        key = form, tuple(_shapes(noised)), tuple(_shapes(told)), tuple(_places(leaves))
        self._count += 1
        known = self._passes.get(key)
        if known is None and self._worth(key, left) and all(leaf.grad is None for leaf in leaves):
            known = self._record(key, work, noised, told, leaves)
        if known is None:
            return work(noised, told)
        return self._repeat(known, noised, told)

    def forget(self) -> None:
        """Before parameters get another place or others need the memory: what comes again is recorded anew."""
        self._passes.clear()
        self._buffers.clear()
        if self._used:
            self._used = False
            self._recorder.forget()

    def gives_way(self, error: BaseException, device: torch.device) -> bool:
        """After an error of a step that may be done again without what was recorded: it took the memory."""
        if not (self._passes and is_out_of_memory(error)):
            return False
        self._give_up(error, device)
        return True

    def _worth(self, key: Hashable, left: int) -> bool:
        if not self._on:
            return False
        self._seen[hash(key)] += 1  # not the key: where places change with every step there are as many as steps
        known = self._seen[hash(key)]
        return known > SEEN and len(self._passes) < MOST and known * left >= PAYS * self._count

    def _record(
        self, key: Hashable, work: Work, noised: Noised, told: Conditioning, leaves: Sequence[nn.Parameter]
    ) -> _Pass | None:
        if not self._recorder.has_room():
            self._on = False
            return None
        self._used = True
        try:
            self._passes[key] = known = self._made(work, noised, told, leaves)
        except Exception as error:
            for leaf in leaves:
                leaf.grad = None
            self._give_up(error, noised.latents.device)
            return None
        return known

    def _made(self, work: Work, noised: Noised, told: Conditioning, leaves: Sequence[nn.Parameter]) -> _Pass:
        own_noised, own_told = noised.each(torch.clone), told.each(_input)
        run = lambda: work(own_noised, own_told)  # noqa: E731
        first = self._recorder.tried(run)
        arrived = {leaf: leaf.grad for leaf in leaves if leaf.grad is not None}
        expected = _numbers(first, arrived)
        for leaf, gradient in arrived.items():
            leaf.grad = self._buffers.setdefault(leaf, gradient)
        loss, repeat = self._recorder.recorded(run)
        for leaf in leaves:
            leaf.grad = None
        made = _Pass(work, own_noised, own_told, loss, list(arrived), repeat)
        found = _numbers(self._repeat(made, noised, told.each(torch.detach)), arrived)
        if not torch.allclose(found, expected, rtol=CLOSE, atol=0, equal_nan=True):
            raise RuntimeError(f"a recorded pass gave {found.tolist()} where it had given {expected.tolist()}")
        for leaf in leaves:
            leaf.grad = None
        return made

    def _repeat(self, known: _Pass, noised: Noised, told: Conditioning) -> torch.Tensor:
        for own, new in zip(_tensors(known.noised), _tensors(noised), strict=True):
            own.copy_(new)
        with torch.no_grad():
            for own, new in zip(_tensors(known.told), _tensors(told), strict=True):
                own.copy_(new)
                if own.grad is not None:
                    own.grad.zero_()
        for leaf in known.leaves:
            buffer = self._buffers[leaf]
            if leaf.grad is None:
                leaf.grad = buffer.zero_()
            elif leaf.grad is not buffer:
                leaf.grad = buffer.copy_(leaf.grad)
        known.repeat()
        pairs = zip(_tensors(told), _tensors(known.told), strict=True)
        through = [(new, own.grad) for new, own in pairs if new.requires_grad and own.grad is not None]
        if through:
            torch.autograd.backward([new for new, _ in through], [gradient for _, gradient in through])
        return known.loss.clone()

    def _give_up(self, error: BaseException, device: torch.device) -> None:
        self._on, self._failure = False, one_line(error)
        logger.warning("Steps are no longer recorded\n%s", release(error, device))
        self.forget()


def _tensors(of: Noised | Conditioning) -> Iterator[torch.Tensor]:
    found = (getattr(of, one.name) for one in fields(of))
    return (one for one in found if one is not None)


def _shapes(of: Noised | Conditioning) -> Iterator[Hashable]:
    for one in fields(of):
        value = getattr(of, one.name)
        yield None if value is None else (value.shape, value.dtype, value.requires_grad)


def _places(leaves: Sequence[nn.Parameter]) -> Iterator[Hashable]:
    """An optimizer may put parameters elsewhere, and a record would read where they were."""
    return ((leaf.data_ptr(), leaf.requires_grad) for leaf in leaves)


def _input(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _numbers(loss: torch.Tensor, leaves: Iterable[nn.Parameter]) -> torch.Tensor:
    """By which a pass is known again: its loss and the norms of its gradients."""
    return torch.stack([loss.float(), *(leaf.grad.float().norm() for leaf in leaves if leaf.grad is not None)])


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all runs: libraries keep room for each stream that they were used on."""
    return torch.cuda.Stream(device)


class CudaRecorder:
    """CUDA graphs, which share one pool of memory: none is repeated while another one is.

    Recording is this thread's alone (`thread_local`): what a host's other threads do with the card goes on meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, _stream(device)
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._pool: Any = None
        self._pass = 0
        """Bytes of the largest pass so far."""

    def has_room(self) -> bool:
        used = peak_bytes(self._device) - torch.cuda.memory_allocated(self._device)
        self._pass = max(self._pass, used)  # after a preview the peak is counted anew
        return free_bytes(self._device) >= 2 * self._pass

    def tried(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        release_cached(self._device)  # what is cached of another stream's is of no use to this one
        usual = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            out = work()
        usual.wait_stream(self._stream)
        return out

    def recorded(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        torch.cuda.synchronize(self._device)
        release_cached(self._device)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.stream(self._stream):
            try:
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                out = work()
                graph.capture_end()
            except BaseException:
                with contextlib.suppress(Exception):  # it says that recording was broken off
                    graph.capture_end()
                del graph
                with contextlib.suppress(Exception):  # the first error is told
                    _unrecord(indexed(self._device), self._pool)
                raise
        self._graphs.append(graph)
        logger.info("Passes of form %d are recorded", len(self._graphs))
        return out, graph.replay

    def forget(self) -> None:
        torch.cuda.synchronize(self._device)
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        self._pool = None
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if clear is not None:  # cuBLAS keeps room for each stream that it was used on
            clear()
        release_cached(self._device)


def _unrecord(device: torch.device, pool: Any) -> None:
    """After a recording that CUDA has broken off, on the stream of it: torch before 2.12 leaves its allocator and its
    generator as if it went on, and from then on refuses the whole process to empty its cache or to draw a number.
    """
    if _end_allocating(device.index, pool):
        torch._C._cuda_releasePool(device.index, pool)
    one = torch.zeros(1, device=device)
    last = torch.cuda.CUDAGraph()  # one that ends well sets the generator right
    last.capture_begin(pool=torch.cuda.graph_pool_handle(), capture_error_mode="thread_local")
    one.add_(1)
    last.capture_end()
    last.reset()


def _end_allocating(device: int, pool: Any) -> bool:
    """Whether torch's allocator had still to be told that nothing is recorded into `pool` any more."""
    bindings: Any = torch._C
    end = getattr(bindings, "_cuda_endAllocateToPool", None)  # from 2.8 on
    end = end or getattr(bindings, "_cuda_endAllocateCurrentStreamToPool", None)
    if end is None:
        return False
    try:
        end(device, pool)
    except TypeError:  # before 2.2 it counts streams, and would count one too few
        try:
            torch.cuda.empty_cache()
        except RuntimeError:
            end(device)
            return True
        return False
    except RuntimeError:  # it was told
        return False
    return True


def recorder_for(device: torch.device) -> Recorder | None:
    """None where nothing is recorded: on all but NVIDIA's cards."""
    records = device.type == "cuda" and torch.version.hip is None
    return CudaRecorder(device) if records else None


def graphs_for(job: JobConfig, recipe: Recipe, device: torch.device) -> Graphs | None:
    """None also where something besides its inputs tells a pass from the one before, or it asks the host for
    something."""
    asks = recipe.draws or job.loss.learned_weights or job.training.gradient_checkpointing
    wanted = job.training.cuda_graphs
    if asks or wanted == "off" or (wanted == "auto" and torch_version() < PROVED):
        return None
    recorder = recorder_for(device)
    return None if recorder is None else Graphs(recorder)
