"""Every tool by its name: the command line's `model` and the tab Models are made of this table.

What the tools import is imported when one is used, so that `--help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib_trainer.toolbox.clean_settings import CleanSettings
from lib_trainer.toolbox.desk import Tool
from lib_trainer.toolbox.inspect_settings import DuplicatesSettings, InspectSettings
from lib_trainer.toolbox.lora_table import LORA_TOOLS
from lib_trainer.toolbox.merge_settings import MergeSettings

if TYPE_CHECKING:
    from lib_trainer.toolbox.desk import Prepared


def _merge(settings: MergeSettings) -> Prepared:
    from lib_trainer.toolbox.merge import prepare

    return prepare(settings)


def _clean(settings: CleanSettings) -> Prepared:
    from lib_trainer.toolbox.clean import prepare

    return prepare(settings)


def _inspect(settings: InspectSettings) -> Prepared:
    from lib_trainer.toolbox.inspect import prepare

    return prepare(settings)


def _duplicates(settings: DuplicatesSettings) -> Prepared:
    from lib_trainer.toolbox.duplicates import prepare

    return prepare(settings)


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool("inspect", "say what is in a file", InspectSettings, _inspect, ("file",)),
        Tool("merge", "merge checkpoints", MergeSettings, _merge, ("a", "b", "c"), "checkpoints", required=0),
        Tool("clean", "tidy a file up", CleanSettings, _clean, ("file",)),
        Tool("duplicates", "find what several files hold", DuplicatesSettings, _duplicates, ("folders",)),
        *LORA_TOOLS,
    )
}
