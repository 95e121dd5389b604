"""Merges tried on the loaded model, by the tab's own actions."""

from __future__ import annotations

from typing import Any

from lib_trainer.host.webui.host import WebuiHost
from lib_trainer.toolbox.desk import process_desk
from lib_trainer.toolbox.tools import TOOLS
from lib_trainer.training.desk import process_desk as training_desk
from lib_trainer.ui.models.actions import ModelsActions

CHECKS = ("tool", "told", "try_merge", "put_back", "tried")


def _actions() -> ModelsActions:
    actions = ModelsActions(process_desk(), training_desk(WebuiHost).host)
    actions.offers()
    return actions


def _ended(notice: str) -> str:
    """The notice, or how the job ended."""
    view = None if notice else process_desk().wait(120)
    return notice or f"{view.state}: {view.told or view.failure}"


def tool(name: str, values: dict[str, Any]) -> str:
    defaults = {path: spec.default for path, spec in TOOLS[name].specs.items()}
    return _ended(_actions().start(name, defaults | values))


def told(name: str, values: dict[str, Any]) -> list[str]:
    """What a tool has told at its end."""
    ended = tool(name, values)
    assert ended.startswith("finished"), ended
    view = process_desk().view()
    return [str(view.told), *map(str, view.notes)]


def try_merge(values: dict[str, Any]) -> str:
    defaults = {path: spec.default for path, spec in TOOLS["merge"].specs.items()}
    return _ended(_actions().try_merge(defaults | values))


def put_back() -> str:
    return _ended(_actions().put_back())


def tried() -> str:
    return str(training_desk(WebuiHost).host.exchanged or "")
