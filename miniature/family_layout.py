"""From diffusers' and transformers' names to the single file of SD2 and SDXL, at build time.

The names are spelt out here; `prove` holds them against diffusers' own converters, read in the other direction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from .common import SCALING_FACTOR
from .ldm_layout import UNET, VAE, State, schedule_buffers
from .recipes import Encoder, Recipe

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_AROUND = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
}
_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_LAYERS = "text_model.encoder.layers."


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    """name with the start that the table knows replaced."""
    for old, new in table.items():
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return None


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """The single file's name of a UNet's tensor, without its prefix. Two resnets a level, as in every SD."""
    for old, new in _AROUND.items():
        if name.startswith(old + "."):
            return f"{new}.{_inside(name[len(old) + 1 :], 'resnets' in old)}"
    side, level, part, index, rest = name.split(".", 4)
    first = 3 * int(level)
    if part == "downsamplers":
        return f"input_blocks.{first + 3}.0.op.{rest.removeprefix('conv.')}"
    if part == "upsamplers":
        place = 2 if config["up_block_types"][int(level)].startswith("CrossAttn") else 1
        return f"output_blocks.{first + 2}.{place}.{rest}"
    block = f"input_blocks.{first + int(index) + 1}" if side == "down_blocks" else f"output_blocks.{first + int(index)}"
    return f"{block}.{int(part == 'attentions')}.{_inside(rest, part == 'resnets')}"


def _inside(rest: str, resnet: bool) -> str:
    """The rest of a name within its block; transformers have the same names on both sides."""
    return (_renamed(rest, _RESNET) or rest) if resnet else rest


def open_clip(state: State) -> State:
    """transformers' CLIPTextModelWithProjection in open_clip's names: q, k and v fused, the projection transposed."""
    out: State = {"logit_scale": torch.tensor(math.log(1 / 0.07))}
    for name, value in state.items():
        if name.startswith(_LAYERS):
            number, rest = name.removeprefix(_LAYERS).split(".", 1)
            start = f"transformer.resblocks.{number}."
            if rest.startswith("self_attn.q_proj."):
                kind = rest.rsplit(".", 1)[1]
                thirds = [state[f"{_LAYERS}{number}.self_attn.{one}_proj.{kind}"] for one in "qkv"]
                out[f"{start}attn.in_proj_{kind}"] = torch.cat(thirds)
            elif not rest.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
                out[start + (_renamed(rest, _BLOCK) or rest)] = value
        elif name == "text_projection.weight":
            out["text_projection"] = value.T
        elif not name.endswith("position_ids"):
            out[_renamed(name, _OPEN_CLIP) or name] = value
    return out


def text_state(encoder: Encoder, state: State) -> State:
    """One encoder's part of the single file."""
    if encoder.open_clip:
        return {encoder.prefix + name: value for name, value in open_clip(state).items()}
    positions = {"text_model.embeddings.position_ids": torch.arange(77, dtype=torch.int64)[None]}
    return {encoder.prefix + name: value for name, value in (state | positions).items()}


def vae_state(vae: State, scaling_factor: float) -> State:
    """The SD1 miniature's VAE, in ldm's names, giving unit variance at another latent scale than SD1's.

    As in train_vae.fold_scale: the means grow by the factor, the log-variances by twice its logarithm.
    """
    factor = SCALING_FACTOR / scaling_factor
    out = {name: value.float() for name, value in vae.items() if name.startswith(VAE)}
    weight, bias = out[f"{VAE}quant_conv.weight"].clone(), out[f"{VAE}quant_conv.bias"].clone()
    channels = len(bias) // 2
    weight[:channels] *= factor
    bias[:channels] *= factor
    bias[channels:] += 2.0 * math.log(factor)
    back = out[f"{VAE}post_quant_conv.weight"] / factor
    return out | {
        f"{VAE}quant_conv.weight": weight,
        f"{VAE}quant_conv.bias": bias,
        f"{VAE}post_quant_conv.weight": back,
    }


def to_single_file(recipe: Recipe, unet: State, texts: list[State], vae: State) -> State:
    """The checkpoint in fp16: what training left of the UNet and the encoders, and the SD1 miniature's VAE."""
    out = {UNET + unet_name(name, recipe.unet): value for name, value in unet.items()}
    for encoder, state in zip(recipe.encoders, texts):
        out |= text_state(encoder, state)
    out |= vae_state(vae, recipe.scaling_factor)
    half = {name: value.half() if value.is_floating_point() else value for name, value in out.items()}
    half = {name: value.detach().clone().contiguous() for name, value in half.items()}
    markers = {name: torch.empty(0) for name in recipe.markers}
    return {**({} if recipe.sizes else schedule_buffers()), **half, **markers}


def prove(recipe: Recipe, single: State, unet: State, texts: list[State]) -> None:
    """diffusers' converters make of the single file what training left. Raises `ValueError` naming what differs."""
    from diffusers.loaders import single_file_utils as convert

    again = {"unet": convert.convert_ldm_unet_checkpoint(dict(single), dict(recipe.unet))}
    wanted = {"unet": unet}
    for number, (encoder, state) in enumerate(zip(recipe.encoders, texts)):
        again[f"text {number}"] = from_single_text(encoder, single)
        # Of SD2's projection nothing is read, neither here nor elsewhere.
        unread = ("position_ids", "text_projection.weight") if encoder.final_norm else ("position_ids",)
        wanted[f"text {number}"] = {name: value for name, value in state.items() if not name.endswith(unread)}
    for part, state in wanted.items():
        if odd := sorted(set(state) ^ set(again[part])):
            raise ValueError(f"{part}: {odd[:4]}")
        if odd := [name for name in state if not torch.equal(state[name].half(), again[part][name].half())]:
            raise ValueError(f"{part} has other values: {odd[:4]}")


def fill(module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load every weight. Position ids are what they are: transformers made that buffer non-persistent in 4.31."""
    own = {name: value for name, value in module.state_dict().items() if name.endswith("position_ids")}
    module.load_state_dict({name: value for name, value in state.items() if not name.endswith("position_ids")} | own)


def from_single_text(encoder: Encoder, single: Mapping[str, torch.Tensor]) -> State:
    """One encoder in transformers' names and layout, through diffusers' own converters."""
    from diffusers.loaders import single_file_utils as convert

    if not encoder.open_clip:
        found: State = convert.convert_ldm_clip_checkpoint(dict(single), remove_prefix=encoder.prefix)
        found.pop("text_model.embeddings.position_ids", None)
        return found
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    # The converter asks a model for its widths alone.
    model = CLIPTextModelWithProjection(CLIPTextConfig(**encoder.config))
    found = convert.convert_open_clip_checkpoint(model, dict(single), prefix=encoder.prefix)
    found.pop("text_model.embeddings.position_ids", None)
    return found
