"""What a family of models is: everything that differs between one family and another, as one frozen description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lib_trainer.families import names

Part = Literal["unet", "te1", "te2"]
INPAINTING = 9
"""Channels that a UNet reads where it inpaints: noisy latents, the hole, and the latents of the rest (4 + 1 + 4)."""
VAE_PREFIX = "first_stage_model."
"""Of the VAE's tensors in a checkpoint file, in every family."""


def published(latent_scale: float, **unet: Any) -> dict[str, Any]:
    """A published architecture in ldm's terms. What the families have in common is here: noise, widths, and the VAE."""
    widths = {"in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": 2}
    halved = {"z_channels": 4, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    noise = {"linear_start": 0.00085, "linear_end": 0.0120, "timesteps": 1000, "scale_factor": latent_scale}
    parts = {"unet_config": {"params": widths | unet}, "first_stage_config": {"params": {"ddconfig": halved}}}
    return {"model": {"params": noise | parts}}


@dataclass(frozen=True)
class Encoder:
    """A text encoder.

    part        what it is called here
    root        how its tensors begin in a checkpoint file
    layout      whose names they have behind it
    key         how its modules begin in a LoRA file
    rows        the name of its vectors in an embedding's .safetensors
    width       numbers in a token's vector
    layers      how many a checkpoint file has
    output      the one, counted from 1, that the UNet reads
    adapted     those, from the first on, that LoRA files name
    final_norm  whether the final norm is applied to what the UNet reads
    padding     the token that fills a chunk behind the end mark; None: the end mark itself
    pooled      numbers in the vector of the whole caption that the UNet reads beside the tokens; 0: none
    """

    part: Part
    root: str
    layout: Literal["transformers", "open_clip"]
    key: str
    rows: str
    width: int
    layers: int
    output: int
    adapted: int
    final_norm: bool
    padding: int | None = None
    pooled: int = 0

    @property
    def prefix(self) -> str:
        """How its tensors begin in a checkpoint file, with what the layout puts before every name."""
        return f"{self.root}{'transformer' if self.layout == 'transformers' else 'model'}."

    @property
    def skipped(self) -> int:
        """Layers at the end that the UNet never reads."""
        return self.layers - self.output

    def name_in_files(self, module: str) -> str:
        """`text_model.encoder.layers.0.mlp.fc1` → `lora_te_text_model_encoder_layers_0_mlp_fc1` (SD 1.x)."""
        return f"{self.key}_{module.replace('.', '_')}"


def clip_l(part: Part, root: str, key: str, rows: str, *, output: int, final_norm: bool) -> Encoder:
    """OpenAI's CLIP ViT-L/14."""
    return Encoder(part, root, "transformers", key, rows, 768, 12, output, adapted=12, final_norm=final_norm)


def open_clip(
    part: Part,
    root: str,
    key: str,
    rows: str,
    *,
    width: int,
    layers: int,
    adapted: int,
    final_norm: bool,
    pooled: int = 0,
) -> Encoder:
    """One of OpenCLIP's, of which the layer before the last is read."""
    return Encoder(
        part, root, "open_clip", key, rows, width, layers, layers - 1, adapted, final_norm, padding=0, pooled=pooled
    )


@dataclass(frozen=True)
class Unet:
    """A UNet in CompVis' layout, and its blocks: `input_0` to `input_n`, `middle`, `output_0` to `output_n`.

    depths    transformer layers at each resolution, the finest first; 0: no attention there
    context   width of the text that it reads
    named     whose names its modules have in LoRA files
    vector    numbers of what it reads beside text and time; 0: nothing
    resnets   residual blocks at each resolution
    deep      the first input block that the preset `deep` lets learn; output blocks are its mirror image
    channels  of its input
    linear    whether `proj_in` and `proj_out` are Linear, and not 1×1 convolutions
    prefix    how its tensors begin in a checkpoint file
    key       how its modules begin in a LoRA file
    """

    depths: tuple[int, ...]
    context: int
    named: names.Layout
    vector: int = 0
    resnets: int = 2
    deep: int = 7
    channels: int = 4
    linear: bool = False
    prefix: str = "model.diffusion_model."
    key: str = "lora_unet"

    @property
    def side(self) -> int:
        """Blocks on each side of the middle."""
        return len(self.depths) * (self.resnets + 1)

    @property
    def blocks(self) -> tuple[str, ...]:
        sides = ([f"{side}_{number}" for number in range(self.side)] for side in ("input", "output"))
        inputs, outputs = sides
        return (*inputs, "middle", *outputs)

    @property
    def inner(self) -> str:
        """The blocks that the preset `deep` lets learn, in words."""
        last = self.side - 1
        return f"input {self.deep}–{last}, middle, output 0–{last - self.deep}"

    @property
    def stride(self) -> int:
        """Cells of a latent along each side of a cell of the coarsest map."""
        return 1 << (len(self.depths) - 1)

    def published(self, module: str, layout: names.Layout) -> str | None:
        """The name in LoRA files, with dots, of a module that `layout` calls so; None for one outside the blocks."""
        if layout == self.named:
            return module if names.block_of(module, self.resnets) else None
        if layout == "ldm":
            return names.diffusers_name(module, self.resnets)
        return names.ldm_name(module, [depth > 0 for depth in self.depths], self.resnets)

    def name_in_files(self, published: str) -> str:
        """`down_blocks.0.attentions.0.proj_in` → `lora_unet_down_blocks_0_attentions_0_proj_in`."""
        return f"{self.key}_{published.replace('.', '_')}"

    def block_of(self, published: str) -> str:
        """The block that a module stands in. Raises `ValueError` for one outside the blocks."""
        block = names.block_of(published, self.resnets)
        if block is None:
            raise ValueError(f"{published} is in no block")
        return block

    def block_of_key(self, key: str) -> str | None:
        """The same from a key of a LoRA file; None outside the blocks and for other parts."""
        return names.block_of_key(key.removeprefix(f"{self.key}_"), self.resnets) if self.owns(key) else None

    def owns(self, key: str) -> bool:
        """Whether a key of a LoRA file is of the UNet."""
        return key.startswith(f"{self.key}_")


@dataclass(frozen=True)
class Family:
    """One family of models.

    word             what the user reads, as in "choose one for SD 1.x"
    model            the published model that `config` describes
    card             what the WebUI's cards call it
    version          `ss_base_model_version`
    architecture     ModelSpec's name
    v_version, v_architecture  the same of models that predict v, where they have names of their own
    latent_scale     what a latent is multiplied by before the UNet sees it
    prediction       what the UNet predicts where the model does not say
    trainable        whether it can be trained here
    cell             pixels along each side of a latent's cell
    latent_channels  of a latent
    v2               `ss_v2`
    clip_skip        hosts heed "clip skip"; the other families' text is read from one layer whatever it says
    zero_empty       an empty caption is zeros, and not the encoding of nothing
    sizes            the UNet is told of the picture's sizes
    hypernetworks    whether hosts know hypernetworks for it
    side, v_side     pixels along the side of the square pictures that the published models draw; `v_side` is of those
                     that predict v, where it differs
    smallest         pixels along the side of the smallest square that models of it draw well; 0: not known
    memory           the table that its memory is foreseen from; empty: there is none
    config           ldm's description, for a file without a .yaml; None: there is none
    """

    word: str
    model: str
    card: str
    version: str
    architecture: str
    unet: Unet
    encoders: tuple[Encoder, ...]
    latent_scale: float
    prediction: Literal["epsilon", "v"] = "epsilon"
    trainable: bool = False
    cell: int = 8
    latent_channels: int = 4
    v2: bool = False
    v_version: str = ""
    v_architecture: str = ""
    clip_skip: bool = False
    zero_empty: bool = False
    sizes: bool = False
    hypernetworks: bool = True
    side: int = 512
    v_side: int = 0
    smallest: int = 0
    memory: str = ""
    config: Mapping[str, Any] | None = None

    @property
    def stride(self) -> int:
        """Pixels that both sides of a training picture are multiples of: a cell of the UNet's coarsest map."""
        return self.cell * self.unet.stride

    @property
    def layers(self) -> int:
        """Of the text encoder that has most of them, as far as LoRA files name them."""
        return max(encoder.adapted for encoder in self.encoders)

    @property
    def second_encoder(self) -> bool:
        """Whether there is more than one text encoder."""
        return len(self.encoders) > 1

    @property
    def parts(self) -> tuple[Part, ...]:
        """What can be trained."""
        return ("unet", *(encoder.part for encoder in self.encoders))

    def versions(self, prediction: str) -> tuple[str, str]:
        """`ss_base_model_version` and ModelSpec's architecture of a model that predicts so."""
        if prediction != "v":
            return self.version, self.architecture
        return self.v_version or self.version, self.v_architecture or self.architecture

    def side_of(self, prediction: str) -> int:
        """Pixels along the side of the square pictures that a model which predicts so is made for."""
        return self.v_side if prediction == "v" and self.v_side else self.side

    @property
    def width(self) -> int:
        """Numbers in a word's vectors for all encoders."""
        return sum(encoder.width for encoder in self.encoders)

    def rates(self, unet: float, text: float, second: float) -> dict[Part, float]:
        """A learning rate for each part; a second text encoder has the first one's where `second` is negative."""
        later = text if second < 0 else second
        texts = {encoder.part: later if place else text for place, encoder in enumerate(self.encoders)}
        return {"unet": unet, **texts}

    def part_of(self, name: str) -> Part | None:
        """The part that a tensor of a checkpoint file belongs to; None for the VAE and what is no model."""
        if name.startswith(self.unet.prefix):
            return "unet"
        return next((encoder.part for encoder in self.encoders if name.startswith(encoder.root)), None)

    def encoder(self, part: Part) -> Encoder:
        return next(encoder for encoder in self.encoders if encoder.part == part)


@dataclass(frozen=True)
class Stranger:
    """A model that is recognised and has no description here. `draws`: whether it draws pictures from text alone."""

    word: str
    draws: bool = True
