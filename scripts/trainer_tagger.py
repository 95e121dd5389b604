"""Entry point of the WebUI: the Tagger tab, and a step of the Extras tab that captions pictures."""

import gradio as gr
from modules import script_callbacks, scripts_postprocessing, ui_components

from lib_trainer.host.webui.tagger import ExtrasCaptions, tagger_places
from lib_trainer.tagging.desk import process_desk
from lib_trainer.ui.tagger.extras import build_extras_step, caption_picture
from lib_trainer.ui.tagger.page import TaggerOptions, build_tagger_page

INSERT_JS = "(text) => { window.trainerBridge.insert('txt2img_prompt', text); switch_to_txt2img(); }"
desk = process_desk(tagger_places)
captions = ExtrasCaptions()


class ScriptPostprocessingTagger(scripts_postprocessing.ScriptPostprocessing):
    """Beside the built-in "Caption" step: what it writes joins what other steps have written."""

    name = "Tags by WD14 tagger"
    order = 4050

    def ui(self):
        with ui_components.InputAccordion(False, label=self.name, elem_id="tagger_extras") as enable:
            return {"enable": enable, **build_extras_step(desk)}

    def process(self, pp, enable, **settings):
        if enable:
            caption = caption_picture(desk, pp.image, **settings)
            pp.caption = ", ".join(part for part in (pp.caption, caption) if part)
            captions.expect(pp)


def tagger_tab():
    with gr.Blocks(analytics_enabled=False) as page:
        build_tagger_page(desk, TaggerOptions(INSERT_JS))
    return [(page, "Tagger", "tagger")]


script_callbacks.on_ui_tabs(tagger_tab)
script_callbacks.on_image_saved(captions.saved)
