"""A model in ldm's layout as the core's `LoadedModel`, in place."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib_trainer.families.family import INPAINTING, VAE_PREFIX, Family, Part, Unet
from lib_trainer.families.known import DEFAULT
from lib_trainer.families.open_clip import InFile
from lib_trainer.host.held import Holdable
from lib_trainer.host.holding import frozen
from lib_trainer.host.ldm.attention import efficient_attention, efficient_gates
from lib_trainer.host.norms import direct_norms
from lib_trainer.host.text.texts import Texts
from lib_trainer.host.vector import vector_of
from lib_trainer.networks.formats.checkpoint_file import names_without
from lib_trainer.patching import attribute, replaced_forward
from lib_trainer.ports import (
    AdaptableModule,
    Conditioning,
    Group,
    NoiseSchedule,
    OwnParameter,
    TrainingState,
)
from lib_trainer.refusals import ModelError

RESNET_CLASSES = ("ResBlock", "Upsample", "Downsample")


class LdmModel(Holdable):
    """`unet` is ldm's or sgm's UNetModel, `vae` the AutoencoderKL of either (or anything with its encoder and
    `quant_conv`).

    `devices` is what a host that patches ldm keeps its `dtype_unet` on: the precision of the time embedding.
    """

    def __init__(
        self,
        unet: nn.Module,
        vae: Any,
        text: Texts,
        schedule: NoiseSchedule,
        latent_scale: float,
        name: str = "",
        file: Path | None = None,
        file_hash: str = "",
        devices: object = None,
        family: Family = DEFAULT,
    ) -> None:
        self.unet, self.vae, self.text = unet, vae, text
        self.schedule, self._latent_scale = schedule, latent_scale
        self.name, self.file, self.file_hash = name, file, file_hash
        self._devices, self.family = devices, family

    @property
    def latent_scale(self) -> float:
        return self._latent_scale

    @property
    def inpaints(self) -> bool:
        return inpaints_in(self.unet)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Calls the UNet itself: `apply_model` is hijacked by the WebUI to re-enter fp16 autocast."""
        context, vector = conditioning.context.to(latents.dtype), vector_of(conditioning)
        labels = {} if vector is None else {"y": vector.to(latents.dtype)}
        out: torch.Tensor = self.unet(latents, timesteps=timesteps, context=context, **labels)
        return out

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Not by the VAE's `encode`: sgm's returns a sample, and ldm's the posterior."""
        return self._moments(lambda x: self.vae.quant_conv(self.vae.encoder(x)), pixels)

    def _unet_modules(self) -> Iterator[AdaptableModule]:
        names = _as_built(self.family.unet, self.unet)
        for prefix, owner in self.unet.named_modules():
            kind = type(owner).__name__
            if kind != "SpatialTransformer" and kind not in RESNET_CLASSES:
                continue
            for name, module in owner.named_modules(prefix=prefix):
                if not isinstance(module, (nn.Linear, nn.Conv2d)):
                    continue
                published = names.published(name, "ldm")
                if published is not None:
                    group: Group = "transformer" if kind == "SpatialTransformer" else "convolution"
                    key, block = names.name_in_files(published), names.block_of(published)
                    yield AdaptableModule(key, module, "unet", group, block)

    def own_parameters(self) -> Sequence[OwnParameter]:
        prefixes = {"unet": self.family.unet.prefix} | {one.part: one.prefix for one in self.family.encoders}
        parts: dict[Part, nn.Module] = {"unet": self.unet, **self.text.parts()}
        return [
            OwnParameter(
                InFile(published(prefixes[part] + ".".join(filter(None, (place, name))))),
                owner,
                name,
                part,
                _unrounded(owner, name, own),
            )
            for part, root in parts.items()
            for place, owner in root.named_modules()
            for name, own in owner.named_parameters(recurse=False)
        ]

    def checkpoint_tensors(self, without: Collection[str] = ()) -> dict[str, torch.Tensor]:
        """Of the live modules, so that it does not matter what kind of file they came from.

        A module that is stored in 8 bits has its weights in `fp16_weight`, if the WebUI was told to keep them.
        """
        roots = {self.family.unet.prefix: self.unet, VAE_PREFIX: self.vae, **self.text.prefixes()}
        named = {
            published(prefix + name): tensor
            for prefix, root in roots.items()
            for name, tensor in root.state_dict().items()
        }
        for own in self.own_parameters():
            if own.unrounded is not None:
                named[own.key] = own.unrounded
        return {name: named[name].detach().cpu() for name in names_without(named, without)}

    @contextlib.contextmanager
    def _set_aside(self, state: TrainingState) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(frozen(self.unet, *self.text.parts().values()))
            for owner, name in ((self.unet, "dtype"), (self._devices, "dtype_unet")):  # ldm casts to the first
                if hasattr(owner, name):
                    stack.enter_context(attribute(owner, name, state.dtype))
            stack.enter_context(_sines_of_a_table(self.unet, len(self.schedule.alphas_cumprod), self.device))
            if isinstance(getattr(self.unet, "time_embed", None), nn.Module):
                stack.enter_context(_cast_input(self.unet.time_embed, state.dtype))
            text = self.text.parts().values() if state.text_encoder else ()
            stack.enter_context(direct_norms(state.dtype, self.unet, *text))
            stack.enter_context(efficient_attention(self.unet))
            stack.enter_context(efficient_gates(self.unet))
            stack.enter_context(without_own_checkpoints(self.unet))
            stack.enter_context(self._spared(state, "ResBlock"))
            yield


def inpaints_in(unet: Any) -> bool:
    """Whether ldm's or sgm's UNet does."""
    return int(unet.input_blocks[0][0].in_channels) == INPAINTING


def _unrounded(owner: nn.Module, name: str, parameter: torch.Tensor) -> torch.Tensor | None:
    """What the WebUI keeps of a parameter that it stores in 8 bits; None for others.

    Raises `ModelError` if it was not told to keep it.
    """
    if parameter.itemsize > 1 or not parameter.is_floating_point():
        return None
    kept = getattr(owner, f"fp16_{name}", None)
    if not isinstance(kept, torch.Tensor):
        raise ModelError("model.held_in_8_bits")
    return kept


@contextlib.contextmanager
def _sines_of_a_table(unet: Any, steps: int, device: torch.device) -> Iterator[None]:
    """What a UNet is told of a timestep is looked up on the device; the host's own function makes the table.

    ldm's sends frequencies from the CPU at every call, and waits until the device is done with all before.
    """
    homes = (sys.modules.get(kind.__module__) for kind in type(unet).__mro__)
    home = next((one for one in homes if hasattr(one, "timestep_embedding")), None)
    if home is None:
        yield
        return
    own, width = home.timestep_embedding, unet.model_channels
    table: torch.Tensor = own(torch.arange(steps, device=device), width)

    def looked_up(timesteps: torch.Tensor, dim: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        known = dim == width and timesteps.dtype is torch.int64 and not args and not any(kwargs.values())
        return table[timesteps] if known else own(timesteps, dim, *args, **kwargs)

    with attribute(home, "timestep_embedding", looked_up):
        yield


def _cast_input(layers: nn.Module, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """The time embedding's layers take its sines in whatever precision a host has patched them to."""
    forward = layers.forward
    return replaced_forward(layers, lambda sines: forward(sines.to(dtype)))


@contextlib.contextmanager
def without_own_checkpoints(unet: nn.Module) -> Iterator[None]:
    """ldm's own checkpointing fails on frozen parameters and drops the gradients of adapters."""
    with contextlib.ExitStack() as stack:
        for module in unet.modules():
            for flag in ("use_checkpoint", "checkpoint"):
                if getattr(module, flag, False) is True:
                    stack.enter_context(attribute(module, flag, False))
        yield


def _as_built(described: Unet, unet: nn.Module) -> Unet:
    """The family's UNet with this one's blocks. ldm keeps `num_res_blocks` as a number or a list of equal ones."""
    count: Any = getattr(unet, "num_res_blocks", described.resnets)
    return dataclasses.replace(described, resnets=int(count if isinstance(count, int) else count[0]))


def published(name: str) -> str:
    """A tensor's name in files: the WebUI puts a module of its own around the token table."""
    return name.replace(".token_embedding.wrapped.", ".token_embedding.")
