"""Test-only: stands for the other extension whose script is called "Tiled VAE"."""

import gradio as gr
from modules import scripts


class OtherTiledVae(scripts.Script):
    def title(self):
        return "Tiled VAE"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Checkbox(False, visible=False, elem_id=self.elem_id("enable"))]

    def process(self, p, enabled):
        if enabled:
            p.extra_generation_params["The other one"] = "on"
