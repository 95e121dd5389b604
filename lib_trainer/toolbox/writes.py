"""What every tool that writes a file is told of it. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from lib_trainer.options.declare import EXISTING, Existing, Section, option

Precision = Literal["keep", "fp16", "bf16", "fp32"]


class Writes(Section, frozen=True):
    """What every tool that writes a file is told of it."""

    output: Annotated[
        str, option("Result", "The new file; .safetensors is added where it is missing.", place="path", width="wide")
    ] = ""
    existing: Annotated[
        Existing,
        option(
            "If the file is there",
            "Refuse, take the next free name (name-2), or replace: when the new file is written, the old one goes into "
            "the folder .trainer-trash beside it.",
            names=EXISTING,
        ),
    ] = "refuse"
    precision: Annotated[
        Precision,
        option(
            "Precision",
            "Of the file's numbers, which are computed in fp32 and rounded once. Keep: as the first file has them.",
            names={"keep": "keep"},
        ),
    ] = "keep"
