"""What is told: codes and facts in a catalogue's words, fields by their names, and several problems at once."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from lib_trainer.config.fields import label_of
from lib_trainer.refusals import (
    ConfigError,
    Count,
    DatasetError,
    Decimals,
    Field,
    JobErrors,
    Joined,
    NameTaken,
    Problem,
    Problems,
    Reason,
    Sentence,
    TrainerError,
    printable,
    sentences,
)

EMPTY = Sentence("option.empty", field=Field("network.rank"), allowed=Sentence("allowed.whole_from_to", low=1, high=8))


def test_control_characters_are_shown_and_other_writing_stays() -> None:
    assert printable("a\tb\nc\x1b[31m\x00\x7f\x85") == "a\\tb\\nc\\x1b[31m\\x00\\x7f\\x85"
    assert printable("\udcff\u2028\u202e") == "\\udcff\\u2028\\u202e"
    for text in ("猫 ねこ", "C:\\Users\\é", "\U0001f468\u200d\U0001f469", "non\u00a0breaking\u3000space"):
        assert printable(text) == text
    assert str(ConfigError("job.missing", file="C:\train")) == "There is no job file C:\\train: check the path."


def test_a_sentence_is_its_template_with_the_facts() -> None:
    assert str(EMPTY) == "network.rank is empty: it must be a whole number from 1 to 8."
    assert str(Sentence("allowed.choice", choices=("a", 1, 0.5))) == "one of a, 1, 0.5"
    assert str(Sentence("allowed.number_from_to", low=1e-7, high=1.0)) == "a number from 1e-07 to 1"
    path = Path("a b")
    wrong = Sentence("option.control_characters", field=Field("dataset.folder"), value=path, source=path)
    assert str(wrong) == "dataset.folder = 'a b' in a b has control characters: write the path anew."
    assert copy.deepcopy(EMPTY) == EMPTY and hash(EMPTY) == hash(copy.deepcopy(EMPTY))
    assert Sentence("allowed.whole") != EMPTY


def test_facts_are_never_read_as_templates() -> None:
    sentence = Sentence("job.missing", file="{field.__class__} {reason!r}")
    assert str(sentence) == "There is no job file {field.__class__} {reason!r}: check the path."


def test_an_error_as_a_fact_leaves_its_words_alone() -> None:
    """Its traceback would hold frames, and with them models."""
    long = "a" * 200
    for error, told in (
        (OSError("no such thing"), "no such thing"),
        (PermissionError(13, "Permission denied", "x"), "Permission denied"),
        (ConfigError(EMPTY), str(EMPTY)),
        (Reason("allowed.whole"), "a whole number"),
        (RuntimeError("two\n  lines"), "two lines"),
        (KeyError(), "KeyError"),
        (ValueError(long), "a" * 159 + "…"),
    ):
        sentence = Sentence("job.not_toml", file="x", reason=error)
        assert not isinstance(sentence.facts["reason"], Exception)
        assert str(sentence) == f"x is not a TOML file: {told}."


@pytest.mark.parametrize(
    "text", ["{file.name}", "{file[0]}", "{file:>9}", "{file:a|b|c}", "{file!r:a|b}", "{file!s}", "{0}", "{}"]
)
def test_a_template_has_names_alone(text: str) -> None:
    with pytest.raises(ValueError, match="all that a template may have"):
        sentences.pieces(text)


def test_numbers_and_several_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sentences.catalogue("en"), "a.b", "{many}; {two}; {both}; {size}")
    told = Sentence(
        "a.b", many=Count(1234567), two=["x", EMPTY], both=Joined((EMPTY, "y"), between=" | "), size=Decimals(1.999, 1)
    )
    assert str(told) == f"1,234,567; x, {EMPTY}; {EMPTY} | y; 2.0"


@pytest.mark.parametrize(
    ("number", "digits", "told"),
    [(0.04, 1, "less than 0.1"), (0.4, 0, "less than 1"), (0.0, 1, "0.0"), (0.06, 1, "0.1"), (-1.0, 0, "-1")],
)
def test_what_is_there_is_not_told_as_nothing(
    number: float, digits: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sentences.catalogue("en"), "a.b", "{size}")
    assert str(Sentence("a.b", size=Decimals(number, digits))) == told


def test_one_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever kind of number it is, and as it is shown."""
    monkeypatch.setitem(sentences.catalogue("en"), "a.b", "{count} {count:file is|files are} left.")
    for count, told in (
        (1, "1 file is"), (Count(1), "1 file is"), (1.0, "1 file is"), (0, "0 files are"),
        (Count(1001), "1,001 files are"), (Decimals(1, 1), "1.0 files are"),
    ):  # fmt: skip
        assert str(Sentence("a.b", count=count)) == f"{told} left."


def test_the_page_says_labels_wherever_a_field_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sentences.catalogue("en"), "a.b", "{field} is off: lower {other} or {strange}. {more}")
    told = Sentence("a.b", field=Field("network.rank"), other=Field("dataset.width"), strange=Field("a.b"), more=EMPTY)
    assert str(told).startswith("network.rank is off: lower dataset.width or a.b. network.rank is empty")
    shown = told.text(named=label_of)
    assert shown.startswith("Rank (dim) is off: lower “Training width” or a.b. “Rank (dim)” is empty")
    assert Sentence("a.b", field=Field("x", "Ours"), other="", strange="", more="").text(named=label_of)[:4] == "Ours"


def test_a_translation_is_filled_and_falls_back_to_english(monkeypatch: pytest.MonkeyPatch) -> None:
    chinese = EMPTY.text(language="zh")
    assert "network.rank" in chinese and "不能为空" in chinese and "1" in chinese and "8" in chinese
    assert "“" not in chinese and "Rank (dim)" in EMPTY.text(language="zh", named=label_of)
    only_english = Sentence("job.errors", problems="x")
    monkeypatch.delitem(sentences.catalogue("zh"), only_english.code)
    assert only_english.text(language="zh") == "x"
    assert EMPTY.text(language="xx") == EMPTY.text(language="../en") == str(EMPTY)


@pytest.mark.parametrize("name", ["zh", "zh_CN", "zh-Hans (Stable)", "ZH"])
def test_pages_speak_the_hosts_language(name: str) -> None:
    """What the WebUI calls a translation is the name of its file."""
    from lib_trainer.refusals import speak, spoken
    from lib_trainer.ui.kit.notices import problems_html, told

    english = told(EMPTY)
    try:
        speak(name)
        assert spoken() == "zh" and "不能为空" in told(EMPTY) and "“" not in told(EMPTY)[:1]
        assert "需要改正" in problems_html([ConfigError("training.busy").problems[0]] * 2, prefix="x")
        for other in ("None", "", "de_DE"):
            speak(other)
            assert told(EMPTY) == english
    finally:
        speak("en")


def test_the_chinese_catalogue_is_nearly_whole() -> None:
    """What was added since is said in English until somebody translates it."""
    assert len(sentences.catalogue("zh")) > 0.85 * len(sentences.catalogue("en"))


def test_a_code_that_is_nowhere_does_not_hide_what_went_wrong() -> None:
    assert str(Sentence("nothing.such", reason="x")) == "nothing.such"
    assert str(Sentence("option.empty", field=Field("a.b"))) == "a.b is empty: it must be {allowed}."


def test_an_error_has_its_code_field_and_facts() -> None:
    error = ConfigError("option.empty", field="network.rank", allowed="a number")
    assert (error.field, error.sentence.code, error.sentence.facts["allowed"]) == (
        "network.rank",
        "option.empty",
        "a number",
    )
    assert error.problems == (Problem("network.rank", error.sentence),)
    assert ConfigError("job.missing", file="network.rank").problems[0].field == ""
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.field == "network.rank"
    said = TrainerError(EMPTY, field="dataset.width")
    assert (str(said), said.field) == (str(EMPTY), "dataset.width")


def test_one_problem_is_raised_as_it_was_and_several_together() -> None:
    problems = Problems()
    problems.raise_if_any()
    with problems.at("dataset.folder"):
        raise DatasetError("job.missing", file="x")
    with pytest.raises(DatasetError, match=r"There is no job file x") as one:
        problems.raise_if_any()
    assert one.value.problems == (Problem("dataset.folder", Sentence("job.missing", file="x")),)
    for _ in range(2):
        with problems.at():
            raise ConfigError("option.empty", field="output.name", allowed="a text")
    with pytest.raises(JobErrors) as several:
        problems.raise_if_any()
    assert [problem.field for problem in several.value.problems] == ["dataset.folder", "output.name"]
    assert str(several.value) == "There is no job file x: check the path.\noutput.name is empty: it must be a text."
    assert problems.of("output.name") and not problems.of("network.rank")


def test_a_taken_name_says_what_can_be_done() -> None:
    error = NameTaken("job.missing", taken=Path("a"), free="b", replaceable=True, field="output.name", file="a")
    assert [(one.field, one.taken, one.free, one.replaceable) for one in error.problems] == [
        ("output.name", Path("a"), "b", True)
    ]


def test_a_defect_is_not_collected() -> None:
    with pytest.raises(ZeroDivisionError), Problems().at():
        raise ZeroDivisionError
