"""Parts of a model in diffusers' and transformers' names, brought to those of a single file.

UNet: `families.names` has the blocks; here is what stands outside of them. VAE: diffusers counts the decoder's levels
from the coarsest, CompVis from the finest, and writes the attention's 1×1 convolutions as linear layers. Text encoders:
OpenCLIP keeps query, key and value of a layer in one matrix, and the projection transposed against transformers'
(diffusers, loaders/single_file_utils.py, does the same the other way).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import torch

from lib_trainer.families.family import Encoder, Unet
from lib_trainer.families.names import ldm_name
from lib_trainer.networks.formats.mapped import Stored

Tensors = Mapping[str, Stored]

OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "query": "q", "to_k": "k", "key": "k", "to_v": "v", "value": "v",
    "to_out.0": "proj_out", "proj_attn": "proj_out",
}  # fmt: skip
CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
CLIP_OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
FUSED = ("q_proj", "k_proj", "v_proj")


def ldm_unet(tensors: Tensors, unet: Unet) -> dict[str, Stored]:
    """diffusers' UNet by CompVis' names, without a prefix. What has no counterpart keeps its name."""
    attended = [depth > 0 for depth in unet.depths]
    found = {}
    for name, one in tensors.items():
        module, _, leaf = name.rpartition(".")
        new = OUTSIDE_BLOCKS.get(module) or ldm_name(module, attended, unet.resnets)
        found[f"{new}.{leaf}" if new else name] = one
    return found


def is_diffusers_vae(names: Mapping[str, object]) -> bool:
    return any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in names)


def ldm_vae(tensors: Tensors) -> dict[str, Stored]:
    """A VAE in either layout by CompVis' names, without a prefix."""
    if not is_diffusers_vae(tensors):
        return dict(tensors)
    levels = 1 + max((int(name.split(".")[2]) for name in tensors if name.startswith("decoder.up_blocks.")), default=0)
    found = {}
    for name, one in tensors.items():
        new = _vae_name(name, levels)
        projects = re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight$", new) is not None
        found[new] = _reshaped(one, (*one.shape, 1, 1)) if projects and len(one.shape) == 2 else one
    return found


def _vae_name(name: str, levels: int) -> str:
    side, _, rest = name.partition(".")
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets\.(\d+)|(?:down|up)samplers\.0)\.(.+)", rest)
    if match:
        way, level = match.group(1), int(match.group(2))
        level = levels - 1 - level if way == "up" else level
        inner = match.group(5).replace("conv_shortcut", "nin_shortcut")
        place = f"{way}sample" if match.group(4) is None else f"block.{match.group(4)}"
        return f"{side}.{way}.{level}.{place}.{inner}"
    match = re.fullmatch(r"mid_block\.resnets\.(\d)\.(.+)", rest)
    if match:
        return f"{side}.mid.block_{int(match.group(1)) + 1}.{match.group(2)}"
    match = re.fullmatch(r"mid_block\.attentions\.0\.(.+)\.(weight|bias)", rest)
    if match:
        return f"{side}.mid.attn_1.{VAE_ATTENTION.get(match.group(1), match.group(1))}.{match.group(2)}"
    return name.replace("conv_norm_out", "norm_out")


def checkpoint_text(tensors: Tensors, encoder: Encoder) -> dict[str, Stored]:
    """transformers' text encoder in the layout that a single file has it in, without a prefix and without
    `position_ids`, which are 0, 1, 2 …"""
    tensors = {name: one for name, one in tensors.items() if not name.endswith("position_ids")}
    if encoder.layout == "transformers":
        return tensors
    found: dict[str, Stored] = {}
    for name, one in tensors.items():
        match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if name == "text_projection.weight":
            found["text_projection"] = Stored((one.shape[1], one.shape[0]), one.dtype, partial(_turned, one.load))
        elif match is None:
            found[CLIP_OUTSIDE.get(name, name)] = one
        else:
            block, inner, leaf = f"transformer.resblocks.{match.group(1)}", match.group(2), match.group(3)
            if inner.rpartition(".")[2] not in FUSED:
                found[f"{block}.{CLIP_LAYER.get(inner, inner)}.{leaf}"] = one
            elif inner.endswith(FUSED[0]):
                found[f"{block}.attn.in_proj_{leaf}"] = _joined([tensors[name.replace("q_proj", p)] for p in FUSED])
    return found


def _reshaped(one: Stored, shape: tuple[int, ...]) -> Stored:
    def load() -> torch.Tensor:
        return one.load().reshape(shape)

    return Stored(shape, one.dtype, load)


def _joined(pieces: list[Stored]) -> Stored:
    shape = (sum(one.shape[0] for one in pieces), *pieces[0].shape[1:])

    def load() -> torch.Tensor:
        return torch.cat([one.load() for one in pieces])

    return Stored(shape, pieces[0].dtype, load)


def _turned(load: Callable[[], torch.Tensor]) -> torch.Tensor:
    return load().T.contiguous()
