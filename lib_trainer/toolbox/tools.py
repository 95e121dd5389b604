"""Every tool by its name: the command line's `model` and the tab Models are made of this table.

What the tools import is imported when one is used, so that `--help` answers at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lib_trainer.toolbox.clean_settings import CleanSettings
from lib_trainer.toolbox.desk import Tool
from lib_trainer.toolbox.inspect_settings import DuplicatesSettings, InspectSettings
from lib_trainer.toolbox.lora_options import (
    CombineSettings,
    ConvertSettings,
    ExtractSettings,
    InjectSettings,
    RepairSettings,
    ResizeSettings,
)
from lib_trainer.toolbox.merge_settings import MergeSettings

if TYPE_CHECKING:
    from lib_trainer.toolbox.desk import Prepared


def _by(module: str, function: str = "prepare") -> Callable[[Any], Prepared]:
    """A function of the toolbox's."""

    def prepare(settings: Any) -> Prepared:
        prepared: Prepared = getattr(importlib.import_module(f"lib_trainer.toolbox.{module}"), function)(settings)
        return prepared

    return prepare


_extract = _by("lora_tools", "prepare_extract")
_inject = _by("lora_tools", "prepare_inject")
_convert = _by("lora_tools", "prepare_convert")
_combine = _by("mix_tools", "prepare_combine")
_resize = _by("mix_tools", "prepare_resize")
_repair = _by("mix_tools", "prepare_repair")
TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool("inspect", "say what is in a file", InspectSettings, _by("inspect"), ("file",)),
        Tool("merge", "merge checkpoints", MergeSettings, _by("merge"), ("a", "b", "c"), "checkpoints", required=0),
        Tool("clean", "tidy a file up", CleanSettings, _by("clean"), ("file",)),
        Tool("duplicates", "find what several files hold", DuplicatesSettings, _by("duplicates"), ("folders",)),
        Tool("extract", "a LoRA out of two checkpoints", ExtractSettings, _extract, ("base", "tuned"), "loras"),
        Tool(
            "inject", "LoRAs of any kind into a checkpoint", InjectSettings, _inject, ("model", "loras"), "checkpoints"
        ),
        Tool("combine", "several LoRAs into one, exactly or smaller", CombineSettings, _combine, ("loras",), "loras"),
        Tool("resize", "a LoRA at a smaller rank", ResizeSettings, _resize, ("lora",), "loras"),
        Tool("convert", "a LoRA's modules under other names", ConvertSettings, _convert, ("lora",), "loras"),
        Tool("repair", "an overfitted LoRA made weaker, part by part", RepairSettings, _repair, ("lora",), "loras"),
    )
}
