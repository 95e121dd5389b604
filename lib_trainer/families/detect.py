"""Which family a model is of: told by looking at it, at a loaded model's modules or at the names in a file."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from lib_trainer.families.family import INPAINTING, Family, Stranger
from lib_trainer.families.known import EDITING, FLUX, REFINER, SD3, SSD
from lib_trainer.families.sd1 import SD1
from lib_trainer.families.sd2 import SD2
from lib_trainer.families.sdxl import SDXL

UNET = SD1.unet.prefix
FIRST = f"{UNET}input_blocks.0.0.weight"
REFINER_CONTEXT = 1280
REFINER_ENCODER = "conditioner.embedders.0.model"
"""It has one encoder, OpenCLIP's, where SDXL has CLIP's first."""
MIDDLE = f"{UNET}middle_block."
Shapes = Mapping[str, tuple[int, ...]]


def model_of(shapes: Shapes) -> Family | Stranger | None:
    """What a checkpoint file is, by its tensors' names and shapes; None for what is no model of these layouts."""
    if _any(shapes, f"{UNET}joint_blocks.") or _any(shapes, "joint_blocks."):
        return SD3
    if _any(shapes, f"{UNET}double_blocks.") or _any(shapes, "double_blocks."):
        return FLUX
    if not _any(shapes, UNET):
        return None
    if _any(shapes, "conditioner.embedders."):
        return _by_conditioner(shapes)
    if _other_input(shapes):
        return EDITING
    if _any(shapes, SD2.encoders[0].prefix):
        return SD2
    if not _any(shapes, SD1.encoders[0].root):
        return _by_context(shapes)
    return SD1


def _by_conditioner(shapes: Shapes) -> Family | Stranger:
    if _any(shapes, f"{REFINER_ENCODER}."):
        return REFINER
    if _other_input(shapes):
        return EDITING
    return SSD if _any(shapes, MIDDLE) and not _any(shapes, f"{MIDDLE}1.") else SDXL


def _other_input(shapes: Shapes) -> bool:
    """Whether the UNet reads more than a noisy latent, and does not inpaint."""
    return channels_of(shapes) not in (0, SD1.unet.channels, INPAINTING)


def channels_of(shapes: Shapes) -> int:
    """How many the UNet of a checkpoint file reads; 0 where that is not known."""
    first = shapes.get(FIRST, ())
    return first[1] if len(first) == 4 else 0


def inpaints(shapes: Shapes) -> bool:
    """Whether a checkpoint file's UNet reads a hole and the rest of the picture behind its latents."""
    return channels_of(shapes) == INPAINTING


def usual_root(shapes: Shapes) -> tuple[str, str] | None:
    """How a text encoder's tensors begin in a file of the newer layout, and in the usual one; None where they do so.

    SD-Turbo is an SD 2.1 in the newer layout. The SDXL refiner has the same names and is wider.
    """
    own = SD2.encoders[0]
    norm = shapes.get(f"{REFINER_ENCODER}.ln_final.weight")
    return (f"{REFINER_ENCODER.removesuffix('.model')}.", own.root) if norm == (own.width,) else None


def model_in(root: nn.Module) -> Family | Stranger | None:
    """The same of a loaded model in ldm's or sgm's layout; the WebUI puts modules of its own around some."""
    return model_of({name.replace(".wrapped.", "."): tuple(one.shape) for name, one in root.named_parameters()})


class LookedAt:
    """What loaded models are. Each is looked at once for every file that is loaded into it: pages ask at each of their
    polls, and hosts load one checkpoint over another into the same modules, and take blocks out for it (SSD-1B)."""

    def __init__(self) -> None:
        self._seen: weakref.WeakKeyDictionary[nn.Module, tuple[object, Family | Stranger | None]] = (
            weakref.WeakKeyDictionary()
        )

    def model(self, root: nn.Module, file: object) -> Family | Stranger | None:
        """`model_in(root)`, which holds `file`."""
        seen = self._seen.get(root)
        if seen is None or seen[0] != file:
            self._seen[root] = seen = (file, model_in(root))
        return seen[1]


def folder_model(unet: Mapping[str, Any], *, several: bool) -> Family | Stranger:
    """What a diffusers folder is, by its UNet's config.json and whether it has several text encoders."""
    if unet.get("in_channels", SD1.unet.channels) not in (SD1.unet.channels, INPAINTING):
        return EDITING
    if unet.get("addition_embed_type") == "text_time":
        return SDXL if several else REFINER
    if several:
        return SDXL
    return SD2 if unet.get("use_linear_projection") else SD1


def lora_of(keys: Collection[str], metadata: Mapping[str, str], reads: int = 0) -> Family | None:
    """The family of a LoRA file, by its keys and what it says of itself; None where neither tells.

    `reads` is how wide the text is that its cross-attentions read, where that is known.
    """
    told = next((family for family in (SD1, SD2, SDXL) if family.unet.context == reads), None)
    if told is not None:
        return told
    version = metadata.get("ss_base_model_version", "")
    if version.startswith("sdxl") or any(key.startswith((f"{SDXL.encoders[1].key}_",)) for key in keys):
        return SDXL
    if metadata.get("ss_v2") == "True":
        return SD2
    if version.startswith(SD1.version):
        return SD1
    if any(SD1.unet.block_of_key(key) and "_blocks_" in key for key in keys):
        return SD1 if not any(key.startswith(_LDM_KEYS) for key in keys) else SDXL
    return None


_LDM_KEYS = tuple(f"{SDXL.unet.key}_{side}_block" for side in ("input", "middle", "output"))


def embedding_of(widths: Mapping[str, int]) -> Family | None:
    """The family of an embedding's file, by its tensors' names and their widths; None where neither tells."""
    if {encoder.rows for encoder in SDXL.encoders} & widths.keys():
        return SDXL
    known = {family.width: family for family in (SD1, SD2)}
    return known.get(next(iter(widths.values()))) if len(widths) == 1 else None


def _by_context(shapes: Shapes) -> Family | Stranger:
    """By the width of what the UNet reads, for a file without a text encoder."""
    width = next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0)
    known: dict[int, Family | Stranger] = {family.unet.context: family for family in (SD2, SDXL)}
    return known.get(width, REFINER if width == REFINER_CONTEXT else SD1)


def _any(names: Collection[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
