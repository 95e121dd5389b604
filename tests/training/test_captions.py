"""Captions encoded once and captions encoded at every step are the same."""

from __future__ import annotations

import pytest
import torch

from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.ports import Conditioning, PictureSize
from lib_trainer.training.captions import CachedCaptions, LiveCaptions

SIZE = PictureSize((64, 64), (0, 0), (64, 64))
SHORT, LONG, LONGER = "a disc", "red disc, " * 40, "blue disc, " * 70


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_cached_equals_live_whatever_the_lengths(diffusers_model: DiffusersModel, clip_skip: int) -> None:
    live = LiveCaptions(diffusers_model, clip_skip, 225)
    cached = CachedCaptions(live)
    cached.fill(
        [(caption, SIZE) for caption in (LONG, SHORT, "", LONGER, SHORT)], lambda done, total: None, lambda: False
    )
    for captions in ([SHORT, ""], [SHORT, LONG], ["", LONGER, LONG, SHORT], [LONG, LONG]):
        told = cached(captions, [SIZE] * len(captions)).context
        with torch.no_grad():
            expected = live(captions, [SIZE] * len(captions)).context
        assert not told.requires_grad
        torch.testing.assert_close(told, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tokens", "chunks"), [(75, 1), (150, 2), (225, 3)])
def test_long_captions_are_cut(diffusers_model: DiffusersModel, tokens: int, chunks: int) -> None:
    with torch.no_grad():
        told = LiveCaptions(diffusers_model, 1, tokens)([LONGER, SHORT], [SIZE] * 2)
    assert told.context.shape == (2, 77 * chunks, 32)


def test_each_caption_is_encoded_once_with_progress() -> None:
    asked: list[str] = []

    def encode(captions: list[str], sizes: list[PictureSize]) -> Conditioning:
        asked.extend(captions)
        return Conditioning(torch.full((1, 77, 2), float(len(captions[0]))), torch.full((1, 3), 1.0))

    seen: list[tuple[int, int]] = []
    cached = CachedCaptions(encode)  # type: ignore[arg-type]
    cached.fill([("b", SIZE), ("aa", SIZE), ("b", SIZE)], lambda done, total: seen.append((done, total)), lambda: False)
    assert sorted(asked) == ["", "aa", "b"]
    assert seen == [(0, 2), (1, 2), (2, 2)]
    told = cached(["aa", "b"], [SIZE, SIZE])
    assert told.context[:, 0, 0].tolist() == [2, 1]
    assert told.vector is not None and told.vector.shape == (2, 3)


def test_stop_while_filling() -> None:
    calls = 0

    def encode(captions: list[str], sizes: list[PictureSize]) -> Conditioning:
        nonlocal calls
        calls += 1
        return Conditioning(torch.zeros(1, 77, 2))

    CachedCaptions(encode).fill([("a", SIZE), ("b", SIZE)], lambda done, total: None, lambda: calls > 0)  # type: ignore[arg-type]
    assert calls <= 2
