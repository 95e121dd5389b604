"""What the tagger knows of a data set, as the captions' editor asks for it (`captions.knowledge.TagScores`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lib_trainer.tagging.scores.store import FILE, FOLDER, ScoreStore


class KnownTags:
    """A view on a set's score store, which may be made while the set is open. Writes nothing."""

    def __init__(self, dataset: Path) -> None:
        self._dataset = dataset
        self._store: ScoreStore | None = None
        self._scored: int | None = None

    def scores(self, picture: Path) -> Mapping[str, float]:
        """{tag with spaces: the highest score of any model}; empty where the picture was never scored."""
        store = self._opened()
        return {} if store is None else store.best_scores(picture)

    def origins(self, picture: Path) -> Mapping[str, str]:
        """{tag with spaces: 'hand' or 'model-name score'} as far as recorded."""
        store = self._opened()
        return {} if store is None else store.origins(picture)

    def _opened(self) -> ScoreStore | None:
        """Opened when the tagger has been here, or an edit has; again when there are scores for the first time, or the
        folder is another one."""
        path = self._dataset / FOLDER / FILE
        scored = path.stat().st_ino if path.exists() else None
        if scored != self._scored or (self._store is None and (self._dataset / FOLDER).exists()):
            if self._store is not None:
                self._store.close()
            self._store, self._scored = ScoreStore(self._dataset, create=False), scored
        return self._store


def known_tags(dataset: Path) -> KnownTags:
    """What is, or will be, known of the pictures of a set."""
    return KnownTags(dataset)
