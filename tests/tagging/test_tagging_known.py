"""What the editor is told of a data set that is tagged while it is open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lib_trainer.tagging.models.labels import Labels
from lib_trainer.tagging.scores.known import known_tags
from lib_trainer.tagging.scores.store import FILE, FOLDER, ScoreStore
from lib_trainer.tagging.scores.table import Rows
from tests.tagging.conftest import record_origins

LABELS = Labels(("general", "long_hair", "smile"), (9, 0, 0), (1, 2, 3))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(b"a picture")
    return path


def scored(store: ScoreStore, model: str, picture: Path, score: float) -> None:
    rows: Rows = (np.array([1], np.uint16), np.array([score], np.float32))
    store.put(model, model, LABELS, [(picture, picture.stat(), store.content_hash(picture), rows)])


def test_a_set_that_is_tagged_while_it_is_open(picture: Path) -> None:
    known = known_tags(picture.parent)
    assert known.scores(picture) == {} and known.origins(picture) == {}
    assert not (picture.parent / FOLDER / FILE).exists()
    with ScoreStore(picture.parent) as store:
        scored(store, "one", picture, 0.5)
        scored(store, "two", picture, 0.75)
        record_origins(store, [(picture, {"long_hair": "one 0.50"})])
    assert known.scores(picture) == {"long hair": 0.75}
    assert known.origins(picture) == {"long hair": "one 0.50"}
    picture.write_bytes(b"another picture")
    assert known.scores(picture) == {}


def test_a_folder_that_takes_the_place_of_another(tmp_path: Path) -> None:
    picture = tmp_path / "set" / "a.png"
    for name, score in (("other", 0.75), ("set", 0.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"a picture")
        with ScoreStore(tmp_path / name) as store:
            scored(store, "one", tmp_path / name / "a.png", score)
    known = known_tags(tmp_path / "set")
    assert known.scores(picture) == {"long hair": 0.5}
    (tmp_path / "set").rename(tmp_path / "before")
    (tmp_path / "other").rename(tmp_path / "set")
    assert known.scores(picture) == {"long hair": 0.75}
