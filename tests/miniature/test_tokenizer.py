"""The tokenizer against ids that the original CLIP gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_trainer.host.standalone.tokenizer import load_tokenizer, vocabulary, write_tokenizer

KNOWN = {
    "a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407],
    "A Photo of a CAT": [49406, 320, 1125, 539, 320, 2368, 49407],
    "hello world": [49406, 3306, 1002, 49407],
    "": [49406, 49407],
}


@pytest.mark.parametrize("text", KNOWN)
def test_known_ids(text: str) -> None:
    assert load_tokenizer()(text).input_ids == KNOWN[text]


def test_whole_vocabulary() -> None:
    words = vocabulary()
    assert len(words) == 49408 and sorted(words.values()) == list(range(49408))
    # The comma's and the asterisk's ids, as the WebUI looks them up and as embeddings are keyed (265 is "*").
    assert words[",</w>"] == 267 and words["*</w>"] == 265


def test_padding_is_the_end_mark() -> None:
    ids = load_tokenizer()("red circle", padding="max_length", max_length=77).input_ids
    assert len(ids) == 77 and ids[0] == 49406 and set(ids[3:]) == {49407}


def test_files_are_deterministic_and_whole(tmp_path: Path) -> None:
    first, second = write_tokenizer(tmp_path / "a"), write_tokenizer(tmp_path / "b")
    names = sorted(path.name for path in first.iterdir())
    assert names == ["merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"]
    assert [(first / name).read_bytes() for name in names] == [(second / name).read_bytes() for name in names]


def test_pieces_join_to_whole_captions() -> None:
    from miniature.text import tokens_of

    for text in ("red circle, white background, large", "star, polygon, simple background", "ring"):
        whole = load_tokenizer()(text, padding="max_length", max_length=77).input_ids
        assert tokens_of(text) == whole
