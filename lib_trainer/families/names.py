"""Names of UNet modules in the two layouts that files use, and the block that each stands in.

CompVis' latent-diffusion (`ldm`, and Stability's SGM) counts blocks (`input_blocks.4.1`), diffusers sorts them by what
they are (`down_blocks.1.attentions.0`). Both number the same blocks: a level of `input_blocks` holds `resnets`
ResBlocks and then a downsampler, and `input_blocks.0` is the first convolution.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Layout = Literal["ldm", "diffusers"]
RESNET_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
"""ldm's names inside a ResBlock, and diffusers'."""
LDM_PARTS = {theirs: own for own, theirs in RESNET_PARTS.items()}
KINDS = "resnets|attentions|downsamplers|upsamplers"


def diffusers_name(ldm: str, resnets: int = 2) -> str | None:
    """`input_blocks.4.1.proj_in` → `down_blocks.1.attentions.0.proj_in`; None for modules outside the blocks.

    `resnets` is the model's `num_res_blocks`.
    """
    match = re.fullmatch(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.+)", ldm)
    if match:
        side, number, slot, rest = match.group(1), int(match.group(2)), int(match.group(3)), match.group(4)
        return _side_name(side, number, slot, rest, resnets)
    match = re.fullmatch(r"middle_block\.(\d)\.(.+)", ldm)
    if match:
        slot, rest = int(match.group(1)), match.group(2)
        if slot == 1:
            return f"mid_block.attentions.0.{rest}"
        return f"mid_block.resnets.{slot // 2}.{RESNET_PARTS.get(rest, rest)}"
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
        return f"{block}.resnets.{place}.{RESNET_PARTS.get(rest, rest)}"
    return f"{block}.attentions.{place}.{rest}"


def ldm_name(diffusers: str, attended: Sequence[bool], resnets: int = 2) -> str | None:
    """The way back. `attended`: whether there is attention at each resolution, the finest first."""
    match = re.fullmatch(rf"mid_block\.({KINDS})\.(\d+)\.(.+)", diffusers)
    if match:
        kind, place, rest = match.group(1), int(match.group(2)), match.group(3)
        slot, rest = (1, rest) if kind == "attentions" else (2 * place, LDM_PARTS.get(rest, rest))
        return f"middle_block.{slot}.{rest}"
    match = re.fullmatch(rf"(down|up)_blocks\.(\d+)\.({KINDS})\.(\d+)\.(.+)", diffusers)
    if match is None:
        return None
    side, level, kind, place, rest = match.group(1), int(match.group(2)), match[3], int(match.group(4)), match[5]
    first = level * (resnets + 1)
    if kind == "downsamplers":
        return f"input_blocks.{1 + first + resnets}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{first + resnets}.{2 if attended[-1 - level] else 1}.conv"
    block = f"input_blocks.{1 + first + place}" if side == "down" else f"output_blocks.{first + place}"
    return f"{block}.0.{LDM_PARTS.get(rest, rest)}" if kind == "resnets" else f"{block}.1.{rest}"


def block_of(name: str, resnets: int = 2) -> str | None:
    """Which of the UNet's blocks a module stands in, by its name in either layout: `input_4`, `middle` or `output_11`.

    None for a module outside the blocks.
    """
    if name.startswith(("mid_block.", "middle_block.")):
        return "middle"
    match = re.match(r"(input|output)_blocks\.(\d+)\.\d+\.", name)
    if match is not None:  # input_blocks.0 is a convolution before all blocks
        return f"{match.group(1)}_{match.group(2)}" if match.group(0) != "input_blocks.0.0." else None
    match = re.match(rf"(down|up)_blocks\.(\d+)\.({KINDS})\.(\d+)\.", name)
    if match is None:
        return None
    side, level, kind, place = match.group(1), int(match.group(2)), match.group(3), int(match.group(4))
    if side == "down":
        return f"input_{1 + level * (resnets + 1) + (resnets if kind == 'downsamplers' else place)}"
    return f"output_{level * (resnets + 1) + (resnets if kind == 'upsamplers' else place)}"


def block_of_key(key: str, resnets: int = 2) -> str | None:
    """The same from a key of a LoRA file, in which dots are underscores (`down_blocks_1_attentions_0_…`)."""
    if key.startswith(("mid_block_", "middle_block_")):
        return "middle"
    match = re.match(rf"(down|up)_blocks_(\d+)_({KINDS})_(\d+)_", key)
    if match is not None:
        return block_of("{}_blocks.{}.{}.{}.".format(*match.groups()), resnets)
    match = re.match(r"(input|output)_blocks_(\d+)_(\d+)_", key)
    return None if match is None else block_of("{}_blocks.{}.{}.".format(*match.groups()), resnets)


def is_spatial(key: str) -> bool:
    """Whether a key of a LoRA file is of a 3×3 convolution: LoHa's and LoKr's tensors do not tell the kernel."""
    ends = ("_conv1", "_conv2", "_conv", "_conv_in", "_conv_out", "_in_layers_2", "_out_layers_3", "_op")
    return key.endswith(ends)


def is_resnet(key: str) -> bool:
    """Whether a key of a LoRA file is of a resnet or sampler, which LoCon adds."""
    ldm = re.search(r"_(in|out|emb)_layers_\d|_skip_connection|_blocks_\d+_\d_(op|conv)$", key.partition(".")[0])
    return "_resnets_" in key or "samplers_" in key or ldm is not None
