"""The Generate tab of the standalone page: enough to try what was trained where there is no WebUI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import gradio as gr
from PIL import Image

from lib_trainer.errors import TrainerError
from lib_trainer.ui.status import notice_html

HOST_DEFAULT = "Host's default"
INSERT_JS = "(text) => { window.trainerPage.insert('generate_prompt', text); window.trainerPage.openTab('Generate'); }"


class Generator(Protocol):
    """Draws pictures with the model that is loaded. Errors for the user come as `TrainerError`."""

    def generate(
        self,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        steps: int,
        cfg_scale: float,
        sampler: str,
        seed: int,
    ) -> Image.Image:
        """Draw one picture. The prompt may contain `<lora:name:weight>`; an empty sampler is the host's default."""

    def calls(self) -> Sequence[str]:
        """What a prompt can say to use a trained file: `<lora:name:1>`, `<hypernet:name:1>` or an embedding's name."""


def build_generate_page(generator: Generator, samplers: Sequence[str], size: int) -> None:
    """Lay out the tab in the open gradio context. `size` is the width and height that are shown first."""
    with gr.Row(elem_classes="trainer-page trainer-generate"):
        with gr.Column(min_width=340):
            prompt = gr.Textbox(label="Prompt", lines=3, elem_id="generate_prompt")
            negative = gr.Textbox(label="Negative prompt", lines=2, elem_id="generate_negative")
            trained = gr.Dropdown(label="Trained here", choices=list(generator.calls()), elem_id="generate_trained")
            with gr.Row():
                insert = gr.Button("Put into the prompt", size="sm", elem_id="generate_insert")
                refresh = gr.Button("Refresh the list", size="sm", elem_id="generate_refresh")
            with gr.Row():
                width = gr.Slider(64, 2048, value=size, step=8, label="Width", elem_id="generate_width")
                height = gr.Slider(64, 2048, value=size, step=8, label="Height", elem_id="generate_height")
            with gr.Row():
                steps = gr.Slider(1, 150, value=20, step=1, label="Sampling steps", elem_id="generate_steps")
                scale = gr.Slider(1, 30, value=7, step=0.5, label="CFG scale", elem_id="generate_cfg_scale")
            with gr.Row():
                sampler = gr.Dropdown(
                    label="Sampler", choices=[HOST_DEFAULT, *samplers], value=HOST_DEFAULT, elem_id="generate_sampler"
                )
                seed = gr.Number(label="Seed", value=1, precision=0, elem_id="generate_seed")
        with gr.Column(min_width=340):
            run = gr.Button("Generate", variant="primary", elem_id="generate_run")
            notice = gr.HTML(elem_id="generate_notice")
            image = gr.Image(label="Picture", type="pil", interactive=False, elem_id="generate_image")

    def generate(*raw: Any) -> tuple[Any, str]:
        return draw(generator, *raw)

    run.click(generate, [prompt, negative, width, height, steps, scale, sampler, seed], [image, notice], api_name=False)
    refresh.click(lambda: gr.update(choices=list(generator.calls())), None, [trained], queue=False, api_name=False)
    put = "(call) => { if (call) window.trainerPage.insert('generate_prompt', call); return []; }"
    insert.click(None, [trained], None, _js=put)


def draw(
    generator: Generator,
    prompt: str,
    negative: str,
    width: float,
    height: float,
    steps: float,
    cfg_scale: float,
    sampler: str | None,
    seed: float | None,
) -> tuple[Any, str]:
    """A picture and an empty notice, or the picture that is there and a sentence."""
    chosen = "" if sampler in (None, HOST_DEFAULT) else str(sampler)
    try:
        if seed is None:
            raise TrainerError("Seed is empty: it must be a whole number.")
        image = generator.generate(
            prompt, negative, int(width), int(height), int(steps), float(cfg_scale), chosen, int(seed)
        )
    except TrainerError as error:
        return gr.update(), notice_html(str(error), error=True)
    return image, ""
