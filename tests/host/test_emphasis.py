"""Weights in captions: read as the WebUI reads prompts, and what they do to the context."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_trainer.host.text.emphasis import emphasised, read_weights


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("a [b] c", [("a ", 1.0), ("b", 1 / 1.1), (" c", 1.0)]),
        ("(a:1.5)(b: .5 )", [("a", 1.5), ("b", 0.5)]),
        ("((a) b:2)", [("a", 2.2), (" b", 2.0)]),
        ("a:1.2) b", [("a:1.2) b", 1.0)]),
        ("", [("", 1.0)]),
        ("red) ] :", [("red) ] :", 1.0)]),
        ("a cat, BREAK a (dog:2)", [("a cat,", 1.0), ("", None), ("a ", 1.0), ("dog", 2.0)]),
        ("(a\nBREAK b:2)", [("a", 2.0), ("BREAK", -2.0), ("b", 2.0)]),
        ("(a BREAK b:1.0) [(c BREAK d:1.1)]", [("a", 1.0), ("", None), ("b c", 1.0), ("", None), ("d", 1.0)]),
        ("BREAKFAST, break", [("BREAKFAST, break", 1.0)]),
    ],
)
def test_brackets_are_read_as_in_prompts(text: str, parts: list[tuple[str, float | None]]) -> None:
    """Examples of the WebUI's own documentation among them."""
    found = read_weights(text)
    assert [part for part, _ in found] == [part for part, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


def test_a_break_begins_the_next_chunk_where_weights_are_read(diffusers_model: Any) -> None:
    """As the WebUI's `tokenize_line` does it: also before the first word, and not behind the last."""

    def chunks(text: str, weighted: bool = True) -> Any:
        (found,) = {*diffusers_model.token_key(text, 3, weighted=weighted)}
        return [ids for ids, _ in found]

    (cat,), (dog,) = chunks("a cat"), chunks("a dog")
    assert chunks("a cat BREAK a dog") == [cat, dog] and chunks("BREAK a dog") == [(), dog]
    assert chunks("a cat BREAK BREAK a dog BREAK") == [cat, (), dog] and chunks("BREAK") == [()]
    assert len(chunks("a cat BREAK a dog", weighted=False)) == 1, "it is text as long as brackets are"
    with torch.no_grad():
        both, first, second = (
            diffusers_model.encode_text([text], 1, 3, weighted=True).context
            for text in ("a cat BREAK a (dog:1.4)", "a cat", "a (dog:1.4)")
        )
    torch.testing.assert_close(both, torch.cat([first, second], dim=1))


def test_a_chunk_keeps_its_mean() -> None:
    hidden = torch.randn(2, 77, 8, generator=torch.Generator().manual_seed(1)) + 0.3
    factors = torch.ones(2, 77)
    factors[0, 3] = 1.5
    told = emphasised(hidden, factors)
    torch.testing.assert_close(told.mean(dim=(1, 2)), hidden.mean(dim=(1, 2)))
    torch.testing.assert_close(told[1], hidden[1])
    ratio = told[0] / hidden[0]
    torch.testing.assert_close(ratio[3] / ratio[4], torch.full((8,), 1.5))


def test_a_model_is_told_weights_only_where_that_is_asked(diffusers_model: Any) -> None:
    with torch.no_grad():
        plain, weighed, literal, ones = (
            diffusers_model.encode_text([text], 1, 3, weighted=weighted).context
            for text, weighted in (("a disc", True), ("a (disc:1.4)", True), ("a (disc:1.4)", False), ("a disc", False))
        )
    assert torch.equal(plain, ones)
    expected = plain.clone()
    expected[:, 2] *= 1.4  # behind the mark and the first word
    expected *= plain.mean() / expected.mean()
    torch.testing.assert_close(weighed, expected)
    assert not torch.allclose(literal, weighed)
