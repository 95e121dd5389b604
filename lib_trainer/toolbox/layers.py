"""The modules of a family's model that LoRA files name: where each lies in a checkpoint, and its names in files.

Four schemes of names are written, and a few more are read:

- `kohya`: what sd-scripts writes for the family, `lora_unet_down_blocks_0_…` for SD 1.x and SD 2.x and
  `lora_unet_input_blocks_4_1_…` for SDXL; text encoders as transformers names them, `lora_te1_text_model_…`
- `sgm`: the UNet always as CompVis and Stability's SGM name it
- `diffusers`: the UNet always as diffusers names it
- `peft`: with dots and the model's component, `unet.down_blocks.0.…`, `text_encoder.text_model.…`, `text_encoder_2.…`

The list is made from the family's description. It names more than one model has (`skip_connection` in every ResBlock).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lib_trainer.families import names
from lib_trainer.families.family import Encoder, Family, Part, Unet

Scheme = Literal["kohya", "sgm", "diffusers", "peft"]
SCHEMES: tuple[Scheme, ...] = ("kohya", "sgm", "diffusers", "peft")
COMPONENTS: dict[Part, str] = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
"""diffusers' names of the parts."""

BASE = ""
"""The block of what stands outside of blocks and layers: token tables and last norms of text encoders."""

OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
"""ldm's names of the UNet's modules outside of its blocks, and diffusers'."""

TRANSFORMER = (
    *(f"attn{number}.to_{name}" for number in (1, 2) for name in ("q", "k", "v", "out.0")),
    "ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3",
)  # fmt: skip
HF_TEXT = {
    "self_attn.q_proj": ("attn.in_proj", 0),
    "self_attn.k_proj": ("attn.in_proj", 1),
    "self_attn.v_proj": ("attn.in_proj", 2),
    "self_attn.out_proj": ("attn.out_proj", None),
    "mlp.fc1": ("mlp.c_fc", None),
    "mlp.fc2": ("mlp.c_proj", None),
    "layer_norm1": ("ln_1", None),
    "layer_norm2": ("ln_2", None),
}
"""A layer's modules as transformers names them, and as open_clip does, with the third of a fused weight's rows."""


@dataclass(frozen=True)
class Layer:
    """One module.

    home       its name in a checkpoint, without `.weight`
    third      which third of the rows of open_clip's fused weight (q, k, v) it is; None: all
    published  its names with dots behind the part's prefix, ldm's (a text encoder's: transformers') and diffusers'
    key        how its part's names begin in LoRA files
    block      of the UNet, `layer_N` of a text encoder, or `BASE`
    adapted    whether sd-scripts' networks have it: Linear and convolutions of the blocks and layers
    kernel     of a convolution, along each side; 0: Linear or a norm
    """

    part: Part
    home: str
    third: int | None
    published: tuple[str, str]
    key: str
    block: str
    adapted: bool
    kernel: int = 0
    kohya: names.Layout = "diffusers"

    def shape(self, out: int, numbers: int) -> tuple[int, ...]:
        """Of its weight, or of the lower factor of a LoRA, with so many rows and numbers."""
        inner = numbers // out
        return (out, inner // self.kernel**2, self.kernel, self.kernel) if self.kernel else (out, inner)

    def tensor(self, kind: Literal["weight", "bias"] = "weight") -> str:
        """Its tensor in a checkpoint; open_clip's fused one has an underscore."""
        return f"{self.home}{'.' if self.third is None else '_'}{kind}"

    def name(self, scheme: Scheme) -> str:
        """What a LoRA file calls it, without what stands behind."""
        ldm, diffusers = self.published
        if scheme == "peft":
            return f"{COMPONENTS[self.part]}.{diffusers}"
        sgm = scheme == "sgm" or (scheme == "kohya" and self.kohya == "ldm")
        return f"{self.key}_{(ldm if sgm else diffusers).replace('.', '_')}"


def layers_of(family: Family) -> tuple[Layer, ...]:
    """Every module that may be named, the UNet's first."""
    return _layers(family.unet, family.encoders)


def by_name(family: Family) -> dict[str, Layer]:
    """{name in any scheme: layer}, with what other tools write: `oft_unet_…`, and `lora_te1_…` for a single encoder."""
    return _by_name(family.unet, family.encoders)


def by_tensor(family: Family) -> dict[str, tuple[Layer, ...]]:
    """{name of a weight in a checkpoint: its layers}, three for a fused one."""
    return _by_tensor(family.unet, family.encoders)


@functools.cache
def _layers(unet: Unet, encoders: tuple[Encoder, ...]) -> tuple[Layer, ...]:
    return (*_unet(unet), *(layer for one in encoders for layer in _text(one)))


@functools.cache
def _by_name(unet: Unet, encoders: tuple[Encoder, ...]) -> dict[str, Layer]:
    found: dict[str, Layer] = {}
    for layer in _layers(unet, encoders):
        for scheme in SCHEMES:
            name = layer.name(scheme)
            found[name] = layer
            if name.startswith("lora_"):
                found[f"oft_{name.removeprefix('lora_')}"] = layer
        if layer.part == "te1" and len(encoders) == 1:
            found[f"lora_te1_{layer.published[1].replace('.', '_')}"] = layer
    return found


@functools.cache
def _by_tensor(unet: Unet, encoders: tuple[Encoder, ...]) -> dict[str, tuple[Layer, ...]]:
    found: dict[str, tuple[Layer, ...]] = {}
    for layer in _layers(unet, encoders):
        found[layer.tensor()] = (*found.get(layer.tensor(), ()), layer)
    return found


def _unet(unet: Unet) -> Iterator[Layer]:
    for module in _unet_modules(unet):
        diffusers = OUTSIDE.get(module) or names.diffusers_name(module, unet.resnets)
        assert diffusers is not None
        block = names.block_of(module, unet.resnets)
        adapted = block is not None and not _is_norm(diffusers)
        if block is None:
            block = unet.blocks[-1] if module.startswith("out.") else unet.blocks[0]
        home, kernel = f"{unet.prefix}{module}", _kernel(diffusers, unet)
        yield Layer("unet", home, None, (module, diffusers), unet.key, block, adapted, kernel, unet.named)


def _kernel(diffusers: str, unet: Unet) -> int:
    last = diffusers.rpartition(".")[2]
    if last in ("conv1", "conv2", "conv", "conv_in", "conv_out"):
        return 3
    return 1 if last == "conv_shortcut" or (last in ("proj_in", "proj_out") and not unet.linear) else 0


def _is_norm(diffusers: str) -> bool:
    return "norm" in diffusers.rpartition(".")[2]


def _unet_modules(unet: Unet) -> Iterator[str]:
    """ldm's names."""
    levels, resnets = len(unet.depths), unet.resnets
    yield from ("input_blocks.0.0", "time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2")
    for level, depth in enumerate(unet.depths):
        for place in range(resnets):
            number = 1 + level * (resnets + 1) + place
            yield from _inside(f"input_blocks.{number}", depth)
        if level < levels - 1:
            yield f"input_blocks.{1 + level * (resnets + 1) + resnets}.0.op"
    yield from (f"middle_block.{place}.{part}" for place in (0, 2) for part in names.RESNET_PARTS)
    yield from _transformer("middle_block.1", unet.depths[-1] or 1)
    for level, depth in enumerate(reversed(unet.depths)):
        for place in range(resnets + 1):
            number = level * (resnets + 1) + place
            yield from _inside(f"output_blocks.{number}", depth)
            if place == resnets and level < levels - 1:
                yield f"output_blocks.{number}.{2 if depth else 1}.conv"
    yield from ("out.0", "out.2")


def _inside(block: str, depth: int) -> Iterator[str]:
    yield from (f"{block}.0.{part}" for part in names.RESNET_PARTS)
    if depth:
        yield from _transformer(f"{block}.1", depth)


def _transformer(module: str, depth: int) -> Iterator[str]:
    yield from (f"{module}.{name}" for name in ("norm", "proj_in", "proj_out"))
    for number in range(depth):
        yield from (f"{module}.transformer_blocks.{number}.{name}" for name in TRANSFORMER)


def _text(encoder: Encoder) -> Iterator[Layer]:
    for number in range(encoder.layers):
        for name, (fused, third) in HF_TEXT.items():
            told = f"text_model.encoder.layers.{number}.{name}"
            open_clip = encoder.layout == "open_clip"
            home = f"{encoder.prefix}transformer.resblocks.{number}.{fused}" if open_clip else encoder.prefix + told
            adapted = not _is_norm(told)
            block = f"layer_{number}"
            yield Layer(encoder.part, home, third if open_clip else None, (told, told), encoder.key, block, adapted)
    last, told = ("ln_final", "text_model.final_layer_norm")
    home = f"{encoder.prefix}{last if encoder.layout == 'open_clip' else told}"
    yield Layer(encoder.part, home, None, (told, told), encoder.key, BASE, adapted=False)
