"""Places in a model's modules whose own parameters wait on the CPU while others are in them.

The own parameter comes back to a device that may be full, so that must not hang on an allocation: where there is no
room for it, the storage of what was in its place is used, which is at least as large.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence

import torch
from torch import nn

from lib_trainer.memory import is_out_of_memory
from lib_trainer.ports import OwnParameter
from lib_trainer.transfer import has_place, moves

CPU = torch.device("cpu")


def parameter_of(own: OwnParameter) -> nn.Parameter:
    parameter = own.owner._parameters[own.name]
    assert parameter is not None
    return parameter


def whole_weight(own: OwnParameter) -> torch.Tensor:
    """The parameter's values, also where the host stores it in 8 bits and has kept what it was before."""
    return parameter_of(own).detach() if own.unrounded is None else own.unrounded.detach()


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.to(device, copy=True)


class Slot:
    """One place. `short`: the device had no room for its own parameter beside what learned. `lost`: what learned could
    be kept nowhere."""

    def __init__(
        self, own: OwnParameter, waiting: MutableMapping[str, torch.Tensor], device: torch.device | None = None
    ) -> None:
        """`waiting` keeps the copies on the CPU from one time to the next: the originals do not change meanwhile.
        `device`: of what learns, where the own parameter rests on the CPU, which it then never leaves."""
        self.own, self.original, self._waiting = own, parameter_of(own), waiting
        rests = device is not None and device.type != self.original.device.type
        self.device = device if device is not None and rests else self.original.device
        self._leaves = moves(self.device) and not rests
        self.short = self.lost = False
        self._beside: nn.Parameter | None = None
        self._inside: nn.Parameter | None = None
        self._learned = self._away = self._borrowed = False

    def take(self, learned: nn.Parameter) -> None:
        """Put the parameter itself in."""
        self._send_away()
        if learned.device.type != self.device.type:  # it went to the CPU when there was no room
            learned.data = sent(learned.data, self.device)
        self._put(learned)
        self._learned = True

    def take_copy(self, learned: torch.Tensor) -> None:
        """Put a copy of the original's precision in."""
        self._send_away()
        copy = torch.empty_like(self.original.data, device=self.device).copy_(learned.detach())
        self._put(nn.Parameter(copy, requires_grad=False))

    def give_back(self, *, clear: bool) -> None:
        """The own parameter with its bytes, on its device. `clear`: what learned goes to the CPU, to make room."""
        try:
            if self._away:
                self.original.data = self._returned(self.original.data, clear=clear)
                self._away = False
        finally:
            self.own.owner._parameters[self.own.name] = self.original
            self._inside = None

    def make_room(self) -> None:
        """Give up what the own parameter has taken of the device since it came back beside what learned: that goes to
        the CPU, if this has room, and the parameter takes its storage."""
        beside, self._beside = self._beside, None
        if beside is None or not has_place(beside.data) or beside.device != self.device:  # it takes no room there
            return
        place = beside.data
        moved = _where_room(lambda: sent(place, CPU))
        if moved is None:
            return
        beside.data = moved
        self.original.data = self._borrow(place, self._waiting[self.own.key])

    def compact(self) -> None:
        """A storage of its own size instead of a borrowed one, where one can be had."""
        own = _where_room(self.original.data.clone) if self._borrowed else None
        if own is not None:
            self.original.data = own

    def _send_away(self) -> None:
        if self._leaves:
            key = self.own.key
            if key not in self._waiting:
                self._waiting[key] = sent(self.original.data, CPU)
            self.original.data = self._waiting[key]
            self._away = True

    def _put(self, parameter: nn.Parameter) -> None:
        self.own.owner._parameters[self.own.name] = self._inside = parameter

    def _returned(self, waiting: torch.Tensor, *, clear: bool) -> torch.Tensor:
        inside = self._inside
        if inside is None:  # its own room is free again
            return sent(waiting, self.device)
        if not self._learned:
            return self._borrow(inside.data, waiting)
        if not clear:
            back = _where_room(lambda: sent(waiting, self.device))
            if back is not None:
                self._beside = inside
                return back
            self.short = True
        place = inside.data
        moved = _where_room(lambda: sent(place, CPU))
        if moved is None:
            return self._without_room(inside, waiting)
        inside.data = moved
        return self._borrow(place, waiting)

    def _without_room(self, inside: nn.Parameter, waiting: torch.Tensor) -> torch.Tensor:
        """The CPU cannot take what learned either: if the device has no room for both, the model goes first."""
        back = _where_room(lambda: sent(waiting, self.device))
        if back is not None:
            return back
        self.lost = True
        return self._borrow(inside.data, waiting)

    def _borrow(self, place: torch.Tensor, waiting: torch.Tensor) -> torch.Tensor:
        if not has_place(place) or place.device != self.device:  # a host's preview may have left it elsewhere
            return sent(waiting, self.device)
        storage = place.untyped_storage()
        data = torch.empty(0, dtype=waiting.dtype, device=self.device)
        data.set_(storage, 0, waiting.shape, waiting.stride())
        self._borrowed = storage.nbytes() > waiting.nbytes
        return data.copy_(waiting)


def _where_room(make: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """What is made, or None where there is no memory for it."""
    try:
        return make()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None


def give_back(slots: Sequence[Slot], *, clear: bool) -> None:
    """All of them, also after one that could not be given back as it should.

    Once the device has no room for both, what learned leaves it in all places: the room that was there may be what
    other parts of the model come back to.
    """
    failed: Exception | None = None
    for slot in slots:
        try:
            slot.give_back(clear=clear)
        except Exception as error:
            failed = error
        clear = clear or slot.short
    for slot in slots:
        if clear:
            slot.make_room()
        slot.compact()
    if failed is not None:
        try:
            raise failed
        finally:
            del failed  # its traceback holds this frame, and with it the slots


def make_room(slots: Sequence[Slot]) -> None:
    """What has learned beside the model's own parameters since they came back leaves the device in all places."""
    for slot in slots:
        slot.make_room()
        slot.compact()
