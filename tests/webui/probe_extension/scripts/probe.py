"""Test-only: lets the tests of tests/webui ask and set things inside the running WebUI."""

from modules import script_callbacks
from webui_probe.routes import add_routes

script_callbacks.on_app_started(add_routes)
