"""Entry point of the WebUI: the accordion "Tiled VAE" in txt2img and img2img."""

import gradio as gr
from modules import script_callbacks, scripts, shared
from modules.ui_components import InputAccordion

from lib_trainer.host.webui import tiled_vae
from lib_trainer.ui import tiled_vae as page

DEFAULT = "trainer_tiled_vae_default"


def add_settings():
    choices = gr.Radio, {"choices": [page.OFF, page.AUTOMATIC, page.ALWAYS]}
    section = "trainer", "WebUI Trainer"
    option = shared.OptionInfo(page.OFF, "Tiled VAE when the page opens", *choices, section=section)
    shared.opts.add_option(DEFAULT, option.needs_reload_ui())


class TiledVae(scripts.Script):
    def title(self):
        return page.TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        default = getattr(shared.opts, DEFAULT, page.OFF)
        components, self.infotext_fields = page.build(InputAccordion, default, self.elem_id)
        self.paste_field_names = [page.MODE, page.BUDGET, page.ATTENTION]
        return components

    def before_process(self, p, *values):
        try:
            choice = page.read(values)
        except ValueError as error:
            tiled_vae.refuse(p, error.sentence)
            return
        p.extra_generation_params.update(page.parameters(choice))
        settings = tiled_vae.Settings.asked(
            always=choice.mode == page.ALWAYS, budget_gib=choice.budget_gib, windowed=choice.windowed_attention
        )
        tiled_vae.switch.begin(p, settings if choice.enabled else None, page.MODE)

    def before_process_batch(self, p, *values, **batch):
        tiled_vae.switch.back_to(p)

    def postprocess(self, p, processed, *values):
        tiled_vae.switch.end(p)


tiled_vae.install()
script_callbacks.on_ui_settings(add_settings)
script_callbacks.on_script_unloaded(tiled_vae.uninstall)
