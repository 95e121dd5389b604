"""POST /probe/<name> with a JSON object of arguments calls one of the functions below in this process."""

from __future__ import annotations

import traceback
from typing import Any

from fastapi import Body, FastAPI

from webui_probe import buttons, card, facts, full_size, kinds, leftovers, runs, snapshots, trials, vae

MODULES = (buttons, card, facts, full_size, kinds, leftovers, runs, snapshots, trials, vae)


def add_routes(_: Any, app: FastAPI) -> None:
    facts.APP[:] = [app]
    app.add_api_route("/probe/{name}", answer, methods=["POST"])


def answer(name: str, arguments: dict = Body(default={})) -> dict[str, Any]:  # noqa: B008 - FastAPI's way
    try:
        function = next(getattr(module, name) for module in MODULES if name in module.CHECKS)
        return {"result": function(**arguments)}
    except Exception:  # the test shows it
        return {"error": traceback.format_exc()}
