"""What a part of a model is, whatever file it lies in: each by CompVis' names, with a hash of its numbers.

The hash is the SHA-256 of every tensor's name, shape and numbers rounded to fp16, in the order of the names. It is the
same for .ckpt, .safetensors, diffusers folders and parts on their own, for fp32 and for fp16. Left out is what
containers disagree about: `position_ids`, `logit_scale`, and layers of a text encoder that nothing reads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping

import torch

from lib_trainer.families.family import Encoder, Family
from lib_trainer.families.known import FAMILIES
from lib_trainer.networks.formats.mapped import Stored
from lib_trainer.toolbox.facts import Facts
from lib_trainer.toolbox.layouts import Tensors, checkpoint_text, ldm_unet
from lib_trainer.toolbox.source import AT_ONCE, Source
from lib_trainer.toolbox.vae import vae_of

SHOWN = 10
"""Digits of a hash that people are shown."""
MOST = torch.finfo(torch.float16).max
SAMPLED, NUMBERS = 8, 32
"""Tensors, and numbers of each, that a quick look compares."""
UNREAD = ("position_ids", "logit_scale")


def components(source: Source, facts: Facts) -> dict[str, dict[str, Stored]]:
    """{"unet", "te1", "te2", "vae" or "text encoder": {CompVis' name: tensor}} of what a file holds."""
    found: dict[str, dict[str, Stored]] = {}
    if isinstance(facts.family, Family):
        unet = facts.family.unet
        found["unet"] = _below(source.tensors, unet.prefix)
        for encoder in facts.family.encoders:
            found[encoder.part] = _read(_below(source.tensors, encoder.prefix), encoder)
    elif facts.kind == "UNet":
        found["unet"] = _unet_alone(source.tensors)
    elif facts.kind == "text encoder":
        found["text encoder"] = _text_alone(source.tensors)
    found["vae"] = {name.partition(".")[2]: one for name, one in vae_of(source).items()}
    return {name: tensors for name, tensors in found.items() if tensors}


def _below(tensors: Tensors, prefix: str) -> dict[str, Stored]:
    return {name[len(prefix) :]: one for name, one in tensors.items() if name.startswith(prefix)}


def _read(tensors: Tensors, encoder: Encoder) -> dict[str, Stored]:
    """Without the layers behind the last one that is read, and what only they need: files differ in having them."""
    found = {}
    for name, one in tensors.items():
        layer = re.match(r"transformer\.resblocks\.(\d+)\.", name)
        unread = layer is not None and int(layer.group(1)) >= encoder.adapted
        if not unread and not name.endswith(UNREAD) and (encoder.pooled or name != "text_projection"):
            found[name] = one
    return found


def _unet_alone(tensors: Tensors) -> dict[str, Stored]:
    if any(name.startswith("input_blocks.") for name in tensors):
        return dict(tensors)
    width = next((one.shape[1] for name, one in tensors.items() if name.endswith("attn2.to_k.weight")), 0)
    family = next((one for one in FAMILIES if one.unet.context == width), FAMILIES[0])
    return ldm_unet(tensors, family.unet)


def _text_alone(tensors: Tensors) -> dict[str, Stored]:
    """transformers' layout of a width that OpenCLIP's encoders have becomes OpenCLIP's."""
    for encoder in (encoder for family in FAMILIES for encoder in family.encoders):
        inside = _below(tensors, encoder.prefix)
        if inside:
            return _read(inside, encoder)
    width = next((one.shape[-1] for name, one in tensors.items() if name.endswith("token_embedding.weight")), 0)
    known = [encoder for family in FAMILIES for encoder in family.encoders if encoder.width == width]
    if not known:
        return {name: one for name, one in tensors.items() if not name.endswith(UNREAD)}
    named = checkpoint_text(tensors, known[0]) if any(name.startswith("text_model.") for name in tensors) else tensors
    return _read(named, known[0])


def identity(tensors: Mapping[str, Stored], advance: Callable[[int], None] = lambda count: None) -> str:
    """The hash of a component, as hexadecimal digits. `advance` is told bytes of the files that were read."""
    told = hashlib.sha256()
    for name in sorted(tensors):
        one = tensors[name]
        told.update(f"{name} {_shape(one)}\n".encode())
        flat = one.load().reshape(-1)
        for start in range(0, flat.numel(), AT_ONCE):
            numbers = flat[start : start + AT_ONCE]
            told.update(_rounded(numbers).view(torch.uint8).numpy().data)
            advance(numbers.numel() * numbers.element_size())
    return told.hexdigest()


def glance(tensors: Mapping[str, Stored]) -> str:
    """A hash of names, shapes and a few numbers: where it differs, the components do."""
    told = hashlib.sha256()
    for place, name in enumerate(sorted(tensors)):
        one = tensors[name]
        told.update(f"{name} {_shape(one)}\n".encode())
        if place < SAMPLED:
            told.update(_rounded(one.load().reshape(-1)[:NUMBERS]).view(torch.uint8).numpy().data)
    return told.hexdigest()


def _rounded(numbers: torch.Tensor) -> torch.Tensor:
    """To fp16, beyond its range to its largest, as the toolbox writes it; there is one zero."""
    return numbers.float().clamp(-MOST, MOST).half().add_(0.0).contiguous()


def _shape(one: Stored) -> tuple[int, ...]:
    """Without ones at its end: 1×1 convolutions are linear layers in some files."""
    shape = list(one.shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)
