"""Tensors of a text encoder in open_clip's layout, and where they are in transformers' CLIP.

open_clip (github.com/mlfoundations/open_clip) keeps q, k and v of an attention one upon the other in one tensor, and
multiplies by `text_projection` from the right where transformers has a Linear.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

FUSED = ("q_proj", "k_proj", "v_proj")
"""transformers' names of the thirds of `in_proj_weight` and `in_proj_bias`, from the first row on."""

IN_BLOCKS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
WHOLE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}


@dataclass(frozen=True)
class InFile:
    """Where a parameter's numbers are in a checkpoint file.

    name    of the file's tensor
    third   which third of its rows the parameter is; None: all of it
    turned  whether the file holds the transpose
    """

    name: str
    third: int | None = None
    turned: bool = False

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """The parameter's numbers, out of the file's tensor."""
        part = tensor if self.third is None else tensor.chunk(3)[self.third]
        return part.T if self.turned else part


def places(names: Iterable[str], prefix: str = "") -> dict[str, InFile]:
    """{transformers' name: where it is} of the tensors in open_clip's layout; what transformers lacks is left out.

    `names` are without `prefix`, which the file's names begin with.
    """
    found: dict[str, InFile] = {}
    for name in names:
        if name in WHOLE:
            found[WHOLE[name]] = InFile(prefix + name, turned=name == "text_projection")
        elif block := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)", name):
            if block[2] in IN_BLOCKS:
                found[f"text_model.encoder.layers.{block[1]}.{IN_BLOCKS[block[2]]}.{block[3]}"] = InFile(prefix + name)
        elif fused := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
            for third, part in enumerate(FUSED):
                own = f"text_model.encoder.layers.{fused[1]}.self_attn.{part}.{fused[2]}"
                found[own] = InFile(prefix + name, third)
    return found


def joined(parts: Mapping[InFile, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters as a file holds them: thirds upon each other, and what is turned turned back.

    Raises `ValueError` where a third is missing.
    """
    whole: dict[str, torch.Tensor] = {}
    thirds: dict[str, dict[int, torch.Tensor]] = {}
    for place, tensor in parts.items():
        if place.third is None:
            whole[place.name] = tensor.T.contiguous() if place.turned else tensor
        else:
            thirds.setdefault(place.name, {})[place.third] = tensor
    for name, own in thirds.items():
        if len(own) != len(FUSED):
            raise ValueError(f"{name} is in {len(FUSED)} parts, and {len(own)} are there")
        whole[name] = torch.cat([own[third] for third in range(len(FUSED))])
    return whole
