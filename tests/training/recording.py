"""A stand-in for a card that records: what is recorded is done anew, on the inputs that were there when it was."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch

from lib_trainer.networks.flat import Flat
from lib_trainer.training.graphs import Recorder


class OnCpu(Recorder):
    """As on a card, what a pass returns is nothing before it is repeated, and its memory is others' once it is
    forgotten; a recording adds to gradients, which a card does not, and which must not matter."""

    def __init__(self) -> None:
        self.room = True
        self.fails: Exception | None = None
        self.off_by = 0.0
        self.recording = False
        self.unnoticed: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        """Around what a card repeats, of which no object of Python's learns."""
        self.made: list[torch.Tensor] = []
        self.recordings, self.repeats, self.forgotten = 0, 0, 0

    def has_room(self) -> bool:
        return self.room

    def tried(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        return work()

    def recorded(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        self.recording = True
        try:
            out = torch.full_like(work(), torch.nan)
            if self.fails is not None:
                raise self.fails
        finally:
            self.recording = False
        self.recordings += 1
        self.made.append(out)

        def repeat() -> None:
            assert any(out is one for one in self.made), "what was forgotten is repeated"
            self.repeats += 1
            with self.unnoticed():
                out.copy_(work() + self.off_by)

        return out, repeat

    def forget(self) -> None:
        self.forgotten += 1
        for out in self.made:
            out.fill_(torch.nan)
        self.made.clear()


def unnoticed_by_flats(monkeypatch: pytest.MonkeyPatch) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Working copies of adapters that are made from now on are after it what they were before."""
    made, own = weakref.WeakSet[Flat](), Flat.__init__

    def init(flat: Flat, *args: object, **kwargs: object) -> None:
        own(flat, *args, **kwargs)  # type: ignore[arg-type]
        made.add(flat)

    monkeypatch.setattr(Flat, "__init__", init)

    @contextlib.contextmanager
    def unnoticed() -> Iterator[None]:
        kept = [(flat, flat._working) for flat in made]
        for flat in made:
            flat._working = None
        yield
        for flat, working in kept:
            flat._working = working

    return unnoticed
