"""axe-core in a page: what it finds of ours."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest

GRAVE = ("serious", "critical")


SETTLED = "(root) => !document.querySelector(`${root} .pending, ${root}.dataset-waiting`)"
"""gradio pales what waits for an answer, which is no colour of the page's."""

FADE_MS = 400


def findings(page: Any, root: str = ".trainer-page") -> list[str]:
    """Serious and critical findings of axe-core inside `root`, one line for each element. Skips where axe is missing.

    The driver brings axe-core's script; it is run in the page as it stands, with its theme.
    """
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is in requirements/test-no-deps.txt")
    page.wait_for_function(SETTLED, arg=root)
    page.wait_for_timeout(FADE_MS)
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8"))
    found = page.evaluate("(root) => axe.run({include: [[root]]}, {resultTypes: ['violations']})", root)
    return [
        f"{violation['id']}: {node['target']} {node.get('failureSummary', '')}"
        for violation in found["violations"]
        if violation["impact"] in GRAVE
        for node in violation["nodes"]
    ]
