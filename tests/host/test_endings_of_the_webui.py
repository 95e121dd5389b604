"""What ends the WebUI's process while a run goes on, on stand-ins for its modules: the run keeps its file."""

from __future__ import annotations

import atexit
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from lib_trainer.refusals import ModelError

NAME = "lib_trainer.host.webui.interrupts"


class State:
    interrupted = False

    def interrupt(self) -> None:
        self.interrupted = True


@pytest.fixture
def webui(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Its modules by name, of which `restart` notes when the process would end."""
    names = ("modules", "modules.progress", "modules.sd_models", "modules.shared", "modules.restart")
    made: dict[str, Any] = {name.removeprefix("modules."): ModuleType(name) for name in names}
    made["shared"].state, made["progress"].pending_tasks = State(), {}
    made["ended"] = []
    made["restart"].stop_program = lambda: made["ended"].append("ended")
    for name in names:
        module = made[name.removeprefix("modules.")]
        monkeypatch.setitem(sys.modules, name, module)
        setattr(made["modules"], name.removeprefix("modules."), module)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield made
    sys.modules.pop(NAME, None)


def run_of(webui: dict[str, Any], ending: Callable[[], object]) -> list[str]:
    """What happens, in its order, where `ending` is called while a run goes on."""
    ours, going = importlib.import_module(NAME), threading.Event()
    ours.ENDING_SECONDS = 20

    def run() -> None:
        with ours.Interrupts("own").watched():
            going.set()
            while not webui["shared"].state.interrupted:
                threading.Event().wait(0.001)
            webui["ended"].append("saved")

    thread = threading.Thread(target=run)
    thread.start()
    assert going.wait(10)
    try:
        ending()
    finally:
        webui["shared"].state.interrupt()
        thread.join(10)
    return list(webui["ended"])


def test_the_apis_own_training_is_refused_beside_a_run(webui: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits in no queue, and would train in the same model."""
    api: Any = ModuleType("modules.api.api")
    api.train_embedding = api.train_hypernetwork = lambda *args: "trained"
    monkeypatch.setitem(sys.modules, "modules.api.api", api)

    def ask() -> None:
        for train in (api.train_embedding, api.train_hypernetwork):
            with pytest.raises(ModelError, match="training run has the model"):
                train("id", "name")

    run_of(webui, ask)
    assert api.train_embedding() == api.train_hypernetwork() == "trained"


def test_apply_and_restart_waits_for_the_file(webui: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    own = webui["restart"].stop_program
    assert run_of(webui, lambda: webui["restart"].stop_program()) == ["saved", "ended"]
    assert webui["restart"].stop_program is own
    assert "stopped first" in caplog.text and "given up" not in caplog.text


def test_the_end_of_the_main_thread_waits_for_the_file(webui: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the API's server-stop. Later ends wait for nothing."""
    called: list[Callable[[], object]] = []
    monkeypatch.setattr(atexit, "register", called.append)
    monkeypatch.setattr(atexit, "unregister", called.remove)
    assert run_of(webui, lambda: [webui["ended"].append("asked"), called[0](), webui["ended"].append("gone")]) == [
        "asked", "saved", "gone",
    ]  # fmt: skip
    assert called == []


def test_a_run_that_does_not_end_is_given_up(webui: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = importlib.import_module(NAME)
    monkeypatch.setattr(ours, "ENDING_SECONDS", 0.001)
    with ours.Interrupts("own").watched():
        webui["restart"].stop_program()
    assert webui["ended"] == ["ended"]


def test_a_webui_without_that_module(webui: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modules.restart", None)
    with importlib.import_module(NAME).Interrupts("own").watched():
        pass


def test_ctrl_c_waits_for_the_file_and_a_second_one_does_not(
    webui: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handlers: list[Any] = [lambda number, frame: webui["ended"].append("ended")]
    own = handlers[0]
    monkeypatch.setattr(signal, "getsignal", lambda number: handlers[-1])
    monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.append(handler))
    ours = importlib.import_module(NAME)
    ours.heed_ctrl_c()
    ours.heed_ctrl_c()
    assert len(handlers) == 2, "once"
    assert run_of(webui, lambda: handlers[-1](signal.SIGINT, None)) == ["saved", "ended"]
    monkeypatch.setattr(ours, "ENDING_SECONDS", 0.001)
    caplog.clear()
    with ours.Interrupts("own").watched():
        for _ in range(2):
            handlers[-1](signal.SIGINT, None)
    assert webui["ended"] == ["saved", "ended", "ended", "ended"]
    assert caplog.text.count("stopped first") == 1
    ours.leave_ctrl_c()
    ours.leave_ctrl_c()
    assert handlers[-1] is own and len(handlers) == 3
