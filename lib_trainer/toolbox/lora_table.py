"""The tools for LoRA files, for the table of all. What they import is imported when one is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib_trainer.toolbox.desk import Tool
from lib_trainer.toolbox.lora_options import (
    CombineSettings,
    ConvertSettings,
    ExtractSettings,
    InjectSettings,
    RepairSettings,
    ResizeSettings,
)

if TYPE_CHECKING:
    from lib_trainer.toolbox.desk import Prepared


def _extract(settings: ExtractSettings) -> Prepared:
    from lib_trainer.toolbox.lora_tools import prepare_extract

    return prepare_extract(settings)


def _inject(settings: InjectSettings) -> Prepared:
    from lib_trainer.toolbox.lora_tools import prepare_inject

    return prepare_inject(settings)


def _convert(settings: ConvertSettings) -> Prepared:
    from lib_trainer.toolbox.lora_tools import prepare_convert

    return prepare_convert(settings)


def _combine(settings: CombineSettings) -> Prepared:
    from lib_trainer.toolbox.mix_tools import prepare_combine

    return prepare_combine(settings)


def _resize(settings: ResizeSettings) -> Prepared:
    from lib_trainer.toolbox.mix_tools import prepare_resize

    return prepare_resize(settings)


def _repair(settings: RepairSettings) -> Prepared:
    from lib_trainer.toolbox.mix_tools import prepare_repair

    return prepare_repair(settings)


LORA_TOOLS = (
    Tool("extract", "a LoRA out of two checkpoints", ExtractSettings, _extract, ("base", "tuned"), "loras"),
    Tool("inject", "LoRAs of any kind into a checkpoint", InjectSettings, _inject, ("model", "loras"), "checkpoints"),
    Tool("combine", "several LoRAs into one, exactly or smaller", CombineSettings, _combine, ("loras",), "loras"),
    Tool("resize", "a LoRA at a smaller rank", ResizeSettings, _resize, ("lora",), "loras"),
    Tool("convert", "a LoRA's modules under other names", ConvertSettings, _convert, ("lora",), "loras"),
    Tool("repair", "an overfitted LoRA made weaker, part by part", RepairSettings, _repair, ("lora",), "loras"),
)
