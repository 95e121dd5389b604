"""Entry point of the WebUI: a sub-tab of Train, or a tab of its own where there is no Train tab."""

import gradio as gr
from modules import script_callbacks, shared

from lib_trainer.host.webui.doors import guard
from lib_trainer.host.webui.host import WebuiHost
from lib_trainer.host.webui.interrupts import heed_ctrl_c, leave_ctrl_c
from lib_trainer.refusals import speak
from lib_trainer.training.desk import process_desk
from lib_trainer.ui.train.page import build_train_page
from lib_trainer.ui.train.page_options import PageOptions

INSERT_JS = "(text) => { window.trainerBridge.insert('txt2img_prompt', text); switch_to_txt2img(); }"
desk = process_desk(WebuiHost)
shown = []


def build():
    speak(str(getattr(shared.opts, "localization", "")))
    host = desk.host
    folder = host.cache_folder().parent / "jobs"
    build_train_page(desk, PageOptions(folder, INSERT_JS, host.samplers(), task_id=lambda: host.task_id))


def in_train_tab(params):
    with gr.Tab("LoRA & more", elem_id="trainer_tab"):
        build()
    shown.append(True)


def in_own_tab():
    """Called after the Train tab was built, if the host has one and the user has not hidden it."""
    if shown and "Train" not in getattr(shared.opts, "hidden_tabs", []):
        return []
    with gr.Blocks(analytics_enabled=False) as page:
        build()
    return [(page, "Trainer", "trainer")]


if hasattr(script_callbacks, "on_ui_train_tabs"):
    script_callbacks.on_ui_train_tabs(in_train_tab)
script_callbacks.on_ui_tabs(in_own_tab)
script_callbacks.on_app_started(guard)
script_callbacks.on_script_unloaded(leave_ctrl_c)
heed_ctrl_c()
