"""Captions through transformers' CLIP text model, which SD 1.x uses on every host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lib_trainer.networks.naming import text_encoder_key
from lib_trainer.ports import AdaptableModule, Conditioning, Part

CHUNK = 75
"""Tokens of a chunk without its begin and end marks; the model reads 77."""


class ClipText:
    """A CLIP text encoder with its tokenizer. `transformer` is transformers' CLIPTextModel, in place."""

    def __init__(self, transformer: nn.Module, tokenizer: Any) -> None:
        self.transformer, self.tokenizer = transformer, tokenizer

    def encode(self, captions: Sequence[str], clip_skip: int, max_chunks: int) -> Conditioning:
        """Captions, literally, as (B, 77·n, D); n ≤ `max_chunks` is what the longest one needs.

        Each chunk is encoded for itself with its own begin and end marks, as the WebUI encodes long prompts.
        `clip_skip` 1 takes the last layer; the final norm is applied in any case.
        """
        chunks = [self._chunks(caption)[:max_chunks] for caption in captions]
        longest = max(len(own) for own in chunks)
        empty = self._marked([])
        flat = [ids for own in chunks for ids in own + [empty] * (longest - len(own))]
        device = next(self.transformer.parameters()).device
        hidden = self._hidden(torch.tensor(flat, device=device), clip_skip)
        return Conditioning(hidden.reshape(len(captions), longest * hidden.shape[1], hidden.shape[2]))

    def _hidden(self, ids: torch.Tensor, clip_skip: int) -> torch.Tensor:
        if clip_skip == 1:
            last: torch.Tensor = self.transformer(input_ids=ids, return_dict=True).last_hidden_state
            return last
        states = self.transformer(input_ids=ids, output_hidden_states=True, return_dict=True).hidden_states
        layers = len(states) - 1
        norm: Any = self.transformer.text_model.final_layer_norm  # type: ignore[union-attr]
        normed: torch.Tensor = norm(states[-min(clip_skip, layers)])
        return normed

    def _chunks(self, caption: str) -> list[list[int]]:
        ids = self.tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return [self._marked(ids[start : start + CHUNK]) for start in range(0, max(1, len(ids)), CHUNK)]

    def _marked(self, ids: list[int]) -> list[int]:
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return [begin, *ids] + [end] * (CHUNK + 1 - len(ids))

    def adaptable(self, part: Part = "te1", prefix: str = "lora_te") -> Iterator[AdaptableModule]:
        """The linear layers of the encoder's blocks: q, k, v, out, fc1 and fc2 of each."""
        for name, module in self.transformer.named_modules():
            if isinstance(module, nn.Linear) and "encoder.layers." in name:
                layer = name.split("encoder.layers.")[1].split(".")[0]
                key = text_encoder_key(name, prefix)
                yield AdaptableModule(key, module, part, "transformer", f"layer_{layer}")

    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing recomputes."""
        return list(self.transformer.text_model.encoder.layers)  # type: ignore[union-attr,arg-type]
