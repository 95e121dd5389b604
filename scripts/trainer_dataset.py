"""Entry point of the WebUI: the Dataset tab."""

import gradio as gr
from modules import script_callbacks

from lib_trainer.cli.captions import clip_tokens
from lib_trainer.dataset.desk import process_desk
from lib_trainer.host.webui.host import WebuiHost
from lib_trainer.tagging.scores.known import known_tags
from lib_trainer.training.desk import process_desk as process_host
from lib_trainer.ui.dataset.page import build_dataset_page

TRAIN_TABS = ["tab_train", "trainer_tab", "tab_trainer"]  # a sub-tab of Train, or a tab where there is none


def in_own_tab():
    with gr.Blocks(analytics_enabled=False) as page:
        desk = process_desk(clip_tokens, known_tags, process_host(WebuiHost).host.cache_folder)
        build_dataset_page(desk, train_tabs=TRAIN_TABS)
    return [(page, "Dataset", "trainer_dataset")]


script_callbacks.on_ui_tabs(in_own_tab)
