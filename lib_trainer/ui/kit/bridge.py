"""A page's line to its script: requests that `javascript/bridge.js` sends, each with a number that comes back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import gradio as gr

from lib_trainer.ui.kit.form import QUIET

Asked: TypeAlias = Mapping[str, Any]
"""What a script sends along: plain data of its own choice, and `nonce`, the number."""


def serve(
    make: Callable[..., Any],
    prefix: str,
    name: str,
    answer: Callable[..., Sequence[Any]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> None:
    """Let the script ask the page `prefix` for `name`: `answer(asked, *values of inputs)` gives the outputs.

    `make(kind, name, …)` makes a component with the page's ids. The request comes in one hidden box, in which its
    number goes back; the script is told when the outputs are there.
    """
    button = make(gr.Button, name, value="", visible=False)
    box = make(gr.Textbox, f"{name}_number", value="", visible=False)

    def run(request: str, *values: Any) -> list[Any]:
        asked = json.loads(request or "{}")
        return [str(asked.get("nonce", "")), *answer(asked, *values)]

    place, count = f"{prefix!r}, {name!r}", len(inputs) + 1
    taken = f"(...values) => window.trainerBridge.taken({place}, values, {count})"
    event = button.click(run, [box, *inputs], [box, *outputs], _js=taken, **QUIET)
    told = f"(number) => {{ window.trainerBridge.answered({place}, number); return []; }}"
    event.success(None, [box], None, _js=told)


def script(call: str) -> str:
    """JavaScript for an event that calls a function of the page's scripts, where they are loaded, and gives nothing."""
    return f"() => {{ window.{call}; return []; }}"


def hurry(prefix: str) -> str:
    """After a button: what it has changed is seen at once."""
    return script(f"trainerBridge?.hurry({prefix!r})")


DOWNLOAD = "(payload) => { window.trainerBridge?.download(payload); return []; }"
"""For an event whose input is JSON of {name, text}, or empty."""
