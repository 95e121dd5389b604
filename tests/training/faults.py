"""Memory that runs out when it is told to: an allocator that refuses on the CPU, and a real card that is full."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.optim import optimizer as optimizers
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lib_trainer.config import JobConfig
from lib_trainer.ports import Host
from lib_trainer.refusals import TrainerError
from lib_trainer.training.plan import prepare
from lib_trainer.training.run import run_plan
from lib_trainer.training.session import Session
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control

CPU = torch.device("cpu")


class Allocator(TorchDispatchMode):
    """Counts the bytes of storages that are made while it is on, and refuses some of them.

    Armed by `trigger`, a moment of a run; then the `number`-th allocation is refused, and where the fault is `lasting`
    every later one, until the model was put back: the device is full and stays so.

    `device`: of the tensors that are counted.

    Triggers: `start`; `phase NAME`; `started`; `step N` (the event); `backward N` (the Nth backward pass); `optimizer
    N` (the optimizer's Nth step); `preview` and `after preview`; `leaving` (the model is about to be put back).
    """

    def __init__(self, trigger: str = "", number: int = 1, lasting: bool = False, device: torch.device = CPU) -> None:
        super().__init__()
        self.trigger, self.number, self.lasting, self.device = trigger, number, lasting, device
        self.refused = 0
        self.armed = trigger == "start"
        self.left = number
        self.made: dict[int, Any] = {}
        self.passes = self.steps = 0

    own: Sequence[nn.Module] = ()

    def free(self) -> None:
        """Whatever is still to be refused, nothing more is."""
        self.armed = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and torch's guard around each operation costs as much as this."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "mse_loss_backward" in str(func):
            self.passes += 1
            self.reached(f"backward {self.passes}")
        kind = self.device.type
        given = {one.untyped_storage()._cdata for one in _tensors((*args, *(kwargs or {}).values()), kind)}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors((out,), kind):
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


class FullCard(Allocator):
    """The same on a card, whose own allocator refuses: all that is free is taken when only the `number`-th tensor is
    still to be made, and given back when the fault is over, which is after one refusal unless it is `lasting`.

    What a run has sent away of the host's modules, `own`, without anything else in its place, has left its room on the
    card, which is the host's: nothing else has it while the run does not, and it is free again when the model is put
    back.
    """

    _current: ClassVar[FullCard | None] = None
    _watched = False

    def __init__(self, trigger: str, number: int, lasting: bool, device: torch.device) -> None:
        super().__init__(trigger, number, lasting, device)
        self._taken: list[torch.Tensor] = []
        self._room: list[torch.Tensor] = []
        self._filling = False
        FullCard._current = self
        if not FullCard._watched:
            torch._C._cuda_attach_out_of_memory_observer(FullCard._seen)
            FullCard._watched = True

    @staticmethod
    def _seen(*_: int) -> None:
        """Called by torch's allocator on every refusal, before it is raised."""
        now = FullCard._current
        if now is not None and now._taken and not now._filling:
            now.refused += 1
            if not now.lasting:
                now.free()

    def reached(self, moment: str) -> None:
        super().reached(moment)
        self._look()
        if moment == "leaving":
            self._room.clear()

    def disarm(self) -> None:
        super().disarm()
        if not self.armed:
            self.free()

    def _allocated(self, storage: Any) -> None:
        self.made[storage._cdata] = torch.multiprocessing.reductions.StorageWeakRef(storage)
        self.left -= self.armed
        self._look()

    def _look(self) -> None:
        if self.armed and self.left <= 1 and not self._taken:
            self._filling = True
            try:
                self._fill()
            finally:
                self._filling = False

    def _fill(self) -> None:
        """First room for what comes back, in pieces of its sizes, then all that is left in ever smaller pieces."""
        with _disable_current_modes():
            held = (parameter for root in self.own for parameter in root.parameters())
            away = [one for one in held if one.device.type != self.device.type]
            self._room = [torch.empty(one.nbytes, dtype=torch.uint8, device=self.device) for one in away]
            torch.cuda.empty_cache()
            whole = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved(self.device) / whole, self.device)
            for size in (2**shift for shift in range(26, 8, -1)):
                with contextlib.suppress(torch.cuda.OutOfMemoryError):
                    while True:
                        piece = torch.empty(size, dtype=torch.uint8, device=self.device)
                        self._taken.append(piece)

    def free(self) -> None:
        self._taken.clear()
        self._room.clear()
        super().free()
        torch.cuda.set_per_process_memory_fraction(1.0, self.device)


def _tensors(values: tuple[Any, ...], kind: str) -> Iterator[torch.Tensor]:
    """Those with memory of their own, also inside lists: what an operation of torch takes and gives nests no deeper."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.layout is torch.strided and value.device.type == kind:
                yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(tuple(value), kind)


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
        torch.zeros(8, device=host.device())  # a host whose previews are blank allocates as well
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
