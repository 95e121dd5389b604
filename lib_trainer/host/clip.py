"""Captions through transformers' CLIP text model, which SD 1.x uses on every host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.networks.adapters import replaced_forward
from lib_trainer.networks.naming import text_encoder_key
from lib_trainer.ports import AdaptableModule, Conditioning, Part

CHUNK = 75
"""Tokens of a chunk without its begin and end marks; the model reads 77."""


class ClipText:
    """A CLIP text encoder with its tokenizer. `transformer` is transformers' CLIPTextModel, in place."""

    def __init__(self, transformer: nn.Module, tokenizer: Any) -> None:
        self.transformer, self.tokenizer = transformer, tokenizer
        self._words: list[tuple[list[int], list[int]]] = []
        """Tokens of each added word, and the ids beyond the vocabulary that stand for its rows."""

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
        ids = self._ids(caption)
        if not self._words:
            return [self._marked(ids[start : start + CHUNK]) for start in range(0, max(1, len(ids)), CHUNK)]
        chunks: list[list[int]] = [[]]
        for piece in self._pieces(ids):
            if len(chunks[-1]) + len(piece) > CHUNK:
                chunks.append([])
            chunks[-1] += piece
        return [self._marked(own) for own in chunks]

    def _pieces(self, ids: list[int]) -> Iterator[list[int]]:
        """Tokens one by one, and added words whole; of words that begin alike the longest, as the WebUI finds them."""
        start = 0
        while start < len(ids):
            fits = [(own, new) for own, new in self._words if ids[start : start + len(own)] == own]
            own, new = max(fits, key=lambda pair: len(pair[0]), default=([0], ids[start : start + 1]))
            yield new
            start += len(own)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return ids

    def _marked(self, ids: list[int]) -> list[int]:
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return [begin, *ids] + [end] * (CHUNK + 1 - len(ids))

    @property
    def width(self) -> int:
        return int(self._vocabulary().shape[1])

    def rows(self, text: str) -> torch.Tensor:
        return self._vocabulary()[self._ids(text)].detach().float().cpu().clone()

    def usual_norm(self) -> float:
        return float(self._vocabulary().detach().float().norm(dim=1).mean())

    def _vocabulary(self) -> torch.Tensor:
        table = self._table()
        weight: torch.Tensor = getattr(table, "wrapped", table).weight  # the WebUI puts a module of its own around it
        return weight

    def _table(self) -> Any:
        return self.transformer.text_model.embeddings.token_embedding  # type: ignore[union-attr]

    @contextlib.contextmanager
    def extended(self, words: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """The ids beyond the vocabulary are looked up in the rows, all others where they always are."""
        if not words:
            yield
            return
        before, table = self._words, self._table()
        first = int(self._vocabulary().shape[0]) + sum(len(new) for _, new in before)
        added, free = [], first
        for word, rows in words.items():
            added.append((self._ids(word), list(range(free, free + len(rows)))))
            free += len(rows)
        inner = table.forward

        def forward(input_ids: torch.Tensor) -> torch.Tensor:
            own = (input_ids >= first) & (input_ids < free)
            found: torch.Tensor = inner(torch.where(own, 0, input_ids))
            if not torch.is_grad_enabled() and not bool(own.any()):
                return found  # with gradients, captions without the word (it may be cut off) give zeros and no error
            rows = torch.cat(list(words.values())).to(found.device)
            looked_up = F.embedding(torch.where(own, input_ids - first, 0), rows).to(found.dtype)
            return torch.where(own.unsqueeze(-1), looked_up, found)

        self._words = [*before, *added]
        try:
            with replaced_forward(table, forward):
                yield
        finally:
            self._words = before

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
