"""What becomes of a caption: each policy on captions written down beforehand, and the rules that hold for all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_trainer.captions.document import Caption
from lib_trainer.captions.tags import TagPatterns, tag_key
from lib_trainer.refusals import ConfigError
from lib_trainer.tagging.captions.style import Existing, Guess, Style, compose
from lib_trainer.tagging.pictures import caption_path, check_template
from lib_trainer.tagging.settings import TaggerSettings

GUESSES = [
    Guess("long_hair", 0.9, "wd 0.9000"),
    Guess("sword", 0.6, "wd 0.6000"),
    Guess(">_<", 0.7, "wd 0.7000"),
    Guess("saber_(fate)", 0.95, "wd 0.9500"),
]
ORIGINS = {"sword": "wd 0.5000", "hat": "wd 0.4000", "crown": "hand"}


def old(text: str) -> Existing:
    return Existing(Caption.parse(text), ORIGINS)


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("skip", None),
        ("replace", "zork, my own, crown, saber (fate), long hair, >_<, sword"),
        ("prepend", "zork, saber (fate), long hair, >_<, sword, hat, my own, crown"),
        ("append", "zork, hat, my own, sword, crown, saber (fate), long hair, >_<"),
        ("merge", "zork, my own, sword, crown, saber (fate), long hair, >_<"),
    ],
)
def test_policies(policy: str, wanted: str | None) -> None:
    done = compose(old("hat, my own, sword, crown"), GUESSES, Style(policy=policy, trigger="zork"))  # type: ignore[arg-type]
    assert (done.text if done else None) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("my own\nmine\n", "saber (fate), long hair, >_<, sword, my own\nmine\n"),
        ("my own,mine", "saber (fate),long hair,>_<,sword,my own,mine"),
    ],
)
def test_what_is_put_in_front_ends_no_line(text: str, wanted: str) -> None:
    done = compose(old(text), GUESSES, Style(policy="prepend"))
    assert done is not None and done.text == wanted


def test_a_picture_without_a_caption_gets_one_under_every_policy() -> None:
    for policy in ("skip", "replace", "prepend", "append", "merge"):
        done = compose(None, GUESSES, Style(policy=policy))  # type: ignore[arg-type]
        assert done is not None and done.text == "saber (fate), long hair, >_<, sword"
        assert done.origins == {
            "saber (fate)": "wd 0.9500",
            "long hair": "wd 0.9000",
            ">_<": "wd 0.7000",
            "sword": "wd 0.6000",
        }


def test_origins_follow_the_tags() -> None:
    done = compose(old("hat, my own, sword, crown"), GUESSES, Style(policy="append"))
    assert done is not None
    assert done.origins == {
        "hat": "wd 0.4000", "sword": "wd 0.6000", "crown": "hand", "saber (fate)": "wd 0.9500",
        "long hair": "wd 0.9000", ">_<": "wd 0.7000",
    }  # fmt: skip


def test_another_taggers_caption_may_go_when_the_user_says_so() -> None:
    style = Style(policy="replace", foreign=True)
    done = compose(old("1girl, smile, crown"), GUESSES, style)
    assert done is not None and done.text == "crown, saber (fate), long hair, >_<, sword", (
        "crown is known to be by hand"
    )
    kept = compose(old("1girl, smile, crown"), GUESSES, Style(policy="replace"))
    assert kept is not None and kept.text.startswith("1girl, smile, crown, ")


def test_what_was_found_stands_once_in_whatever_spelling() -> None:
    done = compose(old("Long_Hair, saber \\(fate\\)"), GUESSES, Style(policy="append"))
    assert done is not None and done.text == "Long_Hair, saber \\(fate\\), >_<, sword"
    assert "long hair" not in {tag_key(tag) for tag in done.origins}, "it was there by hand"


def test_spelling_for_captions_and_for_prompts() -> None:
    raw = compose(None, GUESSES, Style(underscores=True))
    prompt = compose(None, GUESSES, Style(escaped=True, trigger="x (y)"))
    assert raw is not None and raw.text == "saber_(fate), long_hair, >_<, sword"
    assert prompt is not None and prompt.text == "x \\(y\\), saber \\(fate\\), long hair, >_<, sword"


def test_orders() -> None:
    def text(sort: str) -> str:
        done = compose(None, GUESSES, Style(sort=sort), {"sword": 9, "long hair": 9, ">_<": 2})  # type: ignore[arg-type]
        assert done is not None
        return done.text

    assert text("score") == "saber (fate), long hair, >_<, sword"
    assert text("alphabet") == ">_<, long hair, saber (fate), sword"
    assert text("frequency") == "long hair, sword, >_<, saber (fate)"


def test_trigger_and_constant_tags_come_first() -> None:
    style = Style(trigger="zork, sword", always=("solo", "ZORK"))
    done = compose(old("solo, mine"), GUESSES, style)
    assert done is not None and done.text == "zork, sword, solo, mine, saber (fate), long hair, >_<"


def test_what_stands_before_the_separator_is_not_touched() -> None:
    existing = Existing(Caption.parse("zork, Long Hair ||| hat, mine"), ORIGINS)
    for policy in ("replace", "merge"):
        done = compose(existing, GUESSES, Style(policy=policy, trigger="zork"))  # type: ignore[arg-type]
        assert done is not None and done.text == "zork, Long Hair ||| mine, saber (fate), >_<, sword"


def test_a_rejected_tag_goes_whoever_wrote_it() -> None:
    done = compose(old("hat, mine"), [], Style(policy="append"), rejected=frozenset({"mine"}))
    assert done is not None and done.text == "hat"


def test_nothing_to_change_is_no_change() -> None:
    assert compose(old("a,  b ,c"), [], Style(policy="append")) is None
    assert compose(None, [], Style()) is None
    assert compose(old("zork"), [], Style(trigger="zork")) is None


NAMES = ["a", "b", "long hair", "Long_Hair", "sword", "hat", "crown", "x (y)", "x \\(y\\)"]
GAPS = [", ", ",", "\n", "\r\n", ",\n", "\n\n", " ||| "]
TEXTS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(GAPS)), max_size=6).map(
    lambda parts: "".join(part for pair in parts for part in pair)
)
"""Captions as people leave them: the last gap stays at the end."""


def tags_of(text: str) -> list[str]:
    return list(Caption.parse(text).tags)


@settings(max_examples=200)
@given(
    TEXTS,
    st.lists(st.sampled_from(["a", "sword", "hat", "long_hair", "new"]), max_size=4, unique=True),
    st.sampled_from(["skip", "replace", "prepend", "append", "merge"]),
    st.dictionaries(
        st.sampled_from(["a", "sword", "hat", "crown", "long hair"]), st.sampled_from(["hand", "wd 0.5000"])
    ),
    st.sampled_from(["", "b", "zork"]),
)
def test_hand_written_tags_always_survive(
    text: str, found: list[str], policy: str, origins: dict[str, str], trigger: str
) -> None:
    """As they are written, doubles too; and what a tagger finds is not written beside them."""
    existing = Existing(Caption.parse(text), origins)
    style = Style(policy=policy, trigger=trigger)  # type: ignore[arg-type]
    guesses = [Guess(name, 0.5, "wd 0.5000") for name in found]
    done = compose(existing, guesses, style)
    after = tags_of(text if done is None else done.text)
    by_hand = [tag for tag in tags_of(text) if origins.get(tag_key(tag), "hand") == "hand" and tag_key(tag) != trigger]
    assert [tag for tag in after if tag in by_hand] == by_hand
    if done is None:
        return
    counts = Counter(map(tag_key, after))
    assert all(count <= max(1, list(map(tag_key, tags_of(text))).count(key)) for key, count in counts.items())
    assert all(tag_key(tag) in counts for tag in done.origins)
    kept = {tag_key(tag): origin for tag, origin in done.origins.items()}
    assert compose(Existing(Caption.parse(done.text), kept), guesses, style) is None, "a second run changes nothing"


def test_several_lines_stay_and_the_taggers_tags_are_a_line_of_their_own() -> None:
    """Case 9."""
    text = "a tall man, standing, in a field, standing\nfirst person view of a man\n"
    guesses = [Guess("grass", 0.9, "wd 0.9"), Guess("standing", 0.8, "wd 0.8"), Guess("sky", 0.7, "wd 0.7")]
    for policy in ("merge", "append", "replace"):
        done = compose(Existing(Caption.parse(text)), guesses, Style(policy=policy))  # type: ignore[arg-type]
        assert done is not None and done.text == text + "grass, sky\n"
        known = {tag_key(tag): origin for tag, origin in done.origins.items()}
        assert compose(Existing(Caption.parse(done.text), known), guesses, Style(policy=policy)) is None  # type: ignore[arg-type]
        more = compose(Existing(Caption.parse(done.text), known), [*guesses, Guess("tree", 0.6, "wd 0.6")], Style())
        assert more is not None and more.text == text + "grass, sky, tree\n"
        other = compose(Existing(Caption.parse(done.text), known), [Guess("tree", 0.6, "wd 0.6")], Style())
        assert other is not None and other.text == text + "tree\n"


@pytest.mark.parametrize("end", ["", "\n", "\r\n", ",", ", "])
@pytest.mark.parametrize("break_", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("bom", [False, True])
def test_what_was_there_is_the_beginning_of_what_is_written(end: str, break_: str, bom: bool) -> None:
    text = f"one,two{break_}three  four{end}"
    done = compose(
        Existing(Caption.parse(text, bom)), [Guess("sky", 0.7, "wd 0.7"), Guess("sea", 0.6, "wd 0.6")], Style()
    )
    assert done is not None and done.caption.bom == bom
    assert done.caption.encode() == (b"\xef\xbb\xbf" if bom else b"") + done.text.encode()
    assert done.text.startswith(text) and tags_of(done.text) == ["one", "two", "three  four", "sky", "sea"]
    assert done.text.count("sky, sea") == 1 and ("\r" in text) == ("\r" in done.text)


def test_one_line_gets_the_tags_at_its_end() -> None:
    for text, after in (("a,b\n", "a,b,sky\n"), ("a, b", "a, b, sky"), ("a\r\n", "a, sky\r\n"), ("\n", "sky\n")):
        done = compose(Existing(Caption.parse(text)), [Guess("sky", 0.7, "wd 0.7")], Style())
        assert done is not None and done.text == after


@pytest.mark.parametrize("trigger", ["saber (fate)", r"saber \(fate\)"])
@pytest.mark.parametrize("always", ["saber (fate)", r"saber \(fate\)"])
def test_escaping_twice_is_escaping_once(trigger: str, always: str) -> None:
    """Case 10: whichever spelling is typed, the caption has the escaped one, and the other one writes nothing."""
    style = Style(escaped=True, trigger=trigger, always=(always,))
    done = compose(None, [Guess("saber_(fate)", 0.9, "wd 0.9")], style)
    assert done is not None and done.text == r"saber \(fate\)"
    assert compose(Existing(Caption.parse(done.text)), [Guess("saber_(fate)", 0.9, "wd 0.9")], style) is None


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{stem}.txt", "use {name}"), ("{name", "use {name}"), ("all.txt", "is the same for every picture"),
        ("../{name}.txt", "must be a plain name"), (".{name}.txt", "must be a plain name"),
        ("{name}.png", "is a picture's"),
        ("{name}.{extension}", "is a picture's"), ("{name[0]}{name.foo}", "use {name}"),
        ("{name.__class__}.txt", "use {name}"), ("{name:>999999999}.txt", "use {name}"), ("{name!r}.txt", "use {name}"),
        ("{}.txt", "use {name}"), ("{name:{extension}}.txt", "use {name}"),
    ],
)  # fmt: skip
def test_templates_that_would_do_harm(template: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_template(template)


def test_captions_lie_beside_their_pictures() -> None:
    """T, P and L write /data/x/data/a.png's to /data/x/data/x/data."""
    picture = Path("/data/x/data/a.b.png")
    assert caption_path(picture) == Path("/data/x/data/a.b.txt")
    assert caption_path(picture, "{folder}-{name}.{extension}.caption") == Path("/data/x/data/data-a.b.png.caption")


def test_bad_choices_are_named() -> None:
    with pytest.raises(ConfigError, match="The policy 'all' is unknown: choose skip, replace"):
        Style(policy="all")  # type: ignore[arg-type]
    assert not Style(excluded=TagPatterns()).front


def test_tags_for_every_picture_may_stand_in_lines_and_are_written_once() -> None:
    style = TaggerSettings(always="solo\nsmile, hat\r\n", trigger="zorb\n").style
    assert style.front == ("zorb", "solo", "smile", "hat")
    first = compose(None, [Guess("1girl", 0.9, "m 0.9")], style)
    assert first is not None and first.text == "zorb, solo, smile, hat, 1girl"
    assert compose(Existing(first.caption), [Guess("1girl", 0.9, "m 0.9")], style) is None


@pytest.mark.parametrize(("name", "label"), [("trigger", "Trigger word"), ("always", "Tags for every picture")])
def test_a_separator_among_what_stands_in_front_is_refused(name: str, label: str) -> None:
    """It would part the caption, and every time put the same words in front again."""
    with pytest.raises(ConfigError, match=rf"{label}.* holds the keep-token separator"):
        assert TaggerSettings(**{name: "zorb ||| hat"}).style  # type: ignore[arg-type]
