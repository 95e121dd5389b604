"""A runner that is watched: everything it said, and what a test wants done when it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.networks.formats.lora_file import read_lora
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.work import events as ev
from lib_trainer.work.monitor import RunView
from tests import protocol
from tests.support import make_job

PATIENCE = 120.0


class Watched:
    """A runner with everything it said, and what a test wants done when it is said."""

    def __init__(self, host: StandaloneHost) -> None:
        self.host, self.runner = host, TrainingDesk(host)
        self.events: list[ev.Event] = []
        self.react: Callable[[ev.Event], None] = lambda event: None

    def __call__(self, event: ev.Event) -> None:
        self.events.append(event)
        self.react(event)

    def run(self, pictures: Path, **changes: Any) -> RunView:
        before = len(self.events)
        self.runner.start(make_job(pictures, **changes), self)
        view = self.runner.wait(PATIENCE)
        assert view is not None and not self.runner.running
        protocol.check(self.events[before:])
        return view

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def files(self) -> list[str]:
        """Results; what lies beside them for a card is left out."""
        folder = self.host.lora_folder()
        cards = (".json", ".preview.png")
        return (
            sorted(path.name for path in folder.iterdir() if not path.name.endswith(cards)) if folder.exists() else []
        )

    def tensors(self, name: str = "learned.safetensors") -> dict[str, torch.Tensor]:
        return read_lora(self.host.lora_folder() / name).tensors


def at_step(step: int, do: Callable[[], object]) -> Callable[[ev.Event], None]:
    return lambda event: do() and None if isinstance(event, ev.StepDone) and event.step == step else None


def raising(kind: type, error: Exception) -> Callable[[ev.Event], None]:
    def react(event: ev.Event) -> None:
        if isinstance(event, kind):
            raise error

    return react


def weights_after(host: StandaloneHost, pictures: Path, steps: int, **changes: Any) -> dict[str, torch.Tensor]:
    """The same job ended after fewer steps (its learning rate is constant)."""
    other = Watched(StandaloneHost(host.checkpoint, host.root / f"after-{steps}", torch.device("cpu")))
    other.host._model = host._model
    assert other.run(pictures, training__max_steps=steps, **changes).state == "finished"
    return other.tensors()


def one_sentence(text: str) -> str:
    assert text and "\n" not in text and len(text) < 500, text
    assert text.endswith("."), text
    return text
