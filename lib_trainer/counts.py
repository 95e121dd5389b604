"""How many of something there are, in words."""

from __future__ import annotations


def counted(number: int, word: str) -> str:
    """'1 caption', '2 captions', '1,200 captions'."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
