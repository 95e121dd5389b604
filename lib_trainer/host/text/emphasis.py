"""Weights in captions, `(a tag:1.2)`, and `BREAK`, as the WebUI reads and uses them in prompts by default."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

STEP = 1.1
"""What a pair of round brackets multiplies by, and one of square brackets divides by."""

Part = tuple[str, float | None]
"""A text and what it weighs; None: no text, but what begins the next chunk of 75 tokens, `BREAK`."""

_NEXT_CHUNK = ("BREAK", -1.0)
"""How the WebUI holds a `BREAK` among the parts: what brackets multiply by makes a word of it."""

_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_SIGNS = re.compile(r"\\[()\[\]\\]|[(\[\])]|:\s*([+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|.", re.DOTALL)


def read_weights(text: str) -> list[Part]:
    """A text's parts with their weights, in order; at least one.

    `(a)` weighs 1.1, `((a))` 1.21, `[a]` 1/1.1, `(a:0.5)` 0.5, nested ones their product; a backslash takes a bracket
    literally; what is not closed counts as closed at the end. (WebUI 1.10, "Attention/emphasis" in its features' list.)
    `BREAK` stands between two chunks; in brackets that weigh something it is a word there, whose weight is negative.
    """
    parts: list[tuple[str, float]] = []
    open_ones: list[tuple[str, int]] = []

    def close(kind: str, factor: float) -> bool:
        place = next((i for i in range(len(open_ones) - 1, -1, -1) if open_ones[i][0] == kind), None)
        if place is None:
            return False
        _, first = open_ones.pop(place)
        parts[first:] = [(part, weight * factor) for part, weight in parts[first:]]
        return True

    for found in _SIGNS.finditer(text):
        sign, number = found[0], _number(found[1])
        if sign in ("(", "["):
            open_ones.append((sign, len(parts)))
        elif not (
            (number is not None and close("(", number))
            or (sign == ")" and close("(", STEP))
            or (sign == "]" and close("[", 1 / STEP))
        ):
            between: list[tuple[str, float]] = []
            for words in _BREAK.split(sign.removeprefix("\\")):  # a backslash that stands alone is lost there, too
                between += [_NEXT_CHUNK, (words, 1.0)]
            parts += between[1:]
    for kind in ("(", "["):
        while close(kind, STEP if kind == "(" else 1 / STEP):
            pass
    return [("", None) if part == _NEXT_CHUNK else part for part in _merged(parts)]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _merged(parts: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for text, weight in parts:
        if found and found[-1][1] == weight:
            found[-1] = found[-1][0] + text, weight
        else:
            found.append((text, weight))
    return found or [("", 1.0)]


def emphasised(hidden: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Chunks' hidden states (N, 77, D) times their tokens' factors (N, 77), each chunk scaled back to its own mean."""
    before = hidden.float()
    after = before * factors.unsqueeze(-1)
    scale = before.mean(dim=(1, 2), keepdim=True) / after.mean(dim=(1, 2), keepdim=True)
    return (after * scale).to(hidden.dtype)
