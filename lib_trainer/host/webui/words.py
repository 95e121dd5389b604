"""Words that a run learns, in the prompts of the WebUI."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def known_to_prompts(database: Any, model: Any, embeddings: Sequence[Any]) -> Iterator[None]:
    """Prompts find these embeddings by their names, before others that are called the same.

    They are in none of the WebUI's lists: a card there is one of a file. What is read anew meanwhile, as Refresh does
    without waiting in the queue, stays: only these are taken out again. `database`: an `EmbeddingDatabase`; `model`:
    whose `cond_stage_model` reads names.
    """
    known: dict[int, list[tuple[list[int], Any]]] = database.ids_lookup
    try:
        for embedding in embeddings:
            ids = model.cond_stage_model.tokenize([embedding.name])[0]
            found = [(ids, embedding), *known.get(ids[0], ())]
            known[ids[0]] = sorted(found, key=lambda one: len(one[0]), reverse=True)  # the longest is looked for first
        yield
    finally:
        for first, found in list(known.items()):
            others = [one for one in found if not any(one[1] is own for own in embeddings)]
            if others and len(others) < len(found):
                known[first] = others
            elif not others:
                known.pop(first, None)
