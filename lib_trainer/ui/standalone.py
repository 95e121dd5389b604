"""The page without a WebUI: the tabs Train, Tagger and Generate over any host, served to this machine only."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads it when it is imported

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lib_trainer.dataset.desk import DatasetDesk
from lib_trainer.tagging.desk import TaggerDesk
from lib_trainer.tagging.scores.known import known_tags
from lib_trainer.toolbox.desk import ToolDesk
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.ui.dataset.page import build_dataset_page
from lib_trainer.ui.doors import Doors, asks_for, check_password
from lib_trainer.ui.generate import INSERT_JS, Generator, build_generate_page
from lib_trainer.ui.kit.gradio_compat import in_browser
from lib_trainer.ui.models.page import build_models_page
from lib_trainer.ui.tagger.page import TaggerOptions, build_tagger_page
from lib_trainer.ui.train.page import build_train_page
from lib_trainer.ui.train.page_options import PageOptions

__all__ = ["Generator", "build_app", "serve"]

ROOT = Path(__file__).parents[2]
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif"]
MONO_FONTS = ["ui-monospace", "Consolas", "monospace"]
SOFT = {"body_text_color_subdued": "#5b6472", "body_text_color_subdued_dark": "#aab2bf"}
"""Of tabs and notes: gradio's own have a contrast of 2.5 on white."""
STICKY = ".gradio-container { overflow: clip !important; }"
"""gradio's own `hidden` makes the container a scroller of its own, in which nothing can stay in view."""


def build_app(
    desk: TrainingDesk,
    generator: Generator,
    *,
    size: int = 512,
    tagger: TaggerDesk | None = None,
    count_tokens: Callable[[str], int] | None = None,
    tools: ToolDesk | None = None,
) -> gr.Blocks:
    """The page. `size` is the width and height that the Generate tab starts with.

    The Tagger tab is there where a `tagger` is given, the Dataset tab where `count_tokens` gives the tokens of a word,
    the Models tab where `tools` are.
    """
    samplers = tuple(desk.host.samplers())
    options = PageOptions(
        job_folder=desk.host.cache_folder() / "jobs",
        insert_js=INSERT_JS,
        samplers=samplers,
        use_label="Use in Generate",
    )
    with gr.Blocks(
        title="LoRA trainer",
        theme=gr.themes.Default(font=FONTS, font_mono=MONO_FONTS).set(**SOFT),
        css=(ROOT / "style.css").read_text("utf-8") + STICKY,
        analytics_enabled=False,
    ) as app:
        with gr.Tabs():
            with gr.Tab("Train", elem_id="trainer_tab_train"):
                build_train_page(desk, options)
            if tagger is not None:
                with gr.Tab("Tagger", elem_id="trainer_tab_tagger"):
                    build_tagger_page(tagger, TaggerOptions(INSERT_JS, send_label="Send to Generate"))
            if count_tokens is not None:
                with gr.Tab("Dataset", elem_id="trainer_tab_dataset"):
                    build_dataset_page(
                        DatasetDesk(count_tokens, known_tags, latents=desk.host.cache_folder),
                        train_tabs=["trainer_tab_train"],
                    )
            if tools is not None:
                with gr.Tab("Models", elem_id="trainer_tab_models"):
                    build_models_page(tools, desk.host)
            with gr.Tab("Generate", elem_id="trainer_tab_generate"):
                build_generate_page(generator, samplers, size)
        scripts = [path.read_text("utf-8") for path in sorted((ROOT / "javascript").glob("*.js"))]  # the bridge first
        in_browser(app.load, "\n".join(["() => {", *scripts, "return []; }"]))
    return app


def serve(
    app: gr.Blocks,
    host: str = "127.0.0.1",
    port: int = 7861,
    open_browser: bool = False,
    block: bool = True,
    password: str = "",
) -> str:
    """Serve the page and return its address. Nobody but this machine reaches it unless `host` says otherwise.

    Raises `ConfigError` where other machines could reach it without a password.
    """
    check_password(host, password)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    uploads = Path(tempfile.mkdtemp(prefix="trainer-uploads-")).resolve()
    weakref.finalize(app, shutil.rmtree, uploads, ignore_errors=True)  # with the page, or when Python ends

    def serves(path: Path) -> bool:
        """Uploads, and the files that components show: gradio keeps lists of its copies of these, links and all."""
        shown = (Path(name) for names in app.temp_file_sets for name in tuple(names))
        return uploads in path.parents or any(one.name == path.name and one.resolve() == path for one in shown)

    app.queue(api_open=False)
    server, address, _ = app.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        share=False,
        show_api=False,
        quiet=True,
        prevent_thread_lock=True,
        auth=asks_for(password),
        auth_message="Any user name will do; the password is the one that was given to --password.",
        app_kwargs={"middleware": [Middleware(Doors, host=host, serves=serves)]},
    )
    server.uploaded_file_dir, server.cwd = str(uploads), str(uploads)
    # gradio puts its CORSMiddleware, which answers every origin, before ours; the WebUI takes it out in the same way
    server.user_middleware = [one for one in server.user_middleware if one.cls is not CORSMiddleware]
    server.middleware_stack = server.build_middleware_stack()
    if block:
        app.block_thread()
    return str(address)
