"""The WebUI's buttons while a run goes on: which of them end it, and what the others do.

Interrupt is one flag for the whole WebUI, without a word on what it is meant for. While a picture waits in the queue
behind a run, it is meant for that picture, so the picture is taken out; only where none waits does it end the run.

"Apply and restart UI" of the Extensions tab ends the process at once, and so do the API's server-kill and
server-restart, and Ctrl-C in its console; after server-stop it ends as soon as its main thread has. A run is stopped
first, and keeps what it has.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from modules import progress, sd_models, shared

from lib_trainer.patching import attribute
from lib_trainer.refusals import ModelError, Sentence

logger = logging.getLogger(__name__)

BUTTON = Sentence("host.interrupt")
ENDING_SECONDS = 300
"""The most that the end of the process waits for a run to write its file."""


class Interrupts:
    """Of one run. `own` is its task in the WebUI's queue."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._over = threading.Event()
        self.ending = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(attribute(shared.state, "interrupt", self._pressed))
            if hasattr(shared.state, "stop_generating"):
                stack.enter_context(attribute(shared.state, "stop_generating", self._pressed))
            for name in ("send_model_to_cpu", "send_model_to_device"):
                if hasattr(sd_models, name):
                    stack.enter_context(attribute(sd_models, name, _not_now))
            api = sys.modules.get("modules.api.api")
            for name in ("train_embedding", "train_hypernetwork"):
                if hasattr(api, name):
                    stack.enter_context(attribute(api, name, _not_beside_a_run))
            stack.callback(self._over.set)
            _under_way.append(self)
            stack.callback(_under_way.remove, self)
            atexit.register(self.end)
            stack.callback(atexit.unregister, self.end)
            with contextlib.suppress(ImportError, AttributeError):  # since the WebUI 1.3.1
                restart = importlib.import_module("modules.restart")
                ends = functools.partial(self.end, restart.stop_program)
                stack.enter_context(attribute(restart, "stop_program", ends))
            yield

    def end(self, leave: Callable[[], object] = lambda: None) -> None:
        """The process is about to end, by `leave` or by itself."""
        logger.warning("The WebUI ends: the training run is stopped first, and what it has learned is kept.")
        self.ending = True
        type(shared.state).interrupt(shared.state)
        if not self._over.wait(ENDING_SECONDS):
            logger.warning("The training run has not ended within %d s, and is given up.", ENDING_SECONDS)
        leave()

    def _pressed(self) -> None:
        if sys._getframe(1).f_code.co_name == "request_restart":
            return  # "Reload UI" interrupts first and then reloads, but a run outlives its page
        waiting = next((task for task in progress.pending_tasks if task != self._own), None)
        if waiting is None:
            type(shared.state).interrupt(shared.state)
        else:
            take_out(waiting)


_under_way: list[Interrupts] = []


def heed_ctrl_c() -> None:
    """Ctrl-C in the console stops a run first, and the next one ends the WebUI at once.

    Does nothing outside of the main thread, where it was done before, and where the WebUI has no handler of its own, so
    that its main thread hears of Ctrl-C as an exception.
    """
    own: Any = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(own):
        return
    if own is signal.default_int_handler or hasattr(own, _WITHOUT):
        return

    def pressed(number: int, frame: Any) -> None:
        for run in [one for one in _under_way if not one.ending]:
            run.end()
        own(number, frame)

    setattr(pressed, _WITHOUT, own)
    signal.signal(signal.SIGINT, pressed)


def leave_ctrl_c() -> None:
    """Undo `heed_ctrl_c`, unless somebody has put another handler there."""
    own = getattr(signal.getsignal(signal.SIGINT), _WITHOUT, None)
    if own is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, own)


_WITHOUT = "_trainer_without"
_taken_out: set[str] = set()


def take_out(task: str) -> None:
    """The page of a task that waits is told that it has ended; when its turn comes it ends at once, drawing nothing."""
    progress.pending_tasks.pop(task, None)
    progress.finish_task(task)
    _taken_out.add(task)
    shared.state.begin = _begin
    logger.info("Interrupt: %s was taken out of the queue, and the training run goes on.", task)


def _begin(job: str = "(unknown)") -> None:
    """`State.begin`, by which a task's turn begins. The API does not say there which task it is, but it knows."""
    state = shared.state
    type(state).begin(state, job)
    task = job if job in _taken_out else sys._getframe(1).f_locals.get("task_id")
    if task in _taken_out:
        _taken_out.discard(task)
        state.interrupted = True
    if not _taken_out:
        vars(state).pop("begin", None)


def _not_now(*_: Any, **__: Any) -> None:
    """Unload and Load (Settings, Actions; /sdapi/v1/unload-checkpoint) do not wait in the queue."""
    logger.warning("The checkpoint stays where it is while a training run has it: unload it when the run has ended.")


def _not_beside_a_run(*_: Any, **__: Any) -> Any:
    """The API's own training does not wait in the queue, as the Train tab's does: two would train in one model."""
    raise ModelError("host.training")
