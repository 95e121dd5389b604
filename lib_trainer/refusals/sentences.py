"""Sentences for people, as data: a code and its facts. The words stand in a catalogue, one TOML file a language.

`en.toml` is whole; another language's file may hold any part of it, and what it lacks is said in English. A template is
plain text with `{name}` where a fact goes, `{name!r}` for a value as a job file writes it, or `{name:word|words}` for
what is said of one and of any other number; nothing else of Python's format language is read.
"""

from __future__ import annotations

import functools
import string
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10, the WebUI's own
    import tomli as tomllib

ENGLISH = "en"
LANGUAGES = ("en", "zh")
"""That have a catalogue."""
_spoken = ENGLISH
LONGEST = 160
"""Characters of what an error of others says: torch lists every tensor that does not fit."""
UNPRINTED = frozenset({"Cc", "Cs", "Zl", "Zp"})
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of writing, and so what a line seems to say."""


def printable(text: str) -> str:
    """The text with control characters, halves of characters and turning marks as Python writes them (`\\t`, `\\x1b`).

    What comes from a file's name or content may hold anything; a terminal would carry it out.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if character in TURNING or unicodedata.category(character) in UNPRINTED
        else character
        for character in text
    )


@dataclass(frozen=True)
class Field:
    """An option as a fact of a sentence: its path (`training.precision`).

    `label` is what it is called where it is no option of a job, and so has no path that people know.
    """

    path: str
    label: str = ""


@dataclass(frozen=True)
class Count:
    """A large number, shown with its thousands apart."""

    number: int


@dataclass(frozen=True)
class Decimals:
    """A number, shown with so many digits behind the point; one that would be shown as 0 is less than the smallest."""

    number: float
    digits: int


@dataclass(frozen=True)
class Joined:
    """Facts one after the other, with `between` them (a list or tuple has commas)."""

    facts: Sequence[Any]
    between: str = " "


def few(facts: Sequence[Any], most: int = 3) -> Any:
    """The first few facts, and how many more there are: 'a, b, c and 4 more'."""
    if len(facts) <= most:
        return tuple(facts)
    return Sentence("list.and_more", facts=tuple(facts[:most]), more=len(facts) - most)


def both(facts: Sequence[Any]) -> Any:
    """'a and b and c'."""
    first, *others = facts
    return Sentence("list.both", one=first, other=both(others)) if others else first


Named = Callable[[Field, bool], str]
"""What a field is called. The second argument says whether the sentence begins with it."""


def by_path(field: Field, begins: bool) -> str:
    """As the command line and job files call an option."""
    return field.label or field.path


class Sentence:
    """What is told to a person. `code` names a template of the catalogue, `facts` fill it.

    A fact is a text, number, path, `Field`, `Count`, `Decimals`, another `Sentence`, or several of them. Of an error
    its sentence is kept, or what it says: no frame is held alive. Equal where code and facts are equal. `str()` is the
    English sentence with options by their paths.
    """

    __slots__ = ("code", "facts")

    def __init__(self, code: str, /, **facts: Any) -> None:
        self.code = code
        self.facts: Mapping[str, Any] = {name: _kept(fact) for name, fact in facts.items()}

    def text(self, language: str = ENGLISH, named: Named = by_path) -> str:
        """One line, without control characters."""
        return printable(self._rendered(language, named, True))

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        facts = "".join(f", {name}={value!r}" for name, value in self.facts.items())
        return f"Sentence({self.code!r}{facts})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sentence) and (self.code, self.facts) == (other.code, other.facts)

    def __hash__(self) -> int:
        return hash((self.code, tuple(self.facts)))

    def _rendered(self, language: str, named: Named, begins: bool) -> str:
        told = template(self.code, language)
        if told is None:  # a sentence must never be what fails
            return self.code
        said = ""
        for literal, name, as_written, words in pieces(told):
            said += literal
            if name is not None:
                fact = self.facts.get(name, f"{{{name}}}")
                shown = _written(fact) if as_written else _said(fact, language, named, begins and not said)
                said += shown if words is None else words[shown != "1"]
        return said


def _kept(fact: Any) -> Any:
    """Of an error its sentence, or what the system calls it, or what it says in one line, or its class."""
    if not isinstance(fact, BaseException):
        return tuple(fact) if isinstance(fact, Iterable) and not isinstance(fact, (str, list)) else fact
    if isinstance(sentence := getattr(fact, "sentence", None), Sentence):
        return sentence
    return getattr(fact, "strerror", None) or one_line(fact)


def one_line(error: BaseException) -> str:
    """What an error says, on one line and not for ever; its class where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def template(code: str, language: str = ENGLISH) -> str | None:
    """The template of a code in a language, or in English where that language lacks it."""
    return catalogue(language).get(code) or catalogue(ENGLISH).get(code)


@functools.cache
def catalogue(language: str) -> dict[str, str]:
    """Every template of a language by its code; empty for a language that has none."""
    if language not in LANGUAGES:
        return {}
    tables = tomllib.loads(Path(__file__).with_name(f"{language}.toml").read_text(encoding="utf-8"))
    return {f"{area}.{name}": text for area, table in tables.items() for name, text in table.items()}


def speak(name: str) -> None:
    """From now on pages speak the language that `name` begins with; English where there is no catalogue of it.

    A WebUI calls a translation by its file, as in "zh_CN" or "zh-Hans (Stable)".
    """
    global _spoken
    code = name[:2].lower()
    _spoken = code if catalogue(code) else ENGLISH


def spoken() -> str:
    """The language that pages speak."""
    return _spoken


@functools.cache
def pieces(text: str) -> tuple[tuple[str, str | None, bool, tuple[str, str] | None], ...]:
    """A template as (literal text, fact after it or None, whether that is shown as written, the words that are shown in
    its place for one and for any other number).

    Raises `ValueError` for anything but `{name}`, `{name!r}` and `{name:word|words}`.
    """
    found = []
    for literal, name, spec, conversion in string.Formatter().parse(text):
        one, bar, many = (spec or "").partition("|")
        worded = bool(bar) and "|" not in many and conversion is None
        if name is not None and (not name.isidentifier() or (spec and not worded) or conversion not in (None, "r")):
            raise ValueError(f"{text!r}: {{name}}, {{name!r}} and {{name:word|words}} are all that a template may have")
        found.append((literal, name, conversion == "r", (one, many) if worded else None))
    return tuple(found)


def _said(fact: Any, language: str, named: Named, begins: bool) -> str:
    if isinstance(fact, Sentence):
        return fact._rendered(language, named, begins)
    if isinstance(fact, Field):
        return named(fact, begins)
    if isinstance(fact, Count):
        return f"{fact.number:,}"
    if isinstance(fact, Decimals):
        shown = f"{fact.number:.{fact.digits}f}"
        if fact.number > 0 and not float(shown):
            return _said(Sentence("number.below", number=f"{10**-fact.digits:.{fact.digits}f}"), language, named, False)
        return shown
    if isinstance(fact, float):
        return f"{fact:g}"
    if isinstance(fact, (list, tuple, Joined)):  # a list may be a value of a job file, and is shown so by {name!r}
        facts, between = (fact.facts, fact.between) if isinstance(fact, Joined) else (fact, ", ")
        parts = [_said(one, language, named, begins and index == 0) for index, one in enumerate(facts)]
        return between.join(parts)
    return str(fact)


def _written(fact: Any) -> str:
    return repr(str(fact) if isinstance(fact, Path) else fact)
