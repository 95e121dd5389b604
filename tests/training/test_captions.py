"""Captions encoded once and captions encoded at every step are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_trainer.config import from_values
from lib_trainer.config.base import KINDS
from lib_trainer.families.family import Family
from lib_trainer.families.sd1 import SD1
from lib_trainer.families.sd2 import SD2
from lib_trainer.families.sdxl import SDXL
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.kinds.registry import kind_of
from lib_trainer.ports import Conditioning, PictureSize
from lib_trainer.refusals import ConfigError
from lib_trainer.training.captions import CachedCaptions, LiveCaptions
from lib_trainer.training.checks import check_caption_files, check_captions

SIZE = PictureSize((64, 64), (0, 0), (64, 64))
SHORT, LONG, LONGER = "a disc", "red disc, " * 40, "blue disc, " * 70


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_cached_equals_live_whatever_the_lengths(diffusers_model: DiffusersModel, clip_skip: int) -> None:
    live = LiveCaptions(diffusers_model, clip_skip, 225)
    cached = CachedCaptions(live)
    cached.fill([LONG, SHORT, "", LONGER, SHORT], lambda done, total: None, lambda: False)
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


class Told:
    """A model that says how long a caption is."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.asked: list[str] = []

    def token_key(self, caption: str, max_chunks: int, *, weighted: bool) -> str:
        return caption

    def encode_text(self, captions: list[str], clip_skip: int, max_chunks: int) -> Conditioning:
        self.asked += captions
        lengths = torch.tensor([float(len(caption)) for caption in captions])
        return Conditioning(lengths[:, None, None].expand(-1, 77, 2) + 1, lengths[:, None].expand(-1, 3) + 1)


def cached_of(model: Any) -> CachedCaptions:
    return CachedCaptions(LiveCaptions(model, 1, 75))


def test_each_caption_is_encoded_once_with_progress() -> None:
    model: Any = Told(SD1)
    seen: list[tuple[int, int]] = []
    cached = cached_of(model)
    cached.fill(["b", "aa", "b"], lambda done, total: seen.append((done, total)), lambda: False)
    assert sorted(model.asked) == ["", "aa", "b"]
    assert seen == [(0, 2), (1, 2), (2, 2)]
    told = cached(["aa", "b"], [SIZE, PictureSize((5, 6), (0, 0), (64, 64))])
    assert told.context[:, 0, 0].tolist() == [3, 2]
    assert told.pooled is not None and told.pooled.shape == (2, 3) and told.sizes is None
    assert len(model.asked) == 3


@pytest.mark.parametrize("family", [SD1, SD2, SDXL], ids=lambda one: one.word)
def test_an_empty_caption_is_zeros_or_the_encoding_of_nothing(family: Family) -> None:
    """Zeros where the family was trained so; other captions are padded with what nothing is encoded as."""
    model: Any = Told(family)
    cached = cached_of(model)
    cached.fill(["b", ""], lambda done, total: None, lambda: False)
    for source in (LiveCaptions(model, 1, 75), cached):
        told = source(["b", ""], [SIZE] * 2)
        assert told.pooled is not None
        wanted = 0 if family is SDXL else 1
        assert told.context[1].unique().tolist() == told.pooled[1].unique().tolist() == [wanted]
        assert told.context[0].unique().tolist() == told.pooled[0].unique().tolist() == [2]


@pytest.mark.parametrize("name", KINDS)
def test_captions_that_are_all_left_out_are_refused_where_a_kind_has_the_option(name: str) -> None:
    for path, value in (("captions.dropout", 1.0), ("captions.dropout_epochs", 1)):
        job = from_values({"network.kind": name, path: value})
        if path in kind_of(job).options:
            with pytest.raises(ConfigError) as caught:
                check_captions(job, kind_of(job))
            assert caught.value.field == path
        else:
            check_captions(job, kind_of(job))


def test_captions_of_a_second_encoder_need_one() -> None:
    job = from_values({"dataset.second_captions": ".second"})
    check_caption_files(job, SDXL)
    with pytest.raises(ConfigError) as caught:
        check_caption_files(job, SD1)
    assert caught.value.field == "dataset.second_captions" and SD1.word in str(caught.value)


def test_a_model_is_asked_for_weights_of_words_where_they_count() -> None:
    asked: list[tuple[Any, ...]] = []

    class Weighing(Told):
        def encode_text(self, captions: list[str], *others: Any, **named: Any) -> Conditioning:
            asked.append((captions, *others, named))
            return super().encode_text(captions, 1, 1)

    for weighted in (False, True):
        LiveCaptions(Weighing(SD1), 2, 225, weighted=weighted).texts(["(a:1.2)"])  # type: ignore[arg-type]
    assert asked == [(["(a:1.2)"], 2, 3, {}), (["(a:1.2)"], 2, 3, {"weighted": True})]


def test_zeros_are_as_long_as_the_longest_caption() -> None:
    class Chunked(Told):
        def encode_text(self, captions: list[str], clip_skip: int, max_chunks: int) -> Conditioning:
            told = super().encode_text(captions, clip_skip, max_chunks)
            return Conditioning(told.context.repeat(1, max(map(len, captions)) or 1, 1), told.pooled)

    cached = cached_of(Chunked(SDXL))
    cached.fill(["b", "", "ccc"], lambda done, total: None, lambda: False)
    told = cached(["b", "", "ccc"], [SIZE] * 3).context
    assert told.shape == (3, 231, 2)
    assert told[0].unique(dim=0).tolist() == [[1, 1], [2, 2]]  # its chunk, and two of nothing
    assert not told[1].any()


def test_sizes_are_told_where_the_family_asks() -> None:
    model: Any = Told(SDXL)
    cached = cached_of(model)
    cached.fill(["b"], lambda done, total: None, lambda: False)
    one, other = PictureSize((480, 640), (8, 16), (1024, 768)), PictureSize((1, 2), (3, 4), (5, 6))
    for source in (LiveCaptions(model, 1, 75), cached):
        sizes = source(["b", "b"], [one, other]).sizes
        assert sizes is not None and sizes.dtype is torch.float32
        assert sizes.tolist() == [[480, 640, 8, 16, 1024, 768], [1, 2, 3, 4, 5, 6]]
    assert model.asked == ["", "b", "b", "b"]


def test_a_caption_of_two_texts_is_one_caption() -> None:
    """Kept and found again as a whole, and empty where both texts are."""
    model: Any = Told(SDXL)
    cached = cached_of(model)
    pairs = [("a", "bb"), "ccc", ("", "")]
    cached.fill(pairs, lambda done, total: None, lambda: False)
    told = cached(pairs, [SIZE] * 3)
    assert told.context[:, 0, 0].tolist() == [3, 4, 0], "Told counts texts"
    assert len(model.asked) == 4, "nothing, too"


def test_captions_that_vary_are_encoded_when_they_are_new_and_kept_within_bounds() -> None:
    model: Any = Told(SDXL)
    one = 4 * (77 * 2 + 3)
    cached = CachedCaptions(LiveCaptions(model, 1, 75), encodes=True, most=2 * one)
    for captions in (["a", "bb"], ["bb", "a"], ["a"], ["ccc", "a"], ["bb"], ["a", "dddd", "ccc", "bb"], [""]):
        told = cached(captions, [SIZE] * len(captions))
        assert told.context[:, 0, 0].tolist() == [len(caption) + 1 if caption else 0 for caption in captions]
        assert len(cached._known) <= 2
    assert model.asked == ["a", "bb", "ccc", "bb", "dddd", "ccc", "bb", ""]


def test_what_is_kept_changes_no_bit_and_learns_nothing(diffusers_model: DiffusersModel) -> None:
    """A run that goes on from a state has another cache than the one that it goes on from."""
    live = LiveCaptions(diffusers_model, 1, 225)
    asked = ([SHORT, LONG, ""], [LONGER, SHORT], [LONG], [SHORT, LONG, ""])
    warm = CachedCaptions(live, encodes=True)
    for captions in asked:
        told, fresh = (
            one(captions, [SIZE] * len(captions)).context for one in (warm, CachedCaptions(live, encodes=True))
        )
        assert not told.requires_grad
        assert torch.equal(told, fresh)
        with torch.no_grad():
            expected = live(captions, [SIZE] * len(captions)).context
        torch.testing.assert_close(told, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encodes", [True, False])
def test_captions_of_the_same_tokens_are_encoded_once(
    diffusers_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch, encodes: bool
) -> None:
    """Capitals and spaces are none; a shuffled caption may be one that was there, and what is cut off is not told."""
    asked: list[str] = []
    texts = LiveCaptions.texts

    def seen(self: LiveCaptions, captions: list[str]) -> Conditioning:
        asked.extend(captions)
        return texts(self, captions)

    same = [["a, b, a", "A,  b, A", "a, B, a "], ["x " * 75 + "y", "x " * 75 + "z"], ["", "  "]]
    alone = [fresh(diffusers_model)([group[0]], [SIZE]) for group in same]
    monkeypatch.setattr(LiveCaptions, "texts", seen)
    cached = CachedCaptions(LiveCaptions(diffusers_model, 1, 75), encodes=encodes)
    if not encodes:
        cached.fill([one for group in same for one in group], lambda done, total: None, lambda: False)
    for group, expected in zip(same, alone, strict=True):
        told = cached(group, [SIZE] * len(group)).context
        assert all(torch.equal(one, expected.context[0]) for one in told)
    assert len(asked) == len(same)


def fresh(model: DiffusersModel) -> CachedCaptions:
    return CachedCaptions(LiveCaptions(model, 1, 75), encodes=True)


def test_weights_and_each_encoders_text_are_part_of_what_is_told(diffusers_model: DiffusersModel) -> None:
    plain, weighted = LiveCaptions(diffusers_model, 1, 75), LiveCaptions(diffusers_model, 1, 75, weighted=True)
    assert weighted.key("(a:1.2)") != weighted.key("(a:1.3)") != weighted.key("a") == weighted.key("(a:1)")
    assert plain.key("(a:1.2)") != plain.key("a") == weighted.key("a")
    assert plain.key("a b") != plain.key("b a")
    two = diffusers_model.text
    assert two.token_key(("a", "b"), 1) == two.token_key("a", 1), "of one encoder the first text alone is read"


def test_stop_while_filling() -> None:
    model: Any = Told(SD1)
    cached_of(model).fill(["a", "b"], lambda done, total: None, lambda: len(model.asked) > 0)
    assert len(model.asked) <= 2
