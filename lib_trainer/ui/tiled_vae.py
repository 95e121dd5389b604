"""The accordion "Tiled VAE" of txt2img and img2img, and the settings of one generation read from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lib_trainer.refusals import Reason

TITLE = "Tiled VAE (row bands)"
"""Of the script, by which the API finds it. Another extension's script is called "Tiled VAE"."""
OFF, AUTOMATIC, ALWAYS = "Off", "Automatic", "Always"
MODE, BUDGET, ATTENTION = "VAE bands", "VAE bands budget", "VAE bands attention"
"""Keys in the picture's parameters."""
WINDOWED = "windowed"
NAMES = ("enabled", "mode", "budget_gib", "windowed_attention")
"""Of the API's arguments, in their order."""
EXPLANATION = (
    "The picture is the one that the VAE would give anyway, made in about a third of the memory. It costs no time "
    "worth mentioning, so there is nothing to tune. In half precision it is as exact as half precision is."
)


@dataclass(frozen=True)
class Choice:
    """What a generation asks for. `budget_gib` 0 is all that is free."""

    enabled: bool = False
    mode: str = AUTOMATIC
    budget_gib: float = 0.0
    windowed_attention: bool = False


def build(
    accordion: Callable[..., Any], default: str, elem_id: Callable[[str], str]
) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """The components in the order of `NAMES`, and what each is when a picture's parameters are pasted.

    `accordion` is the WebUI's InputAccordion, `default` one of Off, Automatic and Always.
    """
    with accordion(default != OFF, label="Tiled VAE", elem_id=elem_id("enabled")) as enabled:
        gr.Markdown(EXPLANATION, elem_classes=["trainer-note"])
        with gr.Row():
            mode = gr.Radio(
                [AUTOMATIC, ALWAYS],
                value=ALWAYS if default == ALWAYS else AUTOMATIC,
                label="Use it",
                info="Automatic: only for pictures that would not fit the free memory otherwise",
                elem_id=elem_id("mode"),
            )
            # No bounds here: gradio would refuse the whole generation, also where this is off.
            budget = gr.Number(
                value=0,
                label="Memory budget (GiB)",
                info="The most the VAE may take; 0 = what is free",
                elem_id=elem_id("budget"),
            )
        windowed = gr.Checkbox(
            value=False,
            label="Approximate attention",
            info="Saves time above 4096² and changes the picture a little: leave it off below",
            elem_id=elem_id("windowed"),
        )
    components = [enabled, mode, budget, windowed]
    for component in (*components, getattr(enabled, "accordion", enabled)):
        component.do_not_save_to_config = True  # the default is a setting, not what ui-config.json remembers
    pasted = [
        (enabled, lambda found: MODE in found),
        (mode, lambda found: found.get(MODE) if found.get(MODE) in (AUTOMATIC, ALWAYS) else None),
        (budget, lambda found: _number(found.get(BUDGET)) if MODE in found else None),
        (windowed, lambda found: found.get(ATTENTION) == WINDOWED if MODE in found else None),
    ]
    return components, pasted


def read(values: Sequence[Any]) -> Choice:
    """The script's arguments: as the page passes them, or one dictionary of `NAMES` as the API may.

    Raises `Reason` for an unknown name and, where it is on, for a value out of range.
    """
    if values and isinstance(values[0], Mapping):
        given = dict(values[0])
        unknown = sorted(set(given) - set(NAMES))
        if unknown:
            raise Reason("vae.unknown_argument", name=unknown[0], names=NAMES)
        given.setdefault("enabled", True)
    else:
        given = {name: value for name, value in zip(NAMES, values) if value is not None}
    mode = str(given.get("mode", AUTOMATIC)).capitalize()
    if mode == OFF or not given.get("enabled", False):
        return Choice()
    if mode not in (AUTOMATIC, ALWAYS):
        raise Reason("vae.unknown_mode", mode=given["mode"])
    budget = _number(given.get("budget_gib", 0.0))
    if budget is None or not 0 <= budget < float("inf"):
        raise Reason("vae.no_budget", budget=given["budget_gib"])
    return Choice(True, mode, budget, bool(given.get("windowed_attention", False)))


def parameters(choice: Choice) -> dict[str, Any]:
    """What is written into the picture's parameters: nothing where it is off."""
    if not choice.enabled:
        return {}
    found: dict[str, Any] = {MODE: choice.mode}
    if choice.budget_gib:
        found[BUDGET] = choice.budget_gib
    if choice.windowed_attention:
        found[ATTENTION] = WINDOWED
    return found


def _number(value: Any) -> float | None:
    try:
        return float(value or 0)
    except (TypeError, ValueError):
        return None
