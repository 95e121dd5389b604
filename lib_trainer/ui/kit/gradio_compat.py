"""gradio, where its versions differ: everything here is for 3.41.2, the WebUI's, and another version is met here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_name": False}
"""How an event of a page runs: past the host's queue, which a generation may hold, and without flicker."""


def keep_out_of_ui_config(component: Any) -> Any:
    """Tell the WebUI not to keep this component's value in ui-config.json.

    It keeps values under tab and label, so that ours would mix with the native fields of the Train tab.
    """
    component.do_not_save_to_config = True
    return component


def in_browser(event: Any, script: str, inputs: list[Any] | None = None, outputs: list[Any] | None = None) -> Any:
    """Let an event run a JavaScript function in the browser alone: of the inputs' values and the outputs', returning
    what the outputs show then, or `[]` where there are none."""
    return event(None, inputs, outputs, _js=script)


def asked_first(event: Any, script: str, answer: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> Any:
    """Let an event call the server with what a JavaScript function makes of the inputs' values."""
    return event(answer, inputs, outputs, _js=script, **QUIET)


def picture_input(**options: Any) -> Any:
    """A place to drop a picture, which arrives with its transparency and without an editor."""
    return gr.Image(type="pil", image_mode="RGBA", tool=None, **options)


def uploaded(file: Any) -> Path:
    """Where an upload lies."""
    return Path(file.name)


class Maker:
    """Makes components with a page's ids and classes, kept out of the WebUI's saved values."""

    def __init__(self, prefix: str, box: str) -> None:
        """Ids begin with `prefix`, classes with `box`."""
        self.prefix, self._box = prefix, box

    def __call__(self, kind: Any, name: str, *, classes: tuple[str, ...] = (), **options: Any) -> Any:
        own = [f"{self._box}-box-{name.replace('_', '-')}", *classes]
        return keep_out_of_ui_config(kind(elem_id=f"{self.prefix}_{name}", elem_classes=own, **options))

    def hidden_button(self, name: str) -> Any:
        """A button that a script presses: a call of the server."""
        return self(gr.Button, name, value="", visible=False)

    def hidden_text(self, name: str) -> Any:
        """A text that goes between scripts and the server."""
        return self(gr.Textbox, name, value="", visible=False)
