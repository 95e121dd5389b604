"""The catalogues against the sources: every code is in English with exactly its facts, and every entry is used."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lib_trainer.refusals import sentences

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lib_trainer"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
LANGUAGES = sorted(path.stem for path in (PACKAGE / "refusals").glob("*.toml"))
ENGLISH = sentences.catalogue("en")
EVENTS = ("Message", "Phase", "Finished", "Failed")
EXTRA = {"NameTaken": {"taken", "free", "replaceable"}}
"""Keywords of errors that a page asks for, and that a template may name."""


@dataclass(frozen=True)
class Use:
    """A place that names a code: which codes can be meant, and which facts it gives."""

    where: str
    codes: tuple[str, ...]
    facts: frozenset[str]
    optional: frozenset[str]


@functools.cache
def trees() -> list[tuple[Path, ast.Module, list[ast.AST]]]:
    """Every source, parsed, and its nodes."""
    parsed = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]
    return [(path, tree, list(ast.walk(tree))) for path, tree in parsed]


@pytest.fixture(scope="module", autouse=True)
def parsed_once() -> Iterator[None]:
    """The sources are kept for these tests and not longer."""
    yield
    for kept in (trees, error_classes, own_arguments, uses):
        kept.cache_clear()


def callee(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute) and function.attr == "__init__" and isinstance(function.value, ast.Call):
        return "super().__init__"
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


@functools.cache
def error_classes() -> set[str]:
    """Every class below `TrainerError`, by its name."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for _, _, nodes in trees()
        for node in nodes
        if isinstance(node, ast.ClassDef)
    }
    found = {"TrainerError", "Reason"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


@functools.cache
def own_arguments() -> set[str]:
    """Errors whose constructor makes the sentence itself, of arguments of its own."""
    return {
        node.name
        for _, _, nodes in trees()
        for node in nodes
        if isinstance(node, ast.ClassDef) and node.name in error_classes() - {"TrainerError", "Reason"}
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
        if "code" not in {argument.arg for argument in method.args.posonlyargs}
    }


def codes_of(node: ast.expr) -> tuple[str, ...] | None:
    """The texts that an argument can be; None where that cannot be read off."""
    if isinstance(node, ast.Constant):
        return (node.value,) if isinstance(node.value, str) else None
    if isinstance(node, ast.IfExp):
        one, other = codes_of(node.body), codes_of(node.orelse)
        return None if one is None or other is None else one + other
    return None


def calls(nodes: list[ast.AST]) -> Iterator[ast.Call]:
    """Calls that make a sentence."""
    names = (error_classes() - own_arguments()) | {"Sentence"}
    classes = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name in error_classes()]
    inside = {id(node) for one in classes for node in ast.walk(one)}
    for node in nodes:
        if isinstance(node, ast.Call) and (
            callee(node) in names or (callee(node) == "super().__init__" and id(node) in inside)
        ):
            yield node


@functools.cache
def uses() -> list[Use]:
    """Of codes; what is a sentence itself is none."""
    found = []
    for path, _, nodes in trees():
        for node in calls(nodes):
            codes = codes_of(node.args[0]) if node.args else None
            if codes is None or any(" " in code for code in codes):
                continue
            words = {keyword.arg for keyword in node.keywords if keyword.arg}
            extra = EXTRA.get(callee(node), set())
            found.append(Use(f"{path.name}:{node.lineno}", codes, frozenset(words - extra), frozenset(words & extra)))
    return found


def converted() -> Iterator[tuple[Path, list[ast.AST]]]:
    """The sources without the package itself, which passes on what it is given."""
    for path, _, nodes in trees():
        if path.parent.name != "refusals":
            yield path, nodes


def names_in(text: str) -> set[str]:
    return {name for _, name, *_ in sentences.pieces(text) if name is not None}


def wrong(use: Use) -> str:
    """What of a place and its sentence does not fit together; empty where all does."""
    for code in use.codes:
        if code not in ENGLISH:
            return "write its sentence into en.toml"
        asked = names_in(ENGLISH[code])
        if asked - {"field"} - use.optional != use.facts - {"field"} or ("field" in asked and "field" not in use.facts):
            return f"{code} asks for {sorted(asked)} and is given {sorted(use.facts)}"
    return ""


def test_a_code_is_in_the_catalogue_with_its_facts() -> None:
    assert len(uses()) > 500
    assert [(use.where, wrong(use)) for use in uses() if wrong(use)] == []


def test_a_code_without_its_facts_is_noticed() -> None:
    none: frozenset[str] = frozenset()
    code, asked = next((code, names_in(text)) for code, text in ENGLISH.items() if len(names_in(text) - {"field"}) > 1)
    some = frozenset(asked)
    assert not wrong(Use("", (code,), some, none))
    assert not wrong(Use("", (code,), some | {"field"}, none))
    one = next(iter(some - {"field"}))
    for facts in (some - {one}, some | {"other"}):
        assert code in wrong(Use("", (code,), facts, none))
    assert not wrong(Use("", (code,), some - {one}, frozenset({one})))
    assert wrong(Use("", (code, "no.such"), some, none)) == "write its sentence into en.toml"


def test_every_entry_is_used() -> None:
    assert set(ENGLISH) - {code for use in uses() for code in use.codes} == set()


def test_no_error_is_raised_with_words_of_its_own() -> None:
    found = []
    for path, nodes in converted():
        for node in calls(nodes):
            if not forwards(node):
                codes = codes_of(node.args[0]) if node.args else None
                known = codes is not None and all(code in ENGLISH for code in codes)
                if not known or not all(keyword.arg for keyword in node.keywords):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == [], "each error has a code that is in en.toml, and each fact a name"


def forwards(node: ast.Call) -> bool:
    """Whether a call passes a sentence on that it was given, or that a function has made."""
    argument = node.args[0] if node.args else None
    if isinstance(argument, ast.Call):
        return callee(argument) not in ("str", "join", "format", "replace")
    if not isinstance(argument, (ast.Name, ast.Attribute)):
        return False
    name = argument.id if isinstance(argument, ast.Name) else argument.attr
    return name == "sentence"


def test_no_event_has_words_of_its_own() -> None:
    found = []
    for path, nodes in converted():
        for node in nodes:
            if isinstance(node, ast.Call) and callee(node) in EVENTS:
                told = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "told")]
                if any(isinstance(one, ast.JoinedStr) or is_text(one) for one in told):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_have_the_facts_of_the_english_sentence(language: str) -> None:
    for code, text in sentences.catalogue(language).items():
        assert code in ENGLISH, f"{code} is no entry of en.toml"
        assert names_in(text) == names_in(ENGLISH[code]), code
        assert text.strip() == text and "\n" not in text, code


def test_languages_are_found() -> None:
    assert {"en", "zh"} <= set(LANGUAGES)
