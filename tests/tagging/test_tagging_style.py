"""What becomes of a caption: each policy on captions written down beforehand, and the rules that hold for all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_trainer.captions.tags import TagPatterns, split_tags, tag_key
from lib_trainer.errors import ConfigError
from lib_trainer.tagging.pictures import caption_path, check_template
from lib_trainer.tagging.style import Existing, Guess, Style, compose

GUESSES = [
    Guess("long_hair", 0.9, "wd 0.9000"),
    Guess("sword", 0.6, "wd 0.6000"),
    Guess(">_<", 0.7, "wd 0.7000"),
    Guess("saber_(fate)", 0.95, "wd 0.9500"),
]
ORIGINS = {"sword": "wd 0.5000", "hat": "wd 0.4000", "crown": "hand"}


def old(text: str) -> Existing:
    return Existing.parse(text, ORIGINS)


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
    existing = Existing.parse("zork, Long Hair ||| hat, mine", ORIGINS)
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


TAGS = st.lists(
    st.sampled_from(["a", "b", "long hair", "Long_Hair", "sword", "hat", "crown", "x (y)", "x \\(y\\)"]), max_size=6
)


@settings(max_examples=60)
@given(
    TAGS,
    st.lists(st.sampled_from(["a", "sword", "hat", "long_hair", "new"]), max_size=4, unique=True),
    st.sampled_from(["skip", "replace", "prepend", "append", "merge"]),
    st.dictionaries(
        st.sampled_from(["a", "sword", "hat", "crown", "long hair"]), st.sampled_from(["hand", "wd 0.5000"])
    ),
)
def test_hand_written_tags_always_survive(
    tags: list[str], found: list[str], policy: str, origins: dict[str, str]
) -> None:
    existing = Existing.parse(", ".join(tags), origins)
    style = Style(policy=policy)  # type: ignore[arg-type]
    done = compose(existing, [Guess(name, 0.5, "wd 0.5000") for name in found], style)
    text = existing.text if done is None else done.text
    keys = [tag_key(tag) for tag in split_tags(text)]
    assert {tag_key(tag) for tag in tags if origins.get(tag_key(tag), "hand") == "hand"} <= set(keys)
    if done is None:
        return
    assert len(keys) == len(set(keys))
    assert all(tag_key(tag) in keys for tag in done.origins)
    again = compose(
        Existing.parse(text, {tag_key(k): v for k, v in done.origins.items()}),
        [Guess(n, 0.5, "wd 0.5000") for n in found],
        style,
    )
    assert again is None, "a second run changes nothing"


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
    with pytest.raises(ConfigError, match="The policy 'all' is not one: choose skip, replace"):
        Style(policy="all")  # type: ignore[arg-type]
    assert not Style(excluded=TagPatterns()).front
