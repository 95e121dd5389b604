"""The words that a run learns, in the WebUI's own prompts while it goes on: found by them, and in no list of files.

`EmbeddingDatabase` of modules/textual_inversion is written down here as far as names are looked up; tests/webui has the
WebUI's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from lib_trainer.host.webui.words import known_to_prompts, width_known

MODEL = SimpleNamespace(
    cond_stage_model=SimpleNamespace(tokenize=lambda texts: [[ord(one) for one in text] for text in texts])
)
Entries = list[tuple[list[int], Any]]


class Database:
    """Names by their first token, the longest first."""

    def __init__(self) -> None:
        self.ids_lookup: dict[int, Entries] = {}
        self.word_embeddings: dict[str, Any] = {}

    def refresh(self, *names: str) -> None:
        """Read the folder anew, as the Refresh of the Textual Inversion tab does beside a run."""
        self.ids_lookup.clear()
        self.word_embeddings.clear()
        for name in names:
            one = SimpleNamespace(name=name, filename=f"{name}.pt")
            ids = [ord(letter) for letter in name]
            entries = [*self.ids_lookup.get(ids[0], []), (ids, one)]
            self.ids_lookup[ids[0]] = sorted(entries, key=lambda entry: len(entry[0]), reverse=True)
            self.word_embeddings[name] = one

    def found(self, name: str) -> Any:
        """What a prompt that begins with a name finds there."""
        ids = [ord(letter) for letter in name]
        entries = self.ids_lookup.get(ids[0], ())
        return next((one for known, one in entries if ids[: len(known)] == known), None)


def learned(*names: str) -> Sequence[Any]:
    """They have no file yet."""
    return [SimpleNamespace(name=name, filename=None) for name in names]


@pytest.fixture
def database() -> Database:
    database = Database()
    database.refresh("zrk", "other")
    return database


def test_prompts_find_what_learns_before_a_file_of_its_name(database: Database) -> None:
    before = {first: list(entries) for first, entries in database.ids_lookup.items()}
    own = learned("zrk", "zrk-a", "new")
    with known_to_prompts(database, MODEL, own):
        assert [database.found(name) for name in ("zrk", "zrk-a", "new")] == own
        assert database.found("other").filename == "other.pt"
    assert database.ids_lookup == before
    assert database.found("zrk").filename == "zrk.pt"


def test_no_list_of_files_has_a_word_without_one(database: Database) -> None:
    """A card's page asks each for its file's name, and fails as a whole where one has none."""
    with known_to_prompts(database, MODEL, learned("zrk", "new")):
        assert {one.filename for one in database.word_embeddings.values()} == {"zrk.pt", "other.pt"}


def test_what_is_read_anew_meanwhile_stays(database: Database) -> None:
    with known_to_prompts(database, MODEL, learned("new")):
        database.refresh("zrk", "came")
    assert database.found("came").filename == "came.pt"
    assert database.word_embeddings.keys() == {"zrk", "came"}
    with known_to_prompts(database, MODEL, learned("new")):
        assert database.found("new").filename is None


def test_the_list_is_read_anew_where_no_word_can_be_looked_up() -> None:
    """It is emptied first, and stays so where asking the text encoder for its width fails."""

    class Emptied(Database):
        def get_expected_shape(self) -> int:
            raise RuntimeError("Expected all tensors to be on the same device")

        def refresh(self, *names: str) -> None:
            super().refresh()
            self.width = self.get_expected_shape()
            super().refresh(*names)

    database = Emptied()
    with width_known(database, 1024):
        database.refresh("zrk")
    assert (database.width, [*database.word_embeddings]) == (1024, ["zrk"])
    with pytest.raises(RuntimeError):
        database.refresh("zrk")
    assert not database.word_embeddings
    with width_known(None, 1024):
        pass
