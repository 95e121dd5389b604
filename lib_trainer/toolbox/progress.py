"""How a tool tells how far it is and hears that it is to stop."""

from __future__ import annotations

from lib_trainer.refusals import Sentence
from lib_trainer.work.control import Control
from lib_trainer.work.events import Event, Listener, Message
from lib_trainer.work.meter import Meter


class StopAsked(Exception):
    """The user has stopped the job: nothing is written."""


class Progress:
    """`begin` a phase, `advance` in it. Raises `StopAsked` where the job was told to stop."""

    def __init__(self, control: Control | None = None, emit: Listener | None = None) -> None:
        self._control, self._emit = control or Control(), emit or _nobody
        self._meter, self._name, self._unit, self._total, self._done = Meter(), Sentence("phase.reading"), "", 0, 0
        self.notes: list[Sentence] = []
        """What deserves a word when the work is done."""

    def begin(self, name: Sentence, total: int, unit: str) -> None:
        """`unit`: what is counted, in the plural."""
        self._meter, self._name, self._total, self._unit, self._done = Meter(), name, total, unit, 0
        self.advance(0)

    def advance(self, by: int) -> None:
        self._done += by
        if self._control.stopping:
            raise StopAsked
        self._emit(self._meter.phase(self._name, self._done, self._total, self._unit))

    def say(self, line: Sentence, level: str = "info") -> None:
        self._emit(Message(line, level))


def _nobody(event: Event) -> None:
    """Where nobody watches."""
