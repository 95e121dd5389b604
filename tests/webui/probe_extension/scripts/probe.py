"""Test-only: lets the tests of tests/webui ask and set things inside the running WebUI."""

from modules import script_callbacks, shared
from webui_probe.half import prepare
from webui_probe.routes import add_routes

if shared.cmd_opts.precision == "half":
    prepare()
script_callbacks.on_app_started(add_routes)
