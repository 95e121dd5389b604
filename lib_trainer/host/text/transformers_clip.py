"""A text encoder of transformers' classes: CLIPTextModel, or CLIPTextModelWithProjection where the UNet reads a pooled
vector."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.autocasting import compute_dtype
from lib_trainer.host.text.encoder import TextEncoder, at_end
from lib_trainer.patching import attribute, replaced_forward
from lib_trainer.ports import AdaptableModule


class TransformersEncoder(TextEncoder):
    @property
    def _text(self) -> Any:
        return self.module.text_model

    @property
    def table(self) -> Any:
        return self._text.embeddings.token_embedding

    def blocks(self) -> list[nn.Module]:
        return list(self._text.encoder.layers)

    def adaptable(self) -> Iterator[AdaptableModule]:
        for layer, block in enumerate(self.blocks()[: self.described.adapted]):
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear):
                    yield self.adapted(layer, name, module)

    def encoded(self, ids: torch.Tensor, clip_skip: int, end: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        depth = self.depth(clip_skip)
        if self._lean:
            hidden, last = self._lean_states(ids, depth)
        elif depth == 1 and self.described.final_norm and not self.described.pooled:
            return self.module(input_ids=ids, return_dict=True).last_hidden_state, None
        else:
            states = self.module(input_ids=ids, output_hidden_states=True, return_dict=True).hidden_states
            hidden, last = states[-depth], states[-1]
        norm = self._text.final_layer_norm
        pooled = None
        if self.described.pooled:
            pooled = self.module.text_projection(at_end(norm(last), ids, end))  # type: ignore[operator]
        return norm(hidden) if self.described.final_norm else hidden, pooled

    def _lean_states(self, ids: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer `depth` from the end and the last one, without what nobody reads: layers that are skipped, and a
        mask made on the host."""
        hidden: torch.Tensor = self._text.embeddings(input_ids=ids)
        hidden = wanted = hidden.to(compute_dtype(hidden))
        blocks = self.blocks()
        read = len(blocks) + 1 - depth
        for count, layer in enumerate(blocks if self.described.pooled else blocks[:read], start=1):
            out = layer(hidden, attention_mask=None, causal_attention_mask=None)
            hidden = out[0] if isinstance(out, tuple) else out
            wanted = hidden if count == read else wanted
        return wanted, hidden

    @contextlib.contextmanager
    def lean(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for block in self.blocks():
                attention: Any = block.self_attn
                stack.enter_context(replaced_forward(attention, functools.partial(attend_causally, attention)))
            stack.enter_context(attribute(self, "_lean", True))
            yield


def attend_causally(module: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
    """CLIP's self-attention by torch's fused kernels: each token sees itself and those before it.

    `module` has transformers' `q_proj`, `k_proj`, `v_proj`, `out_proj` and `num_heads`; (N, T, D) → (N, T, D).
    """
    folded = (*hidden_states.shape[:2], module.num_heads, -1)
    q, k, v = (
        project(hidden_states).view(folded).transpose(1, 2) for project in (module.q_proj, module.k_proj, module.v_proj)
    )
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return module.out_proj(attended.transpose(1, 2).reshape(hidden_states.shape)), None
