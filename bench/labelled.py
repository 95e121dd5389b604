"""SDXL's UNet out of ldm's modules, where sgm's own class is not at hand: it is in no package index.

sgm's was made from ldm's: it adds a vector to the time embedding, and its transformers are as deep as each resolution
wants and take one context for all layers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def labelled_unet(config: dict[str, Any]) -> nn.Module:
    """The UNet of sgm's description, with ldm's names besides (`image_size`, `legacy`); random weights.

    `transformer_depth` is a number, or one for each resolution.
    """
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    from ldm.modules.diffusionmodules.util import timestep_embedding

    depths = config["transformer_depth"]
    first, most = (depths, depths) if isinstance(depths, int) else (1, max(depths))

    class LabelledUNet(UNetModel):  # type: ignore[misc]
        def forward(self, x: Any, timesteps: Any = None, context: Any = None, y: Any = None) -> Any:
            embedded = self.time_embed(timestep_embedding(timesteps, self.model_channels)) + self.label_emb(y)
            context = [context] * most
            kept, h = [], x
            for block in self.input_blocks:
                h = block(h, embedded, context)
                kept.append(h)
            h = self.middle_block(h, embedded, context)
            for block in self.output_blocks:
                h = block(torch.cat([h, kept.pop()], dim=1), embedded, context)
            return self.out(h)

    own = {name: value for name, value in config.items() if name not in ("num_classes", "adm_in_channels")}
    unet = LabelledUNet(**own | {"context_dim": [config["context_dim"]] * first, "transformer_depth": first})
    if not isinstance(depths, int):
        widths = [config["model_channels"] * multiple for multiple in config["channel_mult"]]
        for module in unet.modules():
            if type(module).__name__ == "SpatialTransformer":
                blocks, depth = module.transformer_blocks, depths[widths.index(module.in_channels)]
                blocks.extend(copy.deepcopy(blocks[0]) for _ in range(depth - 1))
    width = 4 * config["model_channels"]
    layers = nn.Linear(config["adm_in_channels"], width), nn.SiLU(), nn.Linear(width, width)
    unet.label_emb = nn.Sequential(nn.Sequential(*layers))
    return unet
