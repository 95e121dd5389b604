"""The Generate tab of the standalone page: enough to try what was trained where there is no WebUI."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gradio as gr
from PIL import Image

from lib_trainer.options.describe import ALLOWED
from lib_trainer.ports import PreviewRequest
from lib_trainer.refusals import ConfigError, Field, Problems, TrainerError
from lib_trainer.ui.kit.form import HOST_DEFAULT
from lib_trainer.ui.kit.gradio_compat import in_browser
from lib_trainer.ui.kit.notices import notice_html, problems_html, unexpected

_log = logging.getLogger(__name__)
INSERT_JS = (
    "(text) => { window.trainerBridge.insert('generate_prompt', text); "
    "window.trainerBridge.openTab('trainer_tab_generate'); }"
)


class Generator(Protocol):
    """Draws pictures with the model that is loaded. Errors for the user come as `TrainerError`."""

    def generate(self, request: PreviewRequest) -> Image.Image:
        """Draw one picture. The prompt may contain `<lora:name:weight>`; an empty sampler is the host's default."""

    def calls(self) -> Sequence[str]:
        """What a prompt can say to use a trained file: `<lora:name:1>`, `<hypernet:name:1>` or an embedding's name."""


def build_generate_page(generator: Generator, samplers: Sequence[str], size: int) -> None:
    """Lay out the tab in the open gradio context. `size` is the width and height that are shown first."""
    fields: list[Any] = []
    with gr.Row(elem_classes="trainer-page trainer-generate"):
        with gr.Column(min_width=340):
            fields.append(gr.Textbox(label="Prompt", lines=3, elem_id="generate_prompt"))
            fields.append(gr.Textbox(label="Negative prompt", lines=2, elem_id="generate_negative"))
            trained = gr.Dropdown(label="Trained here", choices=list(generator.calls()), elem_id="generate_trained")
            with gr.Row():
                insert = gr.Button("Put into the prompt", size="sm", elem_id="generate_insert")
                refresh = gr.Button("Refresh the list", size="sm", elem_id="generate_refresh")
            for pair in (NUMBERS[:2], NUMBERS[2:4]):
                with gr.Row():
                    fields += [_number(one, size) for one in pair]
            with gr.Row():
                choices = [HOST_DEFAULT, *samplers]
                fields.append(gr.Dropdown(choices, value=HOST_DEFAULT, label="Sampler", elem_id="generate_sampler"))
                fields.append(_number(NUMBERS[4], size))
        with gr.Column(min_width=340):
            run = gr.Button("Generate", variant="primary", elem_id="generate_run")
            notice = gr.HTML(elem_id="generate_notice")
            image = gr.Image(label="Picture", type="pil", interactive=False, elem_id="generate_image")

    def generate(*raw: Any) -> tuple[Any, str]:
        return draw(generator, *raw)

    def refreshed() -> tuple[Any, str]:
        calls = list(generator.calls())
        told = f"{len(calls)} trained here." if calls else "Nothing has been trained here yet."
        return gr.update(choices=calls), notice_html(told)

    run.click(generate, fields, [image, notice], api_name=False)
    refresh.click(refreshed, None, [trained, notice], queue=False, api_name=False)
    put = "(call) => { if (call) window.trainerBridge.insert('generate_prompt', call); return []; }"
    insert.click(_chosen, [trained], [notice], queue=False, api_name=False)
    in_browser(insert.click, put, [trained])


def _chosen(call: str | None) -> str:
    return "" if call else notice_html("Nothing is chosen in the list: choose what is to be put in.", error=True)


@dataclass(frozen=True)
class Number:
    """A number of the form. No slider and no bounds in gradio: what was typed is judged here, in a sentence."""

    name: str
    label: str
    value: float
    low: float
    high: float
    step: float = 1
    whole: bool = True

    def read(self, raw: Any) -> float:
        """Raises `ConfigError` for what is not allowed."""
        field = Field(self.name, self.label)
        if not isinstance(raw, (int, float)) or isinstance(raw, bool):
            raise ConfigError("number.empty", field=field, allowed=ALLOWED["int" if self.whole else "float"])
        if not self.low <= raw <= self.high or (self.whole and not float(raw).is_integer()):
            raise ConfigError(
                "number.whole_from_to" if self.whole else "number.from_to",
                field=field,
                value=float(raw),
                low=self.low,
                high=self.high,
            )
        return raw


NUMBERS = (
    Number("width", "Width", 0, 64, 4096, 8),
    Number("height", "Height", 0, 64, 4096, 8),
    Number("steps", "Sampling steps", 20, 1, 150),
    Number("cfg_scale", "CFG scale", 7, 1, 30, 0.5, whole=False),
    Number("seed", "Seed", 1, 0, 2**32 - 1),
)
"""A value of 0 stands for the size that the page starts with."""


def _number(one: Number, size: int) -> gr.Number:
    return gr.Number(value=one.value or size, step=one.step, label=one.label, elem_id=f"generate_{one.name}")


def draw(
    generator: Generator,
    prompt: str,
    negative: str,
    width: float | None,
    height: float | None,
    steps: float | None,
    cfg_scale: float | None,
    sampler: str | None,
    seed: float | None,
) -> tuple[Any, str]:
    """A picture and an empty notice, or the picture that is there and everything that is wrong."""
    chosen = "" if sampler in (None, HOST_DEFAULT) else str(sampler)
    problems, values = Problems(), dict[str, float]()
    for one, raw in zip(NUMBERS, (width, height, steps, cfg_scale, seed), strict=True):
        with problems.at():
            values[one.name] = one.read(raw)
    try:
        problems.raise_if_any()
        whole: dict[str, Any] = {one.name: int(values[one.name]) for one in NUMBERS if one.whole}
        request = PreviewRequest(prompt, negative, sampler=chosen, cfg_scale=values["cfg_scale"], **whole)
        return generator.generate(request), ""
    except TrainerError as error:
        return gr.update(), problems_html(error.problems, prefix="generate")
    except Exception as error:
        _log.exception("The Generate tab met an unexpected error")
        return gr.update(), notice_html(unexpected(error), error=True)
