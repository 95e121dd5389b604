"""Where the weights of a host's model are during one run, and in what precision; at its end they are what they were.

Every parameter has four forms: the host's (as it was found), there (the same on the run's device), the run's (on the
device, in the precision that is trained in), and waiting (the original on the CPU, nothing on the device). Which part
has which form is a table:

    state        UNet                text encoders         VAE
    encoding     host's, or waiting  run's                 there
    training     run's               run's, or waiting     waiting
    generating   host's              host's                host's
    given back   host's              host's                host's

A model on the CPU waits nowhere else: its parameters point to converted copies and back to the originals, which is how
they wait; so do those on a device of a plug-in's, whose parameters torch does not let go to the CPU
(`transfer.moves`). A host that rests its model on the CPU and draws on a device has nothing there but what a state of
the run needs: what the host has is the original itself, and nothing is allocated to put it back.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import torch
from torch import nn

from lib_trainer.memory import is_out_of_memory, release, release_cached
from lib_trainer.refusals import ModelError
from lib_trainer.transfer import has_place, moves

logger = logging.getLogger(__name__)

PRODUCTS = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
"""Layers that multiply by their weights. The last keeps those of three in one parameter, and nobody calls them."""

Phase = Literal["encoding", "training", "generating", "given back"]
Form = Literal["host's", "there", "run's", "waiting"]


class Bus:
    """The only way between the device and the CPU, so that what crosses can be counted."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.in_place = moves(device)
        """Whether parameters keep their place on the device, take other bytes there, and can wait on the CPU."""

    def has(self, data: torch.Tensor) -> bool:
        """Whether the bytes are on the device."""
        return data.device.type == self.device.type

    def to_cpu(self, data: torch.Tensor) -> torch.Tensor:
        """A copy in page-locked memory where that can be had: it comes back twice as fast."""
        try:
            copy = torch.empty_like(data, device="cpu", pin_memory=self.device.type == "cuda")
        except RuntimeError:  # the system locks no more
            copy = torch.empty_like(data, device="cpu")
        return copy.copy_(data)

    def to_device(self, original: torch.Tensor) -> torch.Tensor:
        return original.to(self.device, copy=True)

    def into(self, place: torch.Tensor, original: torch.Tensor) -> None:
        """Fill a place on the device; nothing is allocated there."""
        place.copy_(original)


class Held:
    """One parameter, and what it was. `wanted` is its precision in the run."""

    def __init__(self, parameter: nn.Parameter, wanted: torch.dtype, bus: Bus) -> None:
        self.parameter, self.wanted, self._bus = parameter, wanted, bus
        self.dtype = parameter.dtype
        self._in_place = bus.in_place
        self._rests = bus.in_place and not bus.has(parameter.data)  # the host has it elsewhere
        self._original: torch.Tensor | None = None
        """On the CPU; there once it is needed, until the end of the run, or until the host moves it itself."""

    def take(self, form: Form) -> None:
        if form == "host's" or (form == "there" and not self._rests) or (form == "waiting" and not self._in_place):
            self.give_back()
        elif form == "there":
            self.come()
        elif form == "run's":
            self.convert()
        else:
            self.wait()

    def keep(self) -> torch.Tensor:
        """The original, which crosses the bus once in a run. One that rests is where its host has put it last."""
        if self._original is None:
            data = self.parameter.data
            self._original = self._bus.to_cpu(data) if self._in_place and not self._waits(data) else data
        return self._original

    def come(self) -> None:
        """To the device as the host has it elsewhere."""
        if self._waits(self.parameter.data):
            self.parameter.data = self._bus.to_device(self.keep())

    def convert(self) -> None:
        data = self.parameter.data
        if data.dtype is not self.dtype:
            return
        if self._waits(data):
            self.parameter.data = data = self._bus.to_device(self.keep())
        if self.wanted is self.dtype:
            return
        self.keep()
        converted = data.to(self.wanted)
        room = _reinterpreted(data, self.wanted) if self._in_place else None
        if room is None:  # wider, or on the CPU
            self.parameter.data = converted
        else:
            self.parameter.data = room
            room.copy_(converted)

    def give_back(self) -> None:
        """Allocates nothing on the device unless the parameter has left it."""
        data, original = self.parameter.data, self._original
        if original is None:
            return
        if self._rests:  # to draw, the host moves it to the device and back: nobody is to keep the older beside that
            self.parameter.data, self._original = original, None
            return
        if data.dtype is self.dtype and not self._waits(data):
            return
        if not self._in_place:
            self.parameter.data = original
            return
        room = _reinterpreted(data, self.dtype) if self._bus.has(data) else None
        if room is None:
            room = self._bus.to_device(original)
        else:
            self._bus.into(room, original)
        self.parameter.data = room

    def wait(self) -> None:
        if self._in_place:
            self.parameter.data = self.keep()

    def compact(self) -> None:
        """A wider form has left a place that is larger than the original needs."""
        data, grew = self.parameter.data, self.wanted.itemsize > self.dtype.itemsize
        if self._rests or not (self._in_place and grew and has_place(data)):
            return
        if data.untyped_storage().nbytes() > data.numel() * data.itemsize:
            self.parameter.data = data.clone()

    def move_in_anew(self) -> None:
        """As `compact`, where there is no room for both places: the large one is left first, and is free then.

        Raises what the device raises if it has none for the small one even so; a place as large as before is taken.
        """
        original = self._original
        if original is None:  # it never grew
            return
        size = self.parameter.data.untyped_storage().nbytes()
        self.parameter.data = original
        try:
            self.parameter.data = self._bus.to_device(original)
        except Exception:
            large = torch.empty(size, dtype=torch.uint8, device=self._bus.device).untyped_storage()
            room = torch.empty(0, dtype=original.dtype, device=self._bus.device)
            room.set_(large, 0, original.shape, original.stride())
            self._bus.into(room, original)
            self.parameter.data = room
            raise

    def _waits(self, data: torch.Tensor) -> bool:
        return self._in_place and not self._bus.has(data)


class Weights:
    """The parameters of a model's parts, each once. Made when a run begins; `place("given back")` ends it."""

    def __init__(
        self,
        parts: Mapping[str, Iterable[Held]],
        bus: Bus,
        *,
        unet_waits: bool = False,
        make_room: Callable[[], None] = lambda: None,
    ) -> None:
        """`unet_waits`: while pictures and captions are encoded. `make_room` is called where the device has none for
        what a host has there: whoever put other weights in the place of the model's knows what can leave."""
        self._parts = {name: list(held) for name, held in parts.items()}
        self._bus, self._unet_waits, self._make_room = bus, unet_waits, make_room
        self.phase: Phase = "given back"

    def place(self, phase: Phase, *, text_encoder: bool = True) -> None:
        """Give every part its form. What leaves the device does so first, and its memory is free for the rest.

        Raises what the device raises where it has no room, and `ModelError` if a host's parameter could not be given
        back; the others are back by then.
        """
        forms = {name: self._form(name, phase, text_encoder) for name in self._parts}
        self.phase = phase
        leaving = [name for name, form in forms.items() if form == "waiting"]
        for held in self._of(leaving):
            held.take("waiting")
        if leaving or phase in ("generating", "given back"):
            release_cached(self._bus.device)
        if phase in ("generating", "given back"):
            self._give_back()
        else:
            for name, form in forms.items():
                for held in self._parts[name]:
                    held.take(form)
        if phase == "given back":
            self._compact()

    def _give_back(self) -> None:
        """One failure does not stop the others; what failed is tried again when their memory is free."""
        held = sorted(self._of(self._parts), key=lambda one: one._waits(one.parameter.data))
        _, error, lost = self._twice(held, lambda one: one.give_back(), lambda one: one.give_back(), self._make_room)
        if error is not None:
            told = release(error, self._bus.device)
            if self.phase == "generating" and is_out_of_memory(error):  # the run has the room, and can go on
                try:
                    raise error
                finally:
                    del error  # its traceback holds this frame
            logger.error("%d weights of the model could not be put back\n%s", lost, told)
            raise ModelError("model.not_put_back", reason=error) from error

    def _twice(
        self,
        parts: Iterable[Held],
        first: Callable[[Held], object],
        again: Callable[[Held], object],
        make_room: Callable[[], None] = lambda: None,
    ) -> tuple[list[Held], Exception | None, int]:
        """Those with which `first` failed, the last error of `again` with them when there is more room, and how many it
        has failed with."""
        failed: list[Held] = []
        for held in parts:
            try:
                first(held)
            except Exception:
                failed.append(held)
        if failed:
            try:
                make_room()
            except Exception as stopped:  # some of it may have been made
                logger.warning("No room was made\n%s", release(stopped, self._bus.device))
            release_cached(self._bus.device)
        error: Exception | None = None
        lost = 0
        for held in failed:
            try:
                again(held)
            except Exception as last:
                error, lost = last, lost + 1
        return failed, error, lost

    def _compact(self) -> None:
        """Best effort: without it the model works and takes more memory until it is loaded anew."""
        short, error, _ = self._twice(self._of(self._parts), lambda one: one.compact(), lambda one: one.move_in_anew())
        if error is not None:  # whoever keeps the log must not keep the run by the error's frames
            told = release(error, self._bus.device)
            if any(held._waits(held.parameter.data) for held in short):
                raise ModelError("model.not_put_back", reason=error) from error
            logger.warning("Memory of the run is left with the model\n%s", told)

    def _form(self, part: str, phase: Phase, text_encoder: bool) -> Form:
        """Of a part in a phase; every part that is neither the UNet nor the VAE is a text encoder."""
        if phase in ("generating", "given back"):
            return "host's"
        encoding = phase == "encoding"
        if part == "vae":
            return "there" if encoding else "waiting"
        if part == "unet" and encoding:
            return "waiting" if self._unet_waits else "host's"
        return "run's" if part == "unet" or encoding or text_encoder else "waiting"

    def _of(self, names: Iterable[str]) -> Iterator[Held]:
        for name in names:
            yield from self._parts[name]


def held_parameters(root: nn.Module, bus: Bus, dtype: torch.dtype, norms: torch.dtype | None = None) -> list[Held]:
    """Weights of products in `dtype`, norms in `norms`; all else, and norms by default, in fp32 where a host
    has less.

    Held, not cast at every use: autocast would make the same copy in each forward and keep it until the backward.
    """
    wanted: dict[nn.Parameter, torch.dtype] = {}
    for module in root.modules():
        own = dtype if isinstance(module, PRODUCTS) else norms
        if own is not None and isinstance(module, (*PRODUCTS, nn.GroupNorm, nn.LayerNorm)):
            wanted |= dict.fromkeys(module.parameters(recurse=False), own)
    for parameter in root.parameters():
        wanted.setdefault(parameter, torch.float32 if parameter.itemsize < 4 else parameter.dtype)
    return [Held(parameter, one, bus) for parameter, one in wanted.items() if parameter.is_floating_point()]


def waiting_parameters(root: nn.Module, bus: Bus) -> list[Held]:
    """Parameters that are used as the host holds them, and leave the device while nobody does."""
    return [Held(parameter, parameter.dtype, bus) for parameter in root.parameters()]


def _reinterpreted(data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """The same place as a tensor of another dtype, from its first byte on; None if it has none or too little room."""
    if not has_place(data):
        return None
    dense = data.is_contiguous() or (data.ndim == 4 and data.is_contiguous(memory_format=torch.channels_last))
    storage, start = data.untyped_storage(), data.storage_offset() * data.itemsize
    if not dense or start % dtype.itemsize or start + data.numel() * dtype.itemsize > storage.nbytes():
        return None
    place = torch.empty(0, dtype=dtype, device=data.device)
    return place.set_(storage, start // dtype.itemsize, data.shape, data.stride())


@contextlib.contextmanager
def held_in(dtype: torch.dtype, *roots: nn.Module, bus: Bus | None = None) -> Iterator[None]:
    """Modules in a run's precision for a while."""
    known: dict[nn.Parameter, Held] = {}
    for root in roots:
        device = next(root.parameters()).device
        for held in held_parameters(root, bus or Bus(device), dtype):
            known.setdefault(held.parameter, held)
    weights = Weights({"unet": known.values()}, bus or Bus(torch.device("cpu")))
    try:
        weights.place("training")
        yield
    finally:
        weights.place("given back")
