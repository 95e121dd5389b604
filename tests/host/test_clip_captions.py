"""Captions through CLIP, against a plain call of transformers."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.host.text.texts import Texts
from tests.support import Tiny

LITERAL = [
    "saber_(fate)",
    "(masterpiece:1.3), [old], {x}",
    "a BREAK b AND c",
    "<lora:x:1>, \\(a\\)",
    "UPPER, ünïcode 日本",
]


@pytest.fixture
def clip(tiny: Tiny) -> Texts:
    return Texts([tiny.text], load_tokenizer())


@torch.no_grad()
def plain(clip: Texts, texts: list[str], skip: int = 1) -> torch.Tensor:
    ids = clip.chunks.tokenizer(
        texts, padding="max_length", max_length=77, return_tensors="pt", truncation=True
    ).input_ids
    out: Any = clip.encoders[0].module(ids, output_hidden_states=True)
    if skip == 1:
        return out.last_hidden_state  # type: ignore[no-any-return]
    return clip.encoders[0].module.text_model.final_layer_norm(out.hidden_states[-skip])  # type: ignore[no-any-return,union-attr,operator]


@torch.no_grad()
def encode(clip: Texts, texts: list[str], skip: int = 1, chunks: int = 3) -> torch.Tensor:
    return clip.encode(texts, skip, chunks).context


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_short_captions_are_what_transformers_gives(clip: Texts, skip: int) -> None:
    texts = ["a red disc", "", *LITERAL]
    torch.testing.assert_close(encode(clip, texts, skip), plain(clip, texts, skip), rtol=1e-6, atol=1e-6)


def test_clip_skip_beyond_the_layers_takes_the_first(clip: Texts) -> None:
    assert torch.equal(encode(clip, ["a disc"], 3), encode(clip, ["a disc"], 12))
    assert not torch.allclose(encode(clip, ["a disc"], 1), encode(clip, ["a disc"], 2))


def test_brackets_are_not_taken_for_weights(clip: Texts) -> None:
    assert not torch.allclose(encode(clip, ["saber_(fate)"]), encode(clip, ["saber_fate"]))
    assert not torch.allclose(encode(clip, ["saber_(fate)"]), encode(clip, [r"saber_\(fate\)"]))


@pytest.mark.parametrize(
    ("tokens", "chunks"), [(0, 1), (1, 1), (74, 1), (75, 1), (76, 2), (150, 2), (151, 3), (225, 3), (400, 3)]
)
def test_long_captions_are_cut_into_chunks_of_75(clip: Texts, tokens: int, chunks: int) -> None:
    words = [f"{'abcdefghij'[i % 10]}" for i in range(tokens)]
    assert len(clip.chunks.tokenizer(" ".join(words), verbose=False).input_ids) == tokens + 2
    mine = encode(clip, [" ".join(words)])
    parts = [" ".join(words[i * 75 : i * 75 + 75]) for i in range(chunks)]
    torch.testing.assert_close(mine, plain(clip, parts).reshape(1, 77 * chunks, -1), rtol=1e-6, atol=1e-6)


def lengths(clip: Texts, caption: str, most: int = 3) -> list[int]:
    return [len(chunk.ids) for chunk in clip.chunks.of(caption, most)]


def test_a_full_chunk_leaves_its_last_tag_to_the_next_one_as_in_prompts(clip: Texts) -> None:
    """The WebUI's `comma_padding_backtrack`: 20 tokens behind the last comma, as it comes."""
    first, second = f"{'red ' * 53}red,", "blue " * 25
    assert lengths(clip, f"{first} {second}") == [75, 5], "20 tokens stand behind the comma: one too many"
    assert lengths(clip, f"red {first} {second}") == [56, 25]
    assert lengths(clip, f"{'red ' * 74}, blue") == [75, 1]
    assert lengths(clip, f"{'red ' * 75}, blue") == [75, 2], "a comma itself is left to the next one"
    assert lengths(clip, f"{'red ' * 60}, {'blue ' * 14}") == [75], "nothing is left where all fits"
    near = f"{'red ' * 72}, blue blue, {'green ' * 80}"
    assert lengths(clip, near) == [75, 75, 6], "a comma that begins a chunk ends no tag of the one before"
    clip.chunks.backtrack = 0
    assert lengths(clip, f"red {first} {second}") == [75, 6]
    clip.chunks.backtrack = 74
    assert lengths(clip, f"red, {'blue ' * 90}") == [2, 75, 15], "what was left is not left again"


def test_a_caption_is_not_cut_for_what_its_chunks_leave(clip: Texts) -> None:
    tags = ", ".join(["one two three four five six seven eight nine"] * 22)
    assert lengths(clip, tags) == [70, 70, 70, 9] and lengths(clip, tags, 1) == [70, 5]
    assert [id for chunk in clip.chunks.of(tags, 2) for id in chunk.ids] == clip.chunks.ids(tags)[:150]
    with torch.no_grad():
        assert clip.encode([tags], 1, 3).context.shape[1] == 4 * 77


def test_a_word_goes_with_its_vectors_into_the_next_chunk(clip: Texts) -> None:
    vectors = torch.zeros(3, 32)
    with clip.extended({"zrk-thing": {"te1": vectors}}):
        first, second = clip.chunks.of(f"{'red ' * 64}, a zrk-thing {'blue ' * 10}")
    assert len(first.ids) == 65 and second.ids[1:4] == [49408, 49409, 49410]


def test_shorter_captions_are_padded_with_empty_chunks(clip: Texts) -> None:
    both = encode(clip, ["a " * 100, "a disc"])
    assert both.shape[:2] == (2, 154)
    torch.testing.assert_close(both[1], plain(clip, ["a disc", ""]).flatten(0, 1), rtol=1e-6, atol=1e-6)


def test_at_most_max_chunks(clip: Texts) -> None:
    assert encode(clip, ["a " * 400], chunks=1).shape[1] == 77
    torch.testing.assert_close(encode(clip, ["a " * 400], chunks=1), plain(clip, ["a " * 75]), rtol=1e-6, atol=1e-6)


def test_a_long_caption_warns_nobody(clip: Texts, recwarn: pytest.WarningsRecorder) -> None:
    encode(clip, ["b " * 300])
    assert not recwarn.list


def test_gradients_flow_unless_forbidden(clip: Texts) -> None:
    assert clip.encode(["a"], 2, 1).context.requires_grad


TAGS = [
    *LITERAL, "1girl", "it's", "a.b", "...", "?", ">_<", "^_^", "saber (fate/stay night)", "long  hair", "", " ", "\t",
    "<|endoftext|>", "R&B", "&amp;", "don't's", "100%", "x\nz", "(", ")", ",", "x,y", "\\", "caf\u00e9", "'S", "a" * 90,
]  # fmt: skip


def test_tags_are_tokenised_one_by_one_and_once_with_the_same_tokens(clip: Texts, monkeypatch: Any) -> None:
    """Whatever stands in them; shuffled captions are new each time, and CLIP's tokenizer is slow."""
    random, whole, asked = Random(1), clip.chunks.tokenizer, list[str]()

    def counted(text: str, **more: Any) -> Any:
        asked.append(text)
        return whole(text, **more)

    monkeypatch.setattr(clip.chunks, "tokenizer", counted)
    for _ in range(150):
        caption = ", ".join(random.sample(TAGS, random.randint(1, 12)))
        assert clip.chunks.ids(caption) == whole(caption, add_special_tokens=False, verbose=False)["input_ids"]
    asked.clear()
    words = [f"kind of {number}" for number in range(20)]
    for _ in range(5):
        clip.chunks.ids(", ".join(random.sample(words, 20)))
    assert len(asked) <= 40, "each tag, in the middle and at the end"
