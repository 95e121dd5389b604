"""Every tool by its name: the command line's `model` and the tab Models are made of this table.

What the tools import is imported when one is used, so that `--help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib_trainer.toolbox.desk import Tool
from lib_trainer.toolbox.lora_table import LORA_TOOLS
from lib_trainer.toolbox.merge_settings import MergeSettings

if TYPE_CHECKING:
    from lib_trainer.toolbox.desk import Prepared


def _merge(settings: MergeSettings) -> Prepared:
    from lib_trainer.toolbox.merge import prepare

    return prepare(settings)


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (Tool("merge", "merge checkpoints", MergeSettings, _merge, ("a", "b", "c")), *LORA_TOOLS)
}
