"""Captions through all text encoders of a family, on every host."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lib_trainer.families.family import Encoder, Family, Part
from lib_trainer.families.known import DEFAULT
from lib_trainer.host.text.chunks import BACKTRACK, Chunk, Chunks
from lib_trainer.host.text.emphasis import emphasised, read_weights
from lib_trainer.host.text.encoder import TextEncoder
from lib_trainer.host.text.open_clip import OpenClipEncoder
from lib_trainer.host.text.transformers_clip import TransformersEncoder
from lib_trainer.ports import AdaptableModule, Conditioning, Rows, Wording
from lib_trainer.ports.text import wording_for
from lib_trainer.transfer import sent


class Texts:
    """A family's text encoders with their tokenizer, in place. Implements `ports.TokenTable`.

    `modules` are the encoders' roots, in the order of `family.encoders`; `backtrack`: as for `Chunks`.
    """

    def __init__(
        self, modules: Sequence[nn.Module], tokenizer: Any, family: Family = DEFAULT, backtrack: int = BACKTRACK
    ) -> None:
        self.family = family
        self.encoders = [made(*pair) for pair in zip(modules, family.encoders, strict=True)]
        self.chunks = Chunks(tokenizer, backtrack)

    def parts(self) -> dict[Part, nn.Module]:
        """Each encoder's root."""
        return {encoder.described.part: encoder.module for encoder in self.encoders}

    def prefixes(self) -> dict[str, nn.Module]:
        """The same, by how their tensors begin in a checkpoint file."""
        return {encoder.described.prefix: encoder.module for encoder in self.encoders}

    def encode(
        self, captions: Sequence[Wording], clip_skip: int, max_chunks: int, *, weighted: bool = False
    ) -> Conditioning:
        """Captions, literally, as (B, 77·n, D); n is what the longest one needs for the first 75·`max_chunks` tokens.

        Each chunk is encoded for itself with its own begin and end marks, as the WebUI encodes long prompts. What the
        encoders give stands side by side; the pooled vector is the first chunk's. `clip_skip` 1 takes the layer that
        the family's UNet reads, 2 the one before it, where the family's hosts heed it. `weighted`: brackets are weights
        on the context (`emphasis`).
        """
        depth = clip_skip if self.family.clip_skip else 1
        chunks = [self._chunks_of(caption, max_chunks, weighted) for caption in captions]
        longest = max(len(own) for one in chunks for own in one)
        nothing = Chunk([])
        contexts, pooled = [], None
        for place, encoder in enumerate(self.encoders):
            flat = [chunk for one in chunks for chunk in one[place] + [nothing] * (longest - len(one[place]))]
            padded = [self.chunks.marked(chunk.ids, encoder.described.padding) for chunk in flat]
            ids = sent(torch.tensor(padded), next(encoder.module.parameters()).device)
            hidden, whole = encoder.encoded(ids, depth, self.chunks.end)
            if any(chunk.weights for chunk in flat):
                factors = torch.tensor([chunk.factors for chunk in flat], dtype=torch.float32)
                hidden = emphasised(hidden, sent(factors, hidden.device))
            contexts.append(hidden.reshape(len(captions), longest * hidden.shape[1], hidden.shape[2]))
            pooled = pooled if whole is None else whole[::longest]
        return Conditioning(contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=-1), pooled)

    def token_key(self, caption: Wording, max_chunks: int, *, weighted: bool = False) -> Hashable:
        """The ids and weights of a caption's chunks, for each encoder."""
        found = self._chunks_of(caption, max_chunks, weighted)
        return tuple(tuple((tuple(chunk.ids), chunk.weights) for chunk in own) for own in found)

    def _chunks_of(self, caption: Wording, most: int, weighted: bool) -> list[list[Chunk]]:
        """A caption's chunks for each encoder."""
        count = len(self.encoders)
        texts = [caption] if isinstance(caption, str) else [wording_for(place, caption) for place in range(count)]
        chunks = self.chunks
        found = [chunks.weighed(read_weights(one), most) if weighted else chunks.of(one, most) for one in texts]
        return found * (count // len(found))

    def adaptable(self) -> Iterator[AdaptableModule]:
        """What LoRA may wrap, of all encoders."""
        for encoder in self.encoders:
            yield from encoder.adaptable()

    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing recomputes."""
        return [block for encoder in self.encoders for block in encoder.blocks()]

    @contextlib.contextmanager
    def lean(self) -> Iterator[None]:
        """While gradients flow through the encoders: fused attention, and autocast's precision between the layers."""
        with contextlib.ExitStack() as stack:
            for encoder in self.encoders:
                stack.enter_context(encoder.lean())
            yield

    @property
    def widths(self) -> dict[Part, int]:
        return {encoder.described.part: int(encoder.vocabulary.shape[1]) for encoder in self.encoders}

    def rows(self, text: str) -> dict[Part, torch.Tensor]:
        ids = self.chunks.ids(text)
        return {one.described.part: one.vocabulary[ids].detach().float().cpu().clone() for one in self.encoders}

    def usual_norm(self) -> dict[Part, float]:
        norms = {one.described.part: one.vocabulary.detach().float().norm(dim=1).mean() for one in self.encoders}
        return {part: float(norm) for part, norm in norms.items()}

    @contextlib.contextmanager
    def extended(self, words: Mapping[str, Rows]) -> Iterator[None]:
        """Words get ids beyond the vocabulary, which every encoder looks up in its own rows."""
        if not words:
            yield
            return
        counts = {word: len(next(iter(rows.values()))) for word, rows in words.items()}
        with contextlib.ExitStack() as stack:
            taken = max(len(encoder.vocabulary) for encoder in self.encoders)
            first = stack.enter_context(self.chunks.extended(counts, taken))
            for encoder in self.encoders:
                own = [rows[encoder.described.part] for rows in words.values()]
                stack.enter_context(encoder.extended(first, own))
            yield


def made(module: nn.Module, described: Encoder) -> TextEncoder:
    """The encoder object for a root of either kind of classes."""
    return (
        TransformersEncoder(module, described) if hasattr(module, "text_model") else OpenClipEncoder(module, described)
    )
