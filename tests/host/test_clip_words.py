"""Words that are added to CLIP's vocabulary for a while."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_trainer.host.text.chunks import CHUNK
from tests.support import relative


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["diffusers_model", "ldm_model"])
def text(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param).text


def test_a_word_that_stands_for_known_rows_reads_as_those_words(text: Any) -> None:
    known = text.rows("red circle")
    with torch.no_grad():
        wanted = text.encode(["a red circle, large"], 1, 3).context
        with text.extended({"zrk-thing": known}):
            assert torch.allclose(text.encode(["a zrk-thing, large"], 1, 3).context, wanted, atol=1e-6)
        assert not torch.allclose(text.encode(["a zrk-thing, large"], 1, 3).context, wanted, atol=1e-2)
    assert "forward" not in vars(text.encoders[0].table) and text.chunks._words == []


def test_only_the_rows_get_gradients(text: Any) -> None:
    learned = rows(2).requires_grad_()
    flags = [parameter.requires_grad for parameter in text.encoders[0].module.parameters()]
    for parameter in text.encoders[0].module.parameters():
        parameter.requires_grad_(False)
    try:
        with text.extended({"zrk-thing": {"te1": learned}}):
            text.encode(["a zrk-thing here"], 1, 1).context.square().mean().backward()
    finally:
        for parameter, flag in zip(text.encoders[0].module.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    assert learned.grad is not None and bool((learned.grad.norm(dim=1) > 0).all())
    assert all(parameter.grad is None for parameter in text.encoders[0].module.parameters())


def test_rows_are_read_anew_in_every_pass(text: Any) -> None:
    learned = rows(1)
    with torch.no_grad(), text.extended({"zrk-thing": {"te1": learned}}):
        before = text.encode(["zrk-thing"], 1, 1).context
        learned[:, ::2] += 1  # not all of them: a norm would take a shift of all out again
        assert relative(text.encode(["zrk-thing"], 1, 1).context, before) > 0.01


def test_a_word_is_not_split_between_two_chunks(text: Any) -> None:
    filler = " ".join(["red"] * (CHUNK - 2))
    with text.extended({"zrk-thing": {"te1": rows(5)}}):
        chunks = text.chunks.of(f"{filler} zrk-thing blue")
    first, second = (chunk.ids for chunk in chunks)
    vocabulary = len(text.encoders[0].vocabulary)
    assert max(first) < vocabulary
    assert second[:5] == list(range(vocabulary, vocabulary + 5))
    assert all(len(text.chunks.marked(chunk.ids, None)) == CHUNK + 2 for chunk in chunks)
    with text.extended({"zrk-thing": {"te1": rows(5)}}):
        assert len(text.chunks.of(" ".join(["red"] * (CHUNK - 5)) + " zrk-thing")) == 1


def test_of_words_that_begin_alike_the_longest_is_meant_and_words_nest(text: Any) -> None:
    vocabulary = len(text.encoders[0].vocabulary)
    with (
        text.extended({"zrk": {"te1": rows(1)}, "zrk-thing": {"te1": rows(2)}}),
        text.extended({"another-zork": {"te1": rows(3)}}),
    ):
        ids = text.chunks.of("zrk-thing zrk another-zork")[0].ids
        assert ids == [vocabulary + 1, vocabulary + 2, vocabulary, vocabulary + 3, vocabulary + 4, vocabulary + 5]
        with torch.no_grad():
            assert text.encode(["zrk-thing zrk another-zork"], 1, 1).context.isfinite().all()
    assert text.chunks._words == []


def test_captions_without_the_word_are_untouched(text: Any) -> None:
    captions = ["a red circle", "saber_(fate), [disc]", "", "x " * 200]
    with torch.no_grad():
        before = [text.encode([caption], 1, 3).context for caption in captions]
        with text.extended({"zrk-thing": {"te1": rows(4)}}):
            after = [text.encode([caption], 1, 3).context for caption in captions]
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(before, after, strict=True))


def test_a_word_that_the_tokenizer_drops_stands_nowhere(text: Any) -> None:
    with torch.no_grad(), text.extended({"\u200b": {"te1": rows(1)}}):
        text.encode(["a red circle"], 1, 1)  # it would stand in front of each token, for ever


def test_a_caption_without_the_word_gives_gradients_of_zero(text: Any) -> None:
    learned = rows(2).requires_grad_()
    with text.extended({"zrk-thing": {"te1": learned}}):
        text.encode(["a red circle"], 1, 1).context.square().mean().backward()
    assert learned.grad is not None and not bool(learned.grad.any())
    for parameter in text.encoders[0].module.parameters():
        parameter.grad = None
