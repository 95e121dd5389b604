"""Entry point of the WebUI: the Models tab."""

import gradio as gr
from modules import script_callbacks

from lib_trainer.host.webui.host import WebuiHost
from lib_trainer.toolbox.desk import process_desk
from lib_trainer.toolbox.trial import end_trial
from lib_trainer.training.desk import process_desk as training_desk
from lib_trainer.ui.models.page import build_models_page


def in_own_tab():
    with gr.Blocks(analytics_enabled=False) as page:
        build_models_page(process_desk(), training_desk(WebuiHost).host)
    return [(page, "Models", "trainer_models")]


def end():
    """Called by "Reload UI", after which this extension and its button may be gone."""
    end_trial(process_desk(), training_desk(WebuiHost).host)


script_callbacks.on_ui_tabs(in_own_tab)
script_callbacks.on_script_unloaded(end)
