"""An allocator that refuses, on any device: it sees every tensor that torch makes, and says no when it is told to."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import optimizer as optimizers
from torch.utils._python_dispatch import TorchDispatchMode

from lib_trainer.config import JobConfig
from lib_trainer.ports import Host
from lib_trainer.refusals import TrainerError
from lib_trainer.training.plan import prepare
from lib_trainer.training.run import run_plan
from lib_trainer.training.session import Session
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control


class Allocator(TorchDispatchMode):
    """Counts the bytes of storages that are made while it is on, and refuses some of them.

    Armed by `trigger`, a moment of a run; then the `number`-th allocation is refused, and where the fault is `lasting`
    every later one, until the model was put back: the device is full and stays so.

    Triggers: `start`; `phase NAME`; `started`; `step N` (the event); `backward N` (the Nth backward pass); `optimizer
    N` (the optimizer's Nth step); `preview` and `after preview`; `leaving` (the model is about to be put back).
    """

    def __init__(self, trigger: str = "", number: int = 1, lasting: bool = False) -> None:
        super().__init__()
        self.trigger, self.number, self.lasting = trigger, number, lasting
        self.refused = 0
        self.armed = trigger == "start"
        self.left = number
        self.made: dict[int, Any] = {}
        self.passes = self.steps = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and torch's guard around each operation costs as much as this."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "mse_loss_backward" in str(func):
            self.passes += 1
            self.reached(f"backward {self.passes}")
        given = {one.untyped_storage()._cdata for one in _tensors((*args, *(kwargs or {}).values()))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors((out,)):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage.nbytes():
                self._allocated(storage)
        return out

    def reached(self, moment: str) -> None:
        self.armed = self.armed or moment == self.trigger

    def disarm(self) -> None:
        """The model was put back: whatever was to be refused until then has been."""
        if self.refused or self.trigger == "leaving":
            self.armed = False

    def _allocated(self, storage: Any) -> None:
        if self.armed:
            self.left -= 1
            if self.left <= 0:
                self.refused += 1
                self.armed = self.lasting
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")
        self.made[storage._cdata] = torch.multiprocessing.reductions.StorageWeakRef(storage)

    def alive(self, *roots: nn.Module) -> int:
        """How many of the storages made are there still, but for those that the modules hold."""
        own = {tensor.untyped_storage()._cdata for root in roots for tensor in (*root.parameters(), *root.buffers())}
        return sum(not ref.expired() for address, ref in self.made.items() if address not in own)


def _tensors(values: tuple[Any, ...]) -> Iterator[torch.Tensor]:
    """Those with memory of their own, also inside lists: what an operation of torch takes and gives nests no deeper."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.layout is torch.strided and value.device.type == "cpu":
                yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(tuple(value))


@contextlib.contextmanager
def watching(allocator: Allocator, host: Any) -> Iterator[Callable[[ev.Event], None]]:
    """Tell an allocator of the moments of a run. Yields the listener that the run must have."""
    real_exit, real_preview = Session.__exit__, host.preview

    def leave(self: Session, *error: Any) -> None:
        allocator.reached("leaving")
        real_exit(self, *error)
        allocator.disarm()

    def preview(request: Any) -> Any:
        allocator.reached("preview")
        torch.zeros(8)  # a host whose previews are blank allocates as well
        picture = real_preview(request)
        allocator.reached("after preview")
        return picture

    def before_optimizer(*_: Any) -> None:
        allocator.steps += 1
        allocator.reached(f"optimizer {allocator.steps}")

    def listen(event: ev.Event) -> None:
        if isinstance(event, ev.Phase):
            allocator.reached(f"phase {event.name}")
        elif isinstance(event, ev.Started):
            allocator.reached("started")
        elif isinstance(event, ev.StepDone):
            allocator.reached(f"step {event.step}")

    hook = optimizers.register_optimizer_step_pre_hook(before_optimizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "__exit__", leave)
        patch.setattr(host, "preview", preview)
        try:
            yield listen
        finally:
            hook.remove()


def run_with(allocator: Allocator, host: Host, job: JobConfig, listeners: list[ev.Listener]) -> TrainerError | None:
    """Run a job in this thread, without the garbage collector's own turns. Returns the error it ended with."""
    plan = prepare(job, host)
    gc.collect()
    gc.disable()
    try:
        with watching(allocator, host) as listen, allocator:
            run_plan(plan, host, Control(), lambda event: [one(event) for one in (*listeners, listen)] and None)
    except TrainerError as error:
        return error
    finally:
        gc.enable()
    return None
