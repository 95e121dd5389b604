"""A page's line to its script: requests that `javascript/bridge.js` sends, each with a number that comes back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from lib_trainer.ui.kit.gradio_compat import Maker, asked_first, in_browser

Asked: TypeAlias = Mapping[str, Any]
"""What a script sends along: plain data of its own choice, and `nonce`, the number."""


def serve(
    make: Maker,
    name: str,
    answer: Callable[..., Sequence[Any]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> Any:
    """Let the script ask the page of `make` for `name`: `answer(asked, *values of inputs)` gives the outputs.

    The request comes in one hidden box, in which its number goes back; the script is told when the outputs are there.
    Returns gradio's event.
    """
    button, box = make.hidden_button(name), make.hidden_text(f"{name}_number")

    def run(request: str, *values: Any) -> list[Any]:
        asked = json.loads(request or "{}")
        return [str(asked.get("nonce", "")), *answer(asked, *values)]

    place, count = f"{make.prefix!r}, {name!r}", len(inputs) + 1
    taken = f"(...values) => window.trainerBridge.taken({place}, values, {count})"
    event = asked_first(button.click, taken, run, [box, *inputs], [box, *outputs])
    told = f"(number) => {{ window.trainerBridge.answered({place}, number); return []; }}"
    in_browser(event.success, told, [box])
    return event


def script(call: str) -> str:
    """JavaScript for an event that calls a function of the page's scripts, where they are loaded, and gives nothing."""
    return f"() => {{ window.{call}; return []; }}"


def hurry(prefix: str) -> str:
    """After a button: what it has changed is seen at once."""
    return script(f"trainerBridge?.hurry({prefix!r})")


DOWNLOAD = "(payload) => { window.trainerBridge?.download(payload); return []; }"
"""For an event whose input is JSON of {name, text}, or empty."""
