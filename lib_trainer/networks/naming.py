"""Published names of UNet modules.

The WebUI's models name their blocks as CompVis' latent-diffusion does (`input_blocks.4.1`), LoRA files as diffusers
does (`down_blocks.1.attentions.0`). Both number the same blocks: a level of `input_blocks` holds `resnets` ResBlocks
and then a downsampler, and `input_blocks.0` is the first convolution.
"""

from __future__ import annotations

import re

_RESNET_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def diffusers_unet_name(ldm_name: str, resnets: int = 2) -> str | None:
    """`input_blocks.4.1.proj_in` → `down_blocks.1.attentions.0.proj_in`; None for modules outside the blocks.

    `resnets` is the model's `num_res_blocks`.
    """
    match = re.fullmatch(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.+)", ldm_name)
    if match:
        side, number, slot, rest = match.group(1), int(match.group(2)), int(match.group(3)), match.group(4)
        return _side_name(side, number, slot, rest, resnets)
    match = re.fullmatch(r"middle_block\.(\d)\.(.+)", ldm_name)
    if match:
        slot, rest = int(match.group(1)), match.group(2)
        if slot == 1:
            return f"mid_block.attentions.0.{rest}"
        return f"mid_block.resnets.{slot // 2}.{_resnet_part(rest)}"
    return None


def _side_name(side: str, number: int, slot: int, rest: str, resnets: int) -> str | None:
    if side == "input_blocks":
        if number == 0:
            return None
        level, place = divmod(number - 1, resnets + 1)
        if place == resnets:
            return f"down_blocks.{level}.downsamplers.0.conv" if rest == "op" else None
        block = f"down_blocks.{level}"
    else:
        level, place = divmod(number, resnets + 1)
        block = f"up_blocks.{level}"
        if slot > 0 and rest == "conv":
            return f"{block}.upsamplers.0.conv"
    if slot == 0:
        return f"{block}.resnets.{place}.{_resnet_part(rest)}"
    return f"{block}.attentions.{place}.{rest}"


def _resnet_part(rest: str) -> str:
    return _RESNET_PARTS.get(rest, rest)


def block_of(diffusers_name: str, resnets: int = 2) -> str:
    """Which of the UNet's 25 blocks a module stands in: `input_4`, `middle` or `output_11`.

    Raises `ValueError` for a module outside the blocks.
    """
    if diffusers_name.startswith("mid_block."):
        return "middle"
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", diffusers_name)
    if match is None:
        raise ValueError(f"{diffusers_name} is in no block")
    side, level, kind, place = match.group(1), int(match.group(2)), match.group(3), int(match.group(4))
    if side == "down":
        return f"input_{1 + level * (resnets + 1) + (resnets if kind == 'downsamplers' else place)}"
    return f"output_{level * (resnets + 1) + (resnets if kind == 'upsamplers' else place)}"


def block_of_key(key: str, resnets: int = 2) -> str | None:
    """The same from a key of a LoRA file (`lora_unet_down_blocks_1_attentions_0_…`); None outside the blocks."""
    if key.startswith("lora_unet_mid_block_"):
        return "middle"
    match = re.match(r"lora_unet_(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_", key)
    return None if match is None else block_of("{}_blocks.{}.{}.{}.".format(*match.groups()), resnets)


def unet_key(diffusers_name: str) -> str:
    """The key prefix in a LoRA file."""
    return "lora_unet_" + diffusers_name.replace(".", "_")


def text_encoder_key(module_name: str, prefix: str = "lora_te") -> str:
    """`text_model.encoder.layers.0.mlp.fc1` → `lora_te_text_model_encoder_layers_0_mlp_fc1` (transformers' CLIP)."""
    return f"{prefix}_" + module_name.replace(".", "_")
