"""Captions through transformers' CLIP text model, on every host."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.autocasting import compute_dtype
from lib_trainer.families.family import Encoder
from lib_trainer.families.known import DEFAULT
from lib_trainer.patching import replaced_forward
from lib_trainer.ports import AdaptableModule, Conditioning
from lib_trainer.transfer import sent

CHUNK = 75
"""Tokens of a chunk without its begin and end marks; the model reads 77."""

KNOWN_CAPTIONS = 20_000
"""Captions whose tokens are kept: a set has each at every epoch, and CLIP's tokenizer takes a millisecond for one."""


class ClipText:
    """A CLIP text encoder with its tokenizer. `transformer` is transformers' CLIPTextModel, in place.

    `encoder` says which layer the UNet reads, whether normed, what chunks are filled with, and its names in files.
    """

    def __init__(self, transformer: nn.Module, tokenizer: Any, encoder: Encoder = DEFAULT.encoders[0]) -> None:
        self.transformer, self.tokenizer, self.encoder = transformer, tokenizer, encoder
        self._words: list[tuple[list[int], list[int]]] = []
        """Tokens of each added word, and the ids beyond the vocabulary that stand for its rows."""
        self._known: dict[str, list[int]] = {}
        self._lean = False

    def encode(self, captions: Sequence[str], clip_skip: int, max_chunks: int) -> Conditioning:
        """Captions, literally, as (B, 77·n, D); n ≤ `max_chunks` is what the longest one needs.

        Each chunk is encoded for itself with its own begin and end marks, as the WebUI encodes long prompts.
        `clip_skip` 1 takes the layer that the family's UNet reads, 2 the one before it.
        """
        chunks = [self._chunks(caption)[:max_chunks] for caption in captions]
        longest = max(len(own) for own in chunks)
        empty = self._marked([])
        flat = [ids for own in chunks for ids in own + [empty] * (longest - len(own))]
        hidden = self.hidden(sent(torch.tensor(flat), next(self.transformer.parameters()).device), clip_skip)
        return Conditioning(hidden.reshape(len(captions), longest * hidden.shape[1], hidden.shape[2]))

    def hidden(self, ids: torch.Tensor, clip_skip: int) -> torch.Tensor:
        """Token ids (N, 77) → what the UNet reads, (N, 77, D)."""
        if self._lean:
            return self._lean_hidden(ids, clip_skip)
        depth = clip_skip + self.encoder.skipped
        if depth == 1 and self.encoder.final_norm:
            last: torch.Tensor = self.transformer(input_ids=ids, return_dict=True).last_hidden_state
            return last
        states = self.transformer(input_ids=ids, output_hidden_states=True, return_dict=True).hidden_states
        return self._normed(states[-min(depth, len(states) - 1)])

    def _normed(self, hidden: torch.Tensor) -> torch.Tensor:
        norm: Any = self.transformer.text_model.final_layer_norm  # type: ignore[union-attr]
        normed: torch.Tensor = norm(hidden) if self.encoder.final_norm else hidden
        return normed

    def _lean_hidden(self, ids: torch.Tensor, clip_skip: int) -> torch.Tensor:
        """The same without what nobody reads: layers that are skipped, the pooled vector, a mask made on the host."""
        text: Any = self.transformer.text_model
        hidden: torch.Tensor = text.embeddings(input_ids=ids)
        hidden = hidden.to(compute_dtype(hidden))
        layers, depth = list(text.encoder.layers), clip_skip + self.encoder.skipped
        for layer in layers[: len(layers) + 1 - min(depth, len(layers))]:
            out = layer(hidden, attention_mask=None, causal_attention_mask=None)
            hidden = out[0] if isinstance(out, tuple) else out
        return self._normed(hidden)

    @contextlib.contextmanager
    def lean(self) -> Iterator[None]:
        """While gradients flow through the encoder: fused attention, and between the layers autocast's precision."""
        before = self._lean
        with contextlib.ExitStack() as stack:
            for block in self.blocks():
                attention: Any = block.self_attn
                stack.enter_context(replaced_forward(attention, functools.partial(attend_causally, attention)))
            self._lean = True
            try:
                yield
            finally:
                self._lean = before

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
        known = self._known.get(text)
        if known is None:
            if len(self._known) >= KNOWN_CAPTIONS:
                self._known.clear()
            found = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
            known = self._known[text] = list(found)
        return known

    def _marked(self, ids: list[int]) -> list[int]:
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        padding = end if self.encoder.padding is None else self.encoder.padding
        return [begin, *ids, end] + [padding] * (CHUNK - len(ids))

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

    def adaptable(self) -> Iterator[AdaptableModule]:
        """The linear layers of the encoder's blocks: q, k, v, out, fc1 and fc2 of each."""
        own = self.encoder
        for name, module in self.transformer.named_modules():
            if isinstance(module, nn.Linear) and "encoder.layers." in name:
                layer = name.split("encoder.layers.")[1].split(".")[0]
                key = own.name_in_files(name)
                yield AdaptableModule(key, module, own.part, "transformer", f"layer_{layer}")

    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing recomputes."""
        return list(self.transformer.text_model.encoder.layers)  # type: ignore[union-attr,arg-type]


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
