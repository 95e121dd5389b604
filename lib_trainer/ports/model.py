"""A loaded model, as the core sees it: it stays where it is, with no copy and no reload.

Tensors are channels first, latents are already multiplied by the family's scale, pixels are in [-1, 1].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import nn

from lib_trainer.families.family import Family, Part
from lib_trainer.families.open_clip import InFile
from lib_trainer.families.prediction import Prediction
from lib_trainer.ports.text import Conditioning, TokenTable, Wording

Group = Literal["transformer", "convolution"]


@dataclass(frozen=True)
class AdaptableModule:
    """A live Linear or Conv2d that an adapter may wrap.

    `key` is its published name (`lora_unet_down_blocks_0_…`), the same on every host; `block` is its place among the
    UNet's blocks (`input_4`, `middle`, `output_11`) or the text encoder's layer (`layer_3`), for block-wise rates.
    `group` tells attention modules (what LoRA trains) from the convolutions of resnets and samplers (what LoCon adds).
    """

    key: str
    module: nn.Module
    part: Part
    group: Group
    block: str


@dataclass(frozen=True)
class OwnParameter:
    """A parameter of the model itself: attribute `name` of the module `owner`.

    `place` is where it is in a checkpoint file of CompVis' or Stability's layout. `unrounded` is what a host keeps of a
    parameter that it holds in 8 bits; None where the parameter itself is whole.
    """

    place: InFile
    owner: nn.Module
    name: str
    part: Part
    unrounded: torch.Tensor | None = None

    @property
    def key(self) -> str:
        """Its name among all: that of the file's tensor, with the third that it is, if it is one."""
        return self.place.name if self.place.third is None else f"{self.place.name}[{self.place.third}]"


@dataclass(frozen=True)
class NoiseSchedule:
    """How a model's pictures are noised, and what it predicts of them.

    `alphas_cumprod`: (T,) float64 on the CPU, as published for the model, never as a sampler has altered it.
    `zero_terminal`: the model is used with them rescaled, so that nothing of a picture is left at the last step.
    """

    alphas_cumprod: torch.Tensor
    prediction: Prediction
    zero_terminal: bool = False

    def overruled(self, prediction: str, zero_terminal: str) -> NoiseSchedule:
        """What a job makes of it: `model.prediction` and `model.zero_terminal_snr`; auto leaves it as it is."""
        predicted = prediction if prediction != "auto" else self.prediction
        zero = self.zero_terminal if zero_terminal == "auto" else zero_terminal == "on"
        return NoiseSchedule(self.alphas_cumprod, predicted, zero)  # type: ignore[arg-type]

    @functools.cached_property
    def used(self) -> torch.Tensor:
        """(T,) float64: ᾱ as pictures are noised with it.

        Zero terminal SNR: Lin et al. 2023, arXiv:2305.08891, algorithm 1: √ᾱ is shifted so that the last one is 0, and
        stretched so that the first one stays.
        """
        if not self.zero_terminal:
            return self.alphas_cumprod
        root = self.alphas_cumprod.sqrt()
        return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2

    @functools.cached_property
    def snr(self) -> torch.Tensor:
        """(T,) float64: signal to noise ᾱ/(1−ᾱ), 0 at the last step of a model with zero terminal SNR."""
        return self.used / (1 - self.used)


@dataclass(frozen=True)
class TrainingState:
    """How the host is to hold its model while it is trained.

    `dtype`: what the frozen weights are held in and the products computed in. `checkpointing`: recompute activations
    in the backward pass. `text_encoder`: whether gradients will flow through the text encoder. `replaced`: parts whose
    own weights are replaced for the run by who asks for it: the host may leave those as they are. `eight_bits`: the
    UNet's frozen products are held in 8 bits. `unet_waits`: it is off the device while pictures and captions are
    encoded.
    """

    dtype: torch.dtype
    checkpointing: bool
    text_encoder: bool
    replaced: frozenset[Part] = frozenset()
    eight_bits: bool = False
    unet_waits: bool = False


class HeldModel(Protocol):
    """A loaded model for the length of one run. It begins ready for `encode_images` and `encode_text`."""

    def train(self, *, text_encoder: bool) -> None:
        """Ready for `predict` with gradients, and for `encode_text` if the text encoder is asked for.

        What is not needed leaves the device. Raises what the device raises where it has no room.
        """

    def generate(self) -> None:
        """As the host draws with it, until `train` is called again. Raises what the device raises where it has no
        room; then some of the model waits until it is given back."""


class Exchange(Protocol):
    """Other numbers in parameters of the loaded model, for the pictures that follow."""

    def write(self, parameter: OwnParameter, numbers: torch.Tensor) -> None:
        """Put numbers of the parameter's shape in its place, rounded to its precision.

        Raises `ModelError` where they do not fit, and what the device raises where it has no room.
        """

    def put_back(self) -> None:
        """Every parameter as it was, bit for bit; nothing is allocated on the device. Called inside a lease."""


class LoadedModel(Protocol):
    """The checkpoint that is loaded, in place."""

    @property
    def family(self) -> Family: ...

    @property
    def name(self) -> str: ...

    @property
    def file(self) -> Path | None: ...

    @property
    def file_hash(self) -> str:
        """SHA-256 of the file, or empty where the host has not computed it."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def inpaints(self) -> bool:
        """Whether the UNet reads five channels behind the latents: a hole, and the latents of the rest of a picture."""

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """One UNet call. latents (B, 4, H, W), or (B, 9, H, W) of one that inpaints; timesteps (B,) int64 in [0, T);
        returns (B, 4, H, W)."""

    def encode_text(
        self, captions: Sequence[Wording], clip_skip: int, max_chunks: int, *, weighted: bool = False
    ) -> Conditioning:
        """Context and pooled vector of captions; sizes are not its business, nor whether an empty caption is zeros.

        Captions are taken literally: brackets, `BREAK` and names of embeddings mean nothing special. Each fills as
        many chunks of 75 tokens as it needs, and is cut behind 75·`max_chunks`; a full one leaves a short last tag to
        the next. All are padded with empty chunks to the longest, of which one caption may have several texts.
        `weighted`: `(a tag:1.2)` and brackets weigh as in the WebUI's
        prompts.
        Gradients flow unless the caller forbids it.
        """

    def token_key(self, caption: Wording, max_chunks: int, *, weighted: bool = False) -> Hashable:
        """The tokens that each encoder is told of a caption, with their weights: alike for two captions exactly where
        `encode_text` has the same to encode. Needs no encoder."""

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (B, 3, H, W) fp32 in [-1, 1], sides divisible by 8 → moments (B, 8, H/8, W/8) fp32 on the CPU.

        The first four channels are the posterior's mean, the last four its logarithmic variance, both unscaled.
        """

    @property
    def vae_overflows(self) -> bool:
        """Whether the VAE has given what is no number in half precision so far, and was used in fp32 instead."""

    def vae_fingerprint(self) -> str:
        """Hexadecimal digest of the VAE's weights: another VAE's latents must not be mistaken for this one's.

        Empty where others have changed its layers: what it makes must then not be kept for later runs.
        """

    @property
    def latent_scale(self) -> float:
        """What a latent is multiplied by before the UNet sees it."""

    def adaptable_modules(self) -> Sequence[AdaptableModule]:
        """Every module that an adapter may wrap, sorted by key."""

    def tokens(self) -> TokenTable: ...

    def own_parameters(self) -> Sequence[OwnParameter]:
        """Every parameter of the UNet and the text encoders."""

    def checkpoint_tensors(self, without: Collection[str] = ()) -> dict[str, torch.Tensor]:
        """The whole model in a checkpoint's layout, on the CPU, without what no loader reads and the names given.

        Raises `ModelError` where the host cannot say them, or a name in `without` is none of them.
        """

    def holding(
        self, state: TrainingState, make_room: Callable[[], None] = lambda: None
    ) -> AbstractContextManager[HeldModel]:
        """Hold the model for a run; on leaving, however that happens, everything is what it was.

        `make_room`: called where the device has no room for what comes back to it, which is then tried again.
        """


@dataclass(frozen=True)
class HeldPart:
    """How many numbers a part of a model has, what most of them are held in, and its bytes on the device now.

    `rests`: the host keeps it off the device, and brings it there to draw.
    """

    numbers: int
    dtype: torch.dtype
    on_device: int = 0
    rests: bool = False

    @classmethod
    def of(cls, root: nn.Module, device: torch.device, *, rests: bool = False) -> HeldPart:
        parameters = list(root.parameters())
        numbers: dict[torch.dtype, int] = {}
        for parameter in parameters:
            numbers[parameter.dtype] = numbers.get(parameter.dtype, 0) + parameter.numel()
        there = sum(one.numel() * one.itemsize for one in parameters if one.device.type == device.type)
        dtype = max(numbers, key=lambda one: numbers[one], default=torch.float32)
        return cls(sum(numbers.values()), dtype, there, rests)
