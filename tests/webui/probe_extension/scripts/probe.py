"""Test-only: lets the tests of tests/webui ask and set things inside the running WebUI."""

import open_clip
from modules import script_callbacks, sd_models, shared
from webui_probe.half import prepare, prepare_newer_torch
from webui_probe.routes import add_routes

prepare_newer_torch()
if shared.cmd_opts.precision == "half":
    prepare()
# open_clip builds a text encoder by its arch's description, and it brings along none as small as the miniatures'
open_clip.add_model_config(sd_models.model_path)
script_callbacks.on_app_started(add_routes)
