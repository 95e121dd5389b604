"""The catalogues against the sources: every code is in English with exactly its facts, and every entry is used."""

from __future__ import annotations

import ast
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


TREES = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]


def callee(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute) and function.attr == "__init__" and isinstance(function.value, ast.Call):
        return "super().__init__"
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def error_classes() -> set[str]:
    """Every class below `TrainerError`, by its name."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for _, tree in TREES
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"TrainerError", "Reason"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


def own_arguments(errors: set[str]) -> set[str]:
    """Errors whose constructor makes the sentence itself, of arguments of its own."""
    return {
        node.name
        for _, tree in TREES
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name in errors - {"TrainerError", "Reason"}
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
        if "code" not in {argument.arg for argument in method.args.posonlyargs}
    }


ERRORS = error_classes()
OWN = own_arguments(ERRORS)


def codes_of(node: ast.expr) -> tuple[str, ...] | None:
    """The texts that an argument can be; None where that cannot be read off."""
    if isinstance(node, ast.Constant):
        return (node.value,) if isinstance(node.value, str) else None
    if isinstance(node, ast.IfExp):
        one, other = codes_of(node.body), codes_of(node.orelse)
        return None if one is None or other is None else one + other
    return None


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    """Calls that make a sentence."""
    names = (ERRORS - OWN) | {"Sentence"}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in ERRORS]
    inside = {id(node) for one in classes for node in ast.walk(one)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (
            callee(node) in names or (callee(node) == "super().__init__" and id(node) in inside)
        ):
            yield node


def uses() -> Iterator[Use]:
    for path, tree in TREES:
        for node in calls(tree):
            codes = codes_of(node.args[0]) if node.args else None
            if codes is None:
                continue
            words = {keyword.arg for keyword in node.keywords if keyword.arg}
            extra = EXTRA.get(callee(node), set())
            yield Use(f"{path.name}:{node.lineno}", codes, frozenset(words - extra), frozenset(words & extra))


def converted(path: Path) -> bool:
    """The package itself passes on what it is given."""
    return path.parent.name != "refusals"


USES = [use for use in uses() if all(" " not in code for code in use.codes)]


def names_in(text: str) -> set[str]:
    return {name for _, name, _ in sentences.pieces(text) if name is not None}


@pytest.mark.parametrize("use", USES, ids=lambda use: use.where)
def test_a_code_is_in_the_catalogue_with_its_facts(use: Use) -> None:
    for code in use.codes:
        assert code in ENGLISH, "write its sentence into en.toml"
        asked = names_in(ENGLISH[code])
        assert asked - {"field"} - use.optional == use.facts - {"field"}
        assert "field" not in asked or "field" in use.facts


def test_every_entry_is_used() -> None:
    assert set(ENGLISH) - {code for use in USES for code in use.codes} == set()


@pytest.mark.parametrize(
    "path, tree", [one for one in TREES if converted(one[0])], ids=lambda one: getattr(one, "name", "")
)
def test_no_error_is_raised_with_words_of_its_own(path: Path, tree: ast.Module) -> None:
    told = {id(node) for node in calls(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node) in told and not forwards(node):
            codes = codes_of(node.args[0]) if node.args else None
            assert codes is not None and all(code in ENGLISH for code in codes), f"line {node.lineno}"
            assert all(keyword.arg for keyword in node.keywords), f"line {node.lineno}: name each fact"


def forwards(node: ast.Call) -> bool:
    """Whether a call passes a sentence on that it was given, or that a function has made."""
    argument = node.args[0] if node.args else None
    if isinstance(argument, ast.Call):
        return callee(argument) not in ("str", "join", "format", "replace")
    if not isinstance(argument, (ast.Name, ast.Attribute)):
        return False
    name = argument.id if isinstance(argument, ast.Name) else argument.attr
    return name == "sentence"


@pytest.mark.parametrize(
    "path, tree", [one for one in TREES if converted(one[0])], ids=lambda one: getattr(one, "name", "")
)
def test_no_event_has_words_of_its_own(path: Path, tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and callee(node) in EVENTS:
            for given in [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "told")]:
                assert not isinstance(given, ast.JoinedStr), f"line {node.lineno}"
                assert not (isinstance(given, ast.Constant) and isinstance(given.value, str)), f"line {node.lineno}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_have_the_facts_of_the_english_sentence(language: str) -> None:
    for code, text in sentences.catalogue(language).items():
        assert code in ENGLISH, f"{code} is no entry of en.toml"
        assert names_in(text) == names_in(ENGLISH[code]), code
        assert text.strip() == text and "\n" not in text, code


def test_languages_are_found() -> None:
    assert {"en", "zh"} <= set(LANGUAGES)
    assert len(USES) > 15
