"""A diffusers model as the core's `LoadedModel`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib_trainer.families.family import INPAINTING, Part, Unet
from lib_trainer.families.open_clip import InFile
from lib_trainer.files import found
from lib_trainer.host.held import Holdable
from lib_trainer.host.holding import frozen
from lib_trainer.host.ldm.attention import efficient_gates
from lib_trainer.host.norms import direct_norms
from lib_trainer.host.standalone.attention import direct_attention
from lib_trainer.host.standalone.checkpoint import Components, load_checkpoint
from lib_trainer.host.text.texts import Texts
from lib_trainer.networks.formats.checkpoint_file import names_without, read_checkpoint
from lib_trainer.ports import (
    AdaptableModule,
    Conditioning,
    Group,
    OwnParameter,
    TrainingState,
)
from lib_trainer.refusals import ModelError
from lib_trainer.tiling.attach import banded

CONVOLUTION_CLASSES = ("ResnetBlock2D", "Upsample2D", "Downsample2D")


class DiffusersModel(Holdable):
    """UNet, VAE and text encoders of a pipeline, in fp32."""

    def __init__(self, parts: Components, device: torch.device, name: str = "", file: Path | None = None) -> None:
        self.unet, self.vae = parts.unet.to(device), parts.vae.to(device)
        self.family = parts.family
        self.text = Texts([encoder.to(device) for encoder in parts.encoders], parts.tokenizer, self.family)
        self.schedule, self.name, self.file = parts.schedule, name, file
        self.said = parts.said
        self._file_names = parts.file_names

    @classmethod
    def load(cls, path: Path, device: torch.device) -> DiffusersModel:
        path = found(path)
        return cls(load_checkpoint(path), device, path.stem, path if path.is_file() else None)

    @functools.cached_property
    def file_hash(self) -> str:
        """SHA-256 of the checkpoint file, read when it is first asked for."""
        if self.file is None:
            return ""
        with self.file.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    @property
    def latent_scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def inpaints(self) -> bool:
        return int(self.unet.config.in_channels) == INPAINTING

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        context, told = conditioning.context.to(latents.dtype), {}
        if conditioning.pooled is not None and conditioning.sizes is not None:
            pooled = conditioning.pooled.to(latents.dtype)
            told = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": conditioning.sizes}}
        out: torch.Tensor = self.unet(latents, timesteps, context, **told, return_dict=False)[0]
        return out

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._moments(lambda x: self.vae.encode(x).latent_dist.parameters, pixels)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, 4, H, W) → pixels (B, 3, 8H, 8W) in [-1, 1], fp32.

        A picture whose maps would not fit the free memory is decoded over row bands.
        """
        with torch.no_grad(), banded(self.vae.decoder):
            decoded: torch.Tensor = self.vae.decode(latents / self.latent_scale, return_dict=False)[0]
        return decoded.float().clamp(-1, 1)

    def _unet_modules(self) -> Iterator[AdaptableModule]:
        names = _as_built(self.family.unet, self.unet.config)
        for prefix, owner in self.unet.named_modules():
            kind = type(owner).__name__
            if kind != "Transformer2DModel" and kind not in CONVOLUTION_CLASSES:
                continue
            for name, module in owner.named_modules(prefix=prefix):
                published = names.published(name, "diffusers")
                if published is not None and isinstance(module, (nn.Linear, nn.Conv2d)):
                    group: Group = "transformer" if kind == "Transformer2DModel" else "convolution"
                    key, block = names.name_in_files(published), names.block_of(published)
                    yield AdaptableModule(key, module, "unet", group, block)

    def own_parameters(self) -> Sequence[OwnParameter]:
        parts: dict[Part, nn.Module] = {"unet": self.unet, **self.text.parts()}
        return [
            OwnParameter(self._place(part, f"{place}.{name}"), owner, name, part)
            for part, root in parts.items()
            for place, owner in root.named_modules()
            for name, parameter in owner.named_parameters(recurse=False)
        ]

    def _place(self, part: Part, name: str) -> InFile:
        return self._file_names.get(part, {}).get(name) or InFile(f"{part}.{name}")

    def checkpoint_tensors(self, without: Collection[str] = ()) -> dict[str, torch.Tensor]:
        """Of the file the model was read from: only the UNet and the text encoders are ever trained."""
        if self.file is None:
            raise ModelError("checkpoint.from_folder", name=self.name)
        tensors = read_checkpoint(self.file)
        return {name: tensors[name] for name in names_without(tensors, without)}

    @contextlib.contextmanager
    def _set_aside(self, state: TrainingState) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(frozen(self.unet, *self.text.parts().values()))
            text = self.text.parts().values() if state.text_encoder else ()
            stack.enter_context(direct_norms(state.dtype, self.unet, *text))
            stack.enter_context(efficient_gates(self.unet))
            stack.enter_context(direct_attention(self.unet))
            stack.enter_context(self._spared(state, "ResnetBlock2D"))
            yield


def _as_built(described: Unet, config: Any) -> Unet:
    """The family's UNet with this one's blocks, and attention where it has any."""
    attended = tuple(int("CrossAttn" in kind) for kind in config.down_block_types)
    return dataclasses.replace(described, resnets=config.layers_per_block, depths=attended)
