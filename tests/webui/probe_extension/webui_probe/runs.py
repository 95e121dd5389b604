"""Training runs from inside the WebUI, with faults put in their way."""

from __future__ import annotations

import builtins
import contextlib
import errno
import hashlib
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import safetensors
import safetensors.torch
import torch
from modules import devices, processing, sd_models, shared

from lib_trainer.config import from_values
from lib_trainer.ports import Host
from lib_trainer.refusals import TrainerError
from lib_trainer.training import finder
from lib_trainer.training.desk import TrainingDesk, process_desk
from lib_trainer.training.steps_grid_settings import StepsGridSettings
from lib_trainer.work import events
from webui_probe.leftovers import leave

CHECKS = ("run", "start", "view", "wait", "command", "restart", "find_rate", "steps_grid")


def run(
    values: dict[str, Any],
    fault: str = "",
    at_step: dict[str, str] | None = None,
    without: list[str] | None = None,
    timeout: float = 300,
    repeats: bool = False,
) -> dict[str, Any]:
    """A run from the click to its end. `fault`: one of `FAULTS`. `at_step`: {step: one of `COMMANDS`}. `repeats`: what
    is learned does not hang on the order in which a card adds.

    `without`: context managers of ours ("module:name") that are taken out, to see that a test notices.
    """
    watch = Watch(at_step or {}, raises=fault == "listener")
    with contextlib.ExitStack() as stack:
        for path in without or []:
            stack.enter_context(_taken_out(path))
        if fault in FAULTS:
            stack.enter_context(FAULTS[fault]())
        if repeats and devices.device.type != "cpu":
            stack.enter_context(repeatable())
        reads = stack.enter_context(checkpoint_reads())
        try:
            runner().start(from_values(values), watch)
        except TrainerError as error:
            return {"refused": str(error)}
        runner().wait(timeout)
    return view() | {"facts": watch.facts, "reads": reads}


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """torch's ways of adding that take the same order each time, where it has them."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def start(values: dict[str, Any]) -> str:
    """Start a run and return; a sentence if it was refused."""
    try:
        runner().start(from_values(values))
    except TrainerError as error:
        return str(error)
    return ""


def wait(timeout: float = 120) -> dict[str, Any]:
    runner().wait(timeout)
    return view()


def find_rate(values: dict[str, Any], timeout: float = 300) -> dict[str, Any]:
    """A search for a learning rate, to its end: of three rates at a few points, as the host is what counts here."""
    with mock.patch.multiple(finder, FIRST=(0.1, 1.0, 10.0), MOST=2, PAIRS=4, SEEDS=1):
        runner().find_rate(from_values(values))
        seen = runner().searches.wait(timeout)
    tried = getattr(seen.result, "tried", ()) if seen else ()
    return {"state": seen.state if seen else "", "error": str(seen.error) if seen else "", "tried": len(tried)}


def steps_grid(values: dict[str, Any], settings: dict[str, Any], timeout: float = 300) -> dict[str, Any]:
    """What a job has saved, drawn beside each other."""
    runner().draw_steps(from_values(values), StepsGridSettings(**settings))
    seen = runner().grids.wait(timeout)
    assert seen is not None
    return {
        "state": seen.state,
        "error": str(seen.error),
        "output": str(seen.output),
        "notes": list(map(str, seen.notes)),
    }


def command(name: str) -> None:
    COMMANDS[name]()


def view() -> dict[str, Any]:
    """The run as the page would see it."""
    seen = runner().view()
    if seen is None:
        return {}
    return {
        "run": seen.id, "name": str(seen.name), "state": seen.state, "step": seen.step,
        "phase": str(seen.progress.name) if seen.progress else "",
        "error": str(seen.error), "log": list(map(str, seen.log)),
        "output": None if seen.output is None else str(seen.output),
        "previews": [hashlib.sha256(preview.image.tobytes()).hexdigest() for preview in seen.previews],
        "running": runner().running,
        "grid": None if seen.grid is None else str(seen.grid),
        "held_out": len(seen.held_out),
    }  # fmt: skip


def restart() -> None:
    """What the button "Reload UI" does, once this answer is out."""
    threading.Timer(0.2, shared.state.request_restart).start()


def _never() -> Host:
    raise AssertionError("the page has made the desk")


def runner() -> TrainingDesk:
    return process_desk(_never)


def _choose_the_other_checkpoint() -> None:
    """As the menu does it: the setting changes at once, and the loading waits in the queue."""
    files = sd_models.checkpoints_list.values()
    other = next(info.title for info in files if Path(info.filename).name == "other.safetensors")
    threading.Thread(target=shared.opts.set, args=("sd_model_checkpoint", other)).start()


COMMANDS: dict[str, Callable[[], None]] = {
    "stop": lambda: runner().stop(),
    "save": lambda: runner().save(),
    "sample": lambda: runner().sample(),
    "interrupt": lambda: shared.state.interrupt(),
    "other checkpoint": _choose_the_other_checkpoint,
    "unload": lambda: sd_models.unload_model_weights(),
    "load": lambda: sd_models.send_model_to_device(shared.sd_model),
    "fp8": lambda: shared.opts.data.update(fp8_storage="Enable"),
    "reload": lambda: leave("half-way reload"),
}


class Watch:
    """A listener: gives commands at steps and notes how the host's model is held meanwhile."""

    def __init__(self, at_step: dict[str, str], *, raises: bool) -> None:
        self.at_step, self.raises = at_step, raises
        self.facts: dict[str, Any] = {}

    def __call__(self, event: events.Event) -> None:
        if not isinstance(event, events.StepDone):
            return
        info = sd_models.model_data.sd_model.sd_checkpoint_info
        self.facts["checkpoint"], self.facts["menu"] = Path(info.filename).name, shared.opts.sd_model_checkpoint
        parameters = list(sd_models.model_data.sd_model.parameters())
        self.facts["asking for gradients"] = sum(parameter.requires_grad for parameter in parameters)
        self.facts["with gradients"] = sum(parameter.grad is not None for parameter in parameters)
        if str(event.step) in self.at_step:
            COMMANDS[self.at_step[str(event.step)]]()
        if self.raises and event.step == 2:
            raise RuntimeError("the listener raised")


@contextlib.contextmanager
def checkpoint_reads() -> Iterator[list[str]]:
    """Names of the functions that opened a checkpoint file."""
    names = {info.filename for info in sd_models.checkpoints_list.values()}
    reads: list[str] = []

    def spied(function: Any, label: str) -> Any:
        def call(file: Any, *args: Any, **kwargs: Any) -> Any:
            if str(file) in names:
                reads.append(label)
            return function(file, *args, **kwargs)

        return call

    _audited.append((names, reads))
    try:
        with contextlib.ExitStack() as stack:
            for owner, name in ((safetensors, "safe_open"), (safetensors.torch, "safe_open"), (torch, "load")):
                stack.enter_context(mock.patch.object(owner, name, spied(getattr(owner, name), name)))
            yield reads
    finally:
        _audited.pop()


_audited: list[tuple[set[str], list[str]]] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    """Sees every open that goes through Python; safetensors' own are seen by the spies.

    A result's metadata names the checkpoint by a hash of 64 KiB of its file, which is no loading of it.
    """
    if event == "open" and _audited and str(args[0]) in _audited[-1][0]:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if Path(frame.f_code.co_filename).name == "metadata.py" and frame.f_code.co_name == "_base_model":
                return
            frame = frame.f_back
        _audited[-1][1].append("open")


if not getattr(builtins, "_webui_probe_audits", False):  # an audit hook cannot be removed
    builtins._webui_probe_audits = True  # type: ignore[attr-defined]
    sys.addaudithook(_audit)


def _taken_out(path: str) -> AbstractContextManager[Any]:
    module, name = path.split(":")
    return mock.patch.object(importlib.import_module(module), name, lambda *_: contextlib.nullcontext())


@contextlib.contextmanager
def _attention(late: Callable[[torch.Tensor], torch.Tensor], calls: int) -> Iterator[None]:
    """`late` changes what one attention layer in the middle of the UNet returns, from the given call on."""
    from lib_trainer.host.ldm import attention

    original, count = attention.attend, 0

    def attend(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        out = original(*args, **kwargs)
        return out if count < calls else late(out)

    with mock.patch.object(attention, "attend", attend):
        yield


def _exhausted(out: torch.Tensor) -> torch.Tensor:
    if out.is_cuda:
        return torch.empty(1 << 46, dtype=torch.uint8, device=out.device)  # more than any card has: a real refusal
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:83] DefaultCPUAllocator: can't allocate memory")


def _raises_in_backward(out: torch.Tensor) -> torch.Tensor:
    def raises(_: torch.Tensor) -> None:
        raise RuntimeError("the backward pass raised")

    if out.requires_grad:
        out.register_hook(raises)
    return out


def _full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _broken_decoder(*_: Any, **__: Any) -> None:
    raise RuntimeError("the decoder raised")


SECOND_STEP = 80
"""A call of an attention layer in the second step's forward pass: a step has 32, and 32 more with checkpointing."""
FAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nan": lambda: _attention(lambda out: out * float("nan"), SECOND_STEP),
    "memory": lambda: _attention(_exhausted, SECOND_STEP),
    "backward": lambda: _attention(_raises_in_backward, SECOND_STEP),
    "preview": lambda: mock.patch.object(processing, "decode_latent_batch", _broken_decoder),
    "save": lambda: mock.patch("lib_trainer.files._temporary", _full_disk),
}
