"""Every tool by its name: the command line's `model` and the tab Models are made of this table."""

from __future__ import annotations

from lib_trainer.toolbox.desk import Tool

TOOLS: dict[str, Tool] = {}
