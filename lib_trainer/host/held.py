"""A host's model for the length of one run: an object that knows the originals of all that it changes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from lib_trainer.host.holding import checkpointed, encode_moments, fingerprint, recomputed_blocks
from lib_trainer.host.quantised import quantised_layers, quantised_parameters
from lib_trainer.host.text.texts import Texts
from lib_trainer.host.weights import Bus, Held, Weights, held_parameters, waiting_parameters
from lib_trainer.ports import AdaptableModule, Conditioning, TokenTable, TrainingState, Wording

Context = contextlib.AbstractContextManager[None]


class HeldModel:
    """Implements `ports.HeldModel`: weights by `Weights`, and everything else of the host set aside meanwhile."""

    def __init__(self, weights: Weights, set_aside: Callable[[], Context]) -> None:
        self.weights, self._set_aside = weights, set_aside
        self._stack: contextlib.ExitStack | None = None

    def encode(self) -> None:
        self._enter()
        self.weights.place("encoding")

    def train(self, *, text_encoder: bool) -> None:
        self._enter()
        self.weights.place("training", text_encoder=text_encoder)

    def generate(self) -> None:
        self._leave()
        self.weights.place("generating")

    def give_back(self) -> None:
        try:
            self._leave()
        finally:
            self.weights.place("given back")

    def _enter(self) -> None:
        if self._stack is None:
            with contextlib.ExitStack() as stack:
                stack.enter_context(self._set_aside())
                self._stack = stack.pop_all()

    def _leave(self) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()


class Holdable:
    """What is alike in every host's model. A host adds the attributes, `_unet_modules` and `_set_aside`."""

    unet: Any
    vae: Any
    text: Texts
    make_bus: ClassVar[type[Bus]] = Bus
    vae_overflows = False
    _home: torch.device | None = None
    drawn_on: torch.device | None = None
    """Of a host that rests its model on the CPU."""

    @property
    def device(self) -> torch.device:
        """Where the model is trained; while it is held some of its weights may be elsewhere."""
        return self._home or self.drawn_on or next(self.unet.parameters()).device

    @contextlib.contextmanager
    def holding(self, state: TrainingState, make_room: Callable[[], None] = lambda: None) -> Iterator[HeldModel]:
        self._home = self.device
        try:
            weights, layers = self._weights(state, self.make_bus(self._home), make_room)
            held = HeldModel(weights, lambda: self._changed(state, layers))
            try:
                held.encode()
                yield held
            finally:
                held.give_back()
        finally:
            self._home = None

    @contextlib.contextmanager
    def training(self, state: TrainingState) -> Iterator[None]:
        """Held and placed for training, text encoder and all."""
        with self.holding(state) as held:
            held.train(text_encoder=True)
            yield

    def encode_text(
        self, captions: Sequence[Wording], clip_skip: int, max_chunks: int, *, weighted: bool = False
    ) -> Conditioning:
        return self.text.encode(captions, clip_skip, max_chunks, weighted=weighted)

    def token_key(self, caption: Wording, max_chunks: int, *, weighted: bool = False) -> Hashable:
        return self.text.token_key(caption, max_chunks, weighted=weighted)

    def vae_fingerprint(self) -> str:
        return fingerprint(self.vae)

    def adaptable_modules(self) -> Sequence[AdaptableModule]:
        found = [*self._unet_modules(), *self.text.adaptable()]
        return sorted(found, key=lambda target: target.key)

    def _unet_modules(self) -> Iterator[AdaptableModule]:
        raise NotImplementedError

    def tokens(self) -> TokenTable:
        return self.text

    def roots(self) -> dict[str, nn.Module]:
        """The model's parts, by their names."""
        found: dict[str, nn.Module] = {"unet": self.unet}
        found.update(self.text.parts().items())
        found["vae"] = self.vae
        return found

    def _moments(self, encode: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
        moments, overflowed = encode_moments(self.vae, encode, pixels)
        self.vae_overflows = self.vae_overflows or overflowed
        return moments

    def _weights(
        self, state: TrainingState, bus: Bus, make_room: Callable[[], None]
    ) -> tuple[Weights, dict[nn.Module, Any]]:
        parts: dict[str, list[Held]] = {"vae": waiting_parameters(self.vae, bus)}
        layers: dict[nn.Module, Any] = {}
        texts = self.text.parts()
        for part, root in {"unet": self.unet, **texts}.items():
            if part not in state.replaced:
                direct = part not in texts or state.text_encoder  # see `direct_norms`
                parts[part] = held_parameters(root, bus, state.dtype, state.dtype if direct else None)
        if state.eight_bits and "unet" in parts:
            layers, parts["unet"] = quantised_parameters(self.unet, bus, parts["unet"])
        return Weights(parts, bus, unet_waits=state.unet_waits, make_room=make_room), layers

    @contextlib.contextmanager
    def _changed(self, state: TrainingState, layers: dict[nn.Module, Any]) -> Iterator[None]:
        with self._set_aside(state), quantised_layers(layers):
            yield

    @contextlib.contextmanager
    def _spared(self, state: TrainingState, resnet: str) -> Iterator[None]:
        """What learns keeps less for its backward pass; `resnet` is the class of the UNet's blocks."""
        with contextlib.ExitStack() as stack:
            if state.text_encoder:
                stack.enter_context(self.text.lean())
            if state.checkpointing:
                blocks = recomputed_blocks(self.unet, resnet)
                stack.enter_context(checkpointed(blocks + (self.text.blocks() if state.text_encoder else [])))
            yield

    def _set_aside(self, state: TrainingState) -> Context:
        """Everything of the host that training needs otherwise, except its weights."""
        raise NotImplementedError
