"""Other numbers in a host's model for a while, beyond one turn of its queue, and what was there before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import nn

from lib_trainer.ports import OwnParameter
from lib_trainer.refusals import Joined, ModelError, Sentence


class Exchanged:
    """Implements `ports.Exchange`.

    A parameter keeps its place and takes other numbers there; the first time its own are copied to the CPU. Putting
    back copies them into the place again, wherever the host has moved it, and allocates nothing.
    """

    def __init__(self, told: Sentence, before: Callable[[], object] | None = None) -> None:
        """`before`: called before the numbers are put back."""
        self.told = told
        self._before = before
        self._kept: dict[str, tuple[nn.Module, str, torch.Tensor]] = {}
        self.active = True
        self.around = contextlib.ExitStack()
        """What else is changed meanwhile; closed when the numbers are back."""

    def write(self, parameter: OwnParameter, numbers: torch.Tensor) -> None:
        place = getattr(parameter.owner, parameter.name).data
        if parameter.unrounded is not None:
            raise ModelError("trial.eight_bits")
        if place.shape != numbers.shape:
            one, another = Joined(tuple(numbers.shape), "×"), Joined(tuple(place.shape), "×")
            raise ModelError("trial.shape", name=parameter.key, one=one, another=another)
        numbers = numbers.to(place.dtype).to(place.device)
        if parameter.key not in self._kept:
            if torch.equal(place, numbers):
                return
            self._kept[parameter.key] = (parameter.owner, parameter.name, place.to("cpu", copy=True))
        place.copy_(numbers)

    def put_back(self) -> None:
        """Again does nothing. One failure stops no other; raises `ModelError` for what could not be put back."""
        try:
            if self.active and self._before is not None:  # also where nothing was kept: a merge at weight 0
                self._before()
        finally:
            self.active = False
            try:
                self._copy_back()
            finally:
                self.around.close()

    def _copy_back(self) -> None:
        failed: Exception | None = None
        for owner, name, numbers in self._kept.values():
            try:
                getattr(owner, name).data.copy_(numbers)
            except Exception as error:
                failed = error
        self._kept = {}
        if failed is not None:
            raise ModelError("model.not_put_back", reason=failed) from failed


class Exchanging:
    """What every host does around an exchange: there is one at most, and a lease ends it."""

    _exchange: Exchanged | None = None

    @property
    def exchanged(self) -> Sentence | None:
        return self._exchange.told if self._exchange is not None and self._exchange.active else None

    def _put_back(self) -> None:
        """In the thread that holds the host's queue."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.put_back()
