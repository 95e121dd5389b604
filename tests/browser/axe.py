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


def findings(page: Any, *roots: str, rules: Sequence[str] = ()) -> list[str]:
    """Serious and critical findings of axe-core inside `roots`, one line for each element. Skips where axe is missing.

    The driver brings axe-core's script; it is run in the page as it stands, with its theme; all rules unless told.
    """
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is in requirements/test-no-deps.txt")
    page.wait_for_function(SETTLED, arg=roots)
    if not page.evaluate("'axe' in window"):
        page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8"))
    asked: dict[str, Any] = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    include = [[root] for root in roots]
    found = page.evaluate("([include, asked]) => axe.run({include}, asked)", [include, asked])
    return [
        f"{violation['id']}: {node['target']} {node.get('failureSummary', '')}"
        for violation in found["violations"]
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
