"""What is done to captions at each step: nothing is lost, what is kept stays, shares are as asked, draws hang on the
seed and the step."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest

from lib_trainer.captions.tags import TagPatterns
from lib_trainer.captions.variation import Moment, Variation

TAGS = [f"tag {letter}" for letter in "abcdefgh"]
CAPTION = ", ".join(["zork", *TAGS])
DRAWS = 2000


def moments(count: int = 200, seed: int = 7) -> list[Moment]:
    return [Moment(seed, step, 1 + step // 10, place) for step in range(1, count // 2 + 1) for place in (0, 1)]


def split(text: str) -> list[str]:
    return text.split(", ") if text else []


def likely(count: int, share: float, draws: int) -> bool:
    """Within five standard deviations of a binomial distribution."""
    return abs(count - share * draws) <= 5 * math.sqrt(draws * share * (1 - share))


def test_by_default_a_caption_is_left_as_it_is() -> None:
    for text in ("a  b ,c||| d;;;{e|f}", "", "  x "):
        assert all(Variation(words=("zork",))(text, moment) == text for moment in moments(10))
        assert Variation().forms(text) == [text]


def test_shuffling_loses_nothing_and_keeps_what_is_to_stay() -> None:
    random = Random(1)
    for moment in moments(60):
        tags = random.sample(TAGS, random.randint(0, 8)) + ["tag a"] * random.randint(0, 1)
        keep = random.randint(0, 4)
        told = split(Variation(True, keep, words=("zork",))(", ".join(["zork", *tags]), moment))
        assert Counter(told) == Counter(["zork", *tags])
        assert told[: 1 + keep] == ["zork", *tags][: 1 + keep]


def test_every_order_is_as_likely() -> None:
    told = Counter(Variation(True)("a, b, c", moment) for moment in moments(DRAWS))
    assert len(told) == 6 and all(likely(count, 1 / 6, DRAWS) for count in told.values())


def test_what_stands_before_a_mark_and_behind_a_second_stays() -> None:
    variation, orders = Variation(True, 1, tag_dropout=0.5), set()
    for moment in moments():
        told = split(variation("zork, x ||| a, b, c ||| y, z ||| w", moment))
        assert told[:2] == ["zork", "x"] and told[-3:] == ["y", "z", "w"]
        assert set(told[2:-3]) <= {"a", "b", "c"}
        orders.add(tuple(told))
    assert len(orders) == 16, "every order of every subset"


def test_tags_held_together_move_and_go_together() -> None:
    seen = set()
    for moment in moments():
        told = Variation(True, tag_dropout=0.3)("a;;;b ;;; c, d, e", moment)
        assert "a, b, c" in told or not set("abc") & set(told)
        assert ";" not in told
        seen.add(told)
    assert {"d, a, b, c, e", "d", "a, b, c"} <= seen


@pytest.mark.parametrize("words", [("zork",), ("zrk-a", "zrk-b"), ("Zork",), ("red zork", "girl")])
def test_the_words_that_are_learned_are_always_told_and_first(words: tuple[str, ...]) -> None:
    variation = Variation(True, tag_dropout=0.9, warmup=100, words=words)
    front = [word.lower() for word in words]
    for moment in moments(40):
        assert split(variation(", ".join([*front, *TAGS]), moment))[: len(front)] == front
        assert split(variation(f"tag a, tag b, a photo of {words[0]} at night", moment))[0].startswith("a photo of")


def test_tags_are_left_out_as_often_as_asked() -> None:
    counts: Counter[str] = Counter()
    for moment in moments(DRAWS):
        told = split(Variation(tag_dropout=0.25, keep=1, words=("zork",))(CAPTION, moment))
        assert told == [tag for tag in ["zork", *TAGS] if tag in told], "in their order"
        counts.update(told)
    assert counts["zork"] == counts["tag a"] == DRAWS
    assert all(likely(counts[tag], 0.75, DRAWS) and counts[tag] < DRAWS for tag in TAGS[1:])


def test_lists_of_tags_that_are_never_or_alone_left_out() -> None:
    spared, alone = TagPatterns.parse("tag_a, /[gh]$/"), TagPatterns.parse("tag b, tag a, tag c")
    counts: Counter[str] = Counter()
    for moment in moments(DRAWS):
        counts.update(split(Variation(tag_dropout=0.5, spared=spared, alone=alone)(", ".join(TAGS), moment)))
    assert all(counts[tag] == DRAWS for tag in TAGS if tag not in ("tag b", "tag c"))
    assert all(likely(counts[tag], 0.5, DRAWS) for tag in ("tag b", "tag c"))


def test_whole_captions_are_left_out_as_often_as_asked_and_by_epoch() -> None:
    told = [Variation(dropout=0.1, prefix="seen")(CAPTION, moment) for moment in moments(DRAWS)]
    assert set(told) == {"", f"seen {CAPTION}"} and likely(told.count(""), 0.1, DRAWS)
    for moment in moments():
        assert (Variation(dropout_epochs=3)(CAPTION, moment) == "") == (moment.epoch in range(3, 99, 3))


def test_tags_are_told_one_after_another() -> None:
    variation = Variation(warmup=16, words=("zork",))
    counts = [len(split(variation(CAPTION, Moment(1, step, 1, 0)))) - 1 for step in range(1, 40)]
    assert counts[0] == 1 and counts[15] < 8 and set(counts[16:]) == {8}
    assert counts == sorted(counts) and set(counts) == set(range(1, 9))
    assert [Variation(warmup=16)("a, b", Moment(1, step, 1, 0)) for step in (1, 16, 17)] == ["a", "a", "a, b"]
    assert [variation("zork", Moment(1, 1, 1, 0)), variation("zork, a", Moment(1, 1, 1, 0))] == ["zork", "zork, a"]


def test_one_part_of_each_choice_is_told() -> None:
    told = Counter(Variation(wildcards=True)("{a|b|c d}, x, {|y}, {{z}}, {w}", moment) for moment in moments(DRAWS))
    assert {one.split(", ")[0] for one in told} == {"a", "b", "c d"}
    assert all(one.endswith(", {z}, {w}") and ", ," not in one for one in told)
    assert likely(sum(count for one, count in told.items() if one.startswith("c d")), 1 / 3, DRAWS)
    assert likely(sum(count for one, count in told.items() if ", y, " in one), 1 / 2, DRAWS)


@pytest.mark.parametrize(
    ("prefix", "suffix", "caption", "told"),
    [
        ("a photo of", "", "zork, red", "a photo of zork, red"),
        ("best,", ", wide", "zork, red", "best, zork, red, wide"),
        ("", "at night", "zork", "zork at night"),
        ("a zork of", "", "zork, red", "a zork of red"),
        ("a zork of", "", "zorks, red", "a zork of zorks, red"),
        ("a zork", "", "zork", "a zork"),
        ("", "wide", "", "wide"),
    ],
)
def test_prefix_and_suffix_stand_around(prefix: str, suffix: str, caption: str, told: str) -> None:
    variation = Variation(prefix=prefix, suffix=suffix, words=("zork",))
    assert variation(caption, moments()[0]) == told
    shuffled = Variation(True, 2, prefix=prefix, suffix=suffix, words=("zork",))
    assert {shuffled(caption, moment) for moment in moments(20)} == {told}


def test_all_forms_are_those_that_are_told() -> None:
    for variation in (
        Variation(dropout=0.5),
        Variation(dropout_epochs=2, prefix="seen"),
        Variation(warmup=20, keep=2, words=("zork",)),
        Variation(warmup=20, dropout=0.2, suffix=", seen"),
    ):
        assert not variation.endless
        for caption in (CAPTION, "zork, x ||| a;;;b, c ||| d", "zork"):
            assert {variation(caption, moment) for moment in moments()} == set(variation.forms(caption))


def test_a_draw_hangs_on_seed_step_and_place_alone() -> None:
    variation = Variation(True, tag_dropout=0.3, dropout=0.1)
    told = {moment: variation(CAPTION, moment) for moment in moments()}
    assert len(set(told.values())) > 150
    assert all(variation(CAPTION, moment) == told[moment] for moment in reversed(moments()))
    assert [variation(CAPTION, moment) for moment in moments(seed=8)] != list(told.values())
    assert Variation(True, words=("zork",))(CAPTION, Moment(1, 2, 1, 0)) == KNOWN, (
        "another Python or system draws alike"
    )


KNOWN = "zork, tag a, tag c, tag d, tag g, tag h, tag f, tag b, tag e"


def test_a_chosen_part_of_prefix_and_suffix_keeps_their_commas() -> None:
    moment = Moment(1, 1, 1, 0)
    drawn = Variation(wildcards=True, prefix="a {warm|warm} photo,", suffix=", {warm|warm} light")
    assert drawn("zork", moment) == "a warm photo, zork, warm light"
    assert Variation(wildcards=True, prefix="{|} photo, {|}", suffix=", {|}")("a", moment) == "photo, a"


def test_choices_inside_of_choices() -> None:
    variation = Variation(wildcards=True)
    told = {variation("a {red|{dark|light} blue} hat, {x|{y|z}}", moment) for moment in moments()}
    hats, ends = ("red", "dark blue", "light blue"), "xyz"
    assert told == {f"a {hat} hat, {end}" for hat in hats for end in ends}
    assert variation("{{a|b}}, {c|{c|c}}, {{", moments()[0]) == "{a|b}, c, {", "doubled braces stay single ones"


def test_a_word_of_the_prefix_goes_before_a_mark_too() -> None:
    variation = Variation(True, prefix="zork", words=("zork",))
    assert {variation("zork ||| a, b", moment) for moment in moments(40)} == {"zork a, b", "zork b, a"}
    assert variation("zork x ||| a", moments()[0]) == "zork zork x, a", "another word begins with it"


def test_tags_in_brackets_that_weigh_stay_together() -> None:
    caption, group = r"a, (b, [c, d]:1.2), e \(f, g", "(b, [c, d]:1.2)"
    for moment in moments(40):
        told = Variation(True, weights=True)(caption, moment)
        assert group in told and Counter(split(told.replace(group, "x"))) == Counter(["a", "x", r"e \(f", "g"])
        assert group not in told or told.count(")") == 1
    assert any(group not in Variation(True)(caption, moment) for moment in moments(40)), "as text they are parted"
    spared = Variation(tag_dropout=1.0, spared=TagPatterns.parse("d"), weights=True)
    assert spared(caption, moments()[0]) == group
