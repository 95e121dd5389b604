"""Words that a run learns, in the prompts of the WebUI."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from lib_trainer.patching import attribute


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


@contextlib.contextmanager
def width_known(database: Any, width: int) -> Iterator[None]:
    """The WebUI's list of embeddings can be read anew while a run has the text encoders elsewhere.

    Refresh does not wait in the queue. It empties the list, and then asks how long a vector of the loaded model is by
    looking a word up: of SD 2.x on the card, wherever the text encoder may be. Where that fails the list stays empty,
    and until somebody refreshes it again pictures are drawn without the user's embeddings. `database`: an
    `EmbeddingDatabase`; `width`: of the vectors of all text encoders together.
    """
    if not hasattr(database, "get_expected_shape"):
        yield
        return
    with attribute(database, "get_expected_shape", lambda: width):
        yield
