"""Entry point of the WebUI: the Dataset tab."""

import gradio as gr
from modules import script_callbacks

from lib_trainer.cli.captions import clip_tokens
from lib_trainer.tagging.scores.known import known_tags
from lib_trainer.ui.dataset.page import build_dataset_page

TRAIN_JS = "(folder) => { window.trainerDataset.train(folder); window.trainerDataset.openTrainer(); }"


def in_own_tab():
    with gr.Blocks(analytics_enabled=False) as page:
        build_dataset_page(clip_tokens, known_tags, train_js=TRAIN_JS)
    return [(page, "Dataset", "trainer_dataset")]


script_callbacks.on_ui_tabs(in_own_tab)
