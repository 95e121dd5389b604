"""axe-core in a page: what it finds of ours."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import pytest

GRAVE = ("serious", "critical")
SETTLED = """(roots) => roots.every((root) => !document.querySelector(`${root} .pending, ${root}.dataset-waiting`))
    && document.getAnimations().every((one) => {
        const {progress, iterations} = one.effect.getComputedTiming();
        return progress === null || progress === 1 || iterations === Infinity;
    })"""
"""gradio pales what waits for an answer, and lets it fade, which is no colour of the page's."""
COLOURS = ("color-contrast",)
"""The rules whose verdict a theme may change."""


ALIKE = """(roots) => {
    const seen = new Set();
    const parts = (field) => [...field.querySelectorAll('*')].filter((one) => one.getClientRects().length);
    const look = (one) => [one.tagName, one.getAttribute('class'), one.getAttribute('style')];
    document.querySelectorAll('.trainer-field').forEach((field) => {
        const key = JSON.stringify([field, ...parts(field)].map(look));
        field.toggleAttribute('data-alike', seen.has(key));
        seen.add(key);
    });
    return roots.reduce((sum, root) => sum + document.querySelectorAll(`${root} [data-alike]`).length, 0);
}"""
"""Marks options that are built of the same elements with the same classes and styles as one before them: they have its
colours. To work out a text's colours takes axe longer than all else; a whole form has a hundred like the others."""
MANY = 20


def findings(page: Any, *roots: str, rules: Sequence[str] = ()) -> list[str]:
    """Serious and critical findings of axe-core inside `roots`, one line for each element. Skips where axe is missing.

    The driver brings axe-core's script; it is run in the page as it stands, with its theme; all rules unless told. Of
    many options that look alike the first is looked at for its colours.
    """
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is in requirements/test-no-deps.txt")
    page.wait_for_function(SETTLED, arg=roots)
    if not page.evaluate("'axe' in window"):
        page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8"))
    asked: dict[str, Any] = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    where: dict[str, Any] = {"include": [[root] for root in roots]}
    runs = [(where, asked)]
    if page.evaluate(ALIKE, roots) > MANY:
        assert rules in ((), COLOURS)
        of_colours = {"resultTypes": ["violations"], "runOnly": list(COLOURS)}
        runs = [(where | {"exclude": [["[data-alike]"]]}, of_colours)]
        if not rules:
            runs.append((where, asked | {"rules": {rule: {"enabled": False} for rule in COLOURS}}))
    found = [
        one for run in runs for one in page.evaluate("([where, asked]) => axe.run(where, asked)", run)["violations"]
    ]
    return [
        f"{violation['id']}: {node['target']} {node.get('failureSummary', '')}"
        for violation in found
        if violation["impact"] in GRAVE
        for node in violation["nodes"]
    ]


def findings_of_both_themes(page: Any, *roots: str) -> list[str]:
    """Of a page that was opened with `?__theme=dark`: its colours, and then everything in the light theme.

    The theme is a class of the body's, with gradio and with the WebUI.
    """
    assert page.locator("body.dark").count() == 1
    found = [f"dark: {line}" for line in findings(page, *roots, rules=COLOURS)]
    page.evaluate("document.body.classList.remove('dark')")
    found += [f"light: {line}" for line in findings(page, *roots)]
    page.evaluate("document.body.classList.add('dark')")
    return found
