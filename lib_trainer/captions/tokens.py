"""How long captions are for the text encoder. The tokenizer is the host's; the core is handed a counting function."""

from __future__ import annotations

from collections.abc import Callable

from lib_trainer.captions.document import Caption

LIMITS = (75, 150, 225)
"""Tokens that one, two and three chunks of the text encoder hold."""


class TokenCounter:
    """Counts a caption's tokens, start and end marks aside. `count` gives the tokens of one word.

    CLIP's pattern never crosses white space, so that words are counted once each and added up.
    """

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self._known: dict[str, int] = {}
        self._captions: dict[Caption, int] = {}

    def __call__(self, caption: Caption) -> int:
        """Of what training reads where it reads all lines: without the keep-token separator, and without what the
        WebUI saves behind a prompt."""
        known = self._captions.get(caption)
        if known is None:
            known = sum(map(self.word, caption.trained()[0].split()))
            if len(self._captions) > 200_000:
                self._captions.clear()
            self._captions[caption] = known
        return known

    def word(self, word: str) -> int:
        if word not in self._known:
            self._known[word] = self._count(word)
        return self._known[word]
