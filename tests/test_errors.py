"""What is told: characters that a terminal would carry out, and several problems at once."""

from __future__ import annotations

import pytest

from lib_trainer.errors import ConfigError, DatasetError, JobErrors, Problem, Problems, TrainerError, printable


def test_control_characters_are_shown_and_other_writing_stays() -> None:
    assert printable("a\tb\nc\x1b[31m\x00\x7f\x85") == "a\\tb\\nc\\x1b[31m\\x00\\x7f\\x85"
    assert printable("\udcff\u2028\u202e") == "\\udcff\\u2028\\u202e"
    for text in ("猫 ねこ", "C:\\Users\\é", "\U0001f468\u200d\U0001f469", "non\u00a0breaking\u3000space"):
        assert printable(text) == text
    assert str(TrainerError("There is no folder C:\train.")) == "There is no folder C:\\train."


def test_a_problem_belongs_to_the_field_that_its_sentence_begins_with() -> None:
    assert ConfigError("network.rank = 0 is not allowed.").problems == (
        Problem("network.rank", "network.rank = 0 is not allowed."),
    )
    assert ConfigError("There is no network.rank.").problems[0].field == ""


def test_one_problem_is_raised_as_it_was_and_several_together() -> None:
    problems = Problems()
    problems.raise_if_any()
    with problems.at("dataset.folder"):
        raise DatasetError("There is no folder.")
    with pytest.raises(DatasetError, match=r"There is no folder\.") as one:
        problems.raise_if_any()
    assert one.value.problems == (Problem("dataset.folder", "There is no folder."),)
    with problems.at():
        raise ConfigError("output.name is empty.")
    with problems.at():
        raise ConfigError("output.name is empty.")
    with pytest.raises(JobErrors) as several:
        problems.raise_if_any()
    assert [problem.field for problem in several.value.problems] == ["dataset.folder", "output.name"]
    assert str(several.value) == "There is no folder.\noutput.name is empty."
    assert problems.of("output.name") and not problems.of("network.rank")


def test_a_defect_is_not_collected() -> None:
    with pytest.raises(ZeroDivisionError), Problems().at():
        raise ZeroDivisionError
