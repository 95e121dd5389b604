"""A text encoder of open_clip's classes (2.20 and later): SD 2.x's, and SDXL's second one, in the WebUI.

`module` is its CLIP, of which the text tower lies at the root: `token_embedding`, `positional_embedding`,
`transformer.resblocks`, `ln_final`, and where something reads it `text_projection` and `attn_mask`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lib_trainer.autocasting import compute_dtype
from lib_trainer.families.family import Encoder
from lib_trainer.host.text.encoder import TextEncoder, at_end
from lib_trainer.networks.fused import FusedAttention
from lib_trainer.patching import attribute
from lib_trainer.ports import AdaptableModule


class OpenClipEncoder(TextEncoder):
    def __init__(self, module: Any, described: Encoder) -> None:
        super().__init__(module, described)
        self.attentions = [FusedAttention(block.attn) for block in module.transformer.resblocks]

    @property
    def table(self) -> Any:
        return self.module.token_embedding

    def blocks(self) -> list[nn.Module]:
        blocks: Any = self.module.transformer.resblocks  # type: ignore[union-attr]
        return list(blocks)

    def adaptable(self) -> Iterator[AdaptableModule]:
        """Under transformers' names: q, k, v and out of the fused attention, `c_fc` as fc1, `c_proj` as fc2."""
        pairs: Any = zip(self.blocks(), self.attentions, strict=True)
        for layer, (block, attention) in enumerate(pairs):
            if layer < self.described.adapted:
                for name, projection in attention.layers.items():
                    yield self.adapted(layer, f"self_attn.{name}", projection)
                yield self.adapted(layer, "mlp.fc1", block.mlp.c_fc)
                yield self.adapted(layer, "mlp.fc2", block.mlp.c_proj)

    def encoded(self, ids: torch.Tensor, clip_skip: int, end: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        text: Any = self.module
        hidden: torch.Tensor = self.table(ids) + text.positional_embedding
        if self._lean:
            hidden = hidden.to(compute_dtype(hidden))
        blocks: list[Any] = self.blocks()
        read = len(blocks) + 1 - self.depth(clip_skip)
        first = blocks[0].attn.batch_first
        hidden = wanted = hidden if first else hidden.transpose(0, 1)
        for count, block in enumerate(blocks if self.described.pooled else blocks[:read], start=1):
            hidden = block(hidden, attn_mask=text.attn_mask)
            wanted = hidden if count == read else wanted
        hidden, wanted = (one if first else one.transpose(0, 1) for one in (hidden, wanted))
        pooled = None
        if self.described.pooled:
            whole, projection = at_end(text.ln_final(hidden), ids, end), text.text_projection
            pooled = projection(whole) if isinstance(projection, nn.Module) else whole @ projection
        return text.ln_final(wanted) if self.described.final_norm else wanted, pooled

    @contextlib.contextmanager
    def lean(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for attention in self.attentions:
                stack.enter_context(attribute(attention, "refresh", None))
                stack.enter_context(attention.called())
            stack.enter_context(attribute(self, "_lean", True))
            yield
