"""What a cleaning is told. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from lib_trainer.options.declare import option
from lib_trainer.toolbox.writes import Precision, Writes


class CleanSettings(Writes, frozen=True):
    """Clean"""

    file: Annotated[
        str,
        option("File", "A checkpoint, LoRA or VAE, or a diffusers folder.", place="path", width="wide", files="models"),
    ] = ""
    average: Annotated[
        Literal["drop", "take", "keep"],
        option(
            "Running average (EMA)",
            "Leave it out, take its numbers in place of the UNet's, or keep both.",
            names={"drop": "leave it out", "take": "take it as the UNet", "keep": "keep both"},
            flag="ema",
        ),
    ] = "drop"
    junk: Annotated[
        bool,
        option("Leave junk out", "By a list that is shown; what is not known is kept and named.", flag="keep-junk"),
    ] = True
    vae: Annotated[
        str, option("VAE", "keep: as it is; drop: leave it out; a path: put the VAE of that file in its place.",
                    place="path or name", width="wide", files="vaes")
    ] = "keep"  # fmt: skip
    vae_precision: Annotated[
        Literal["same", "keep", "fp16", "bf16", "fp32"],
        option("Precision of the VAE", "Some VAEs overflow in fp16.", names={"same": "as the rest"}, advanced=True),
    ] = "same"


def vae_precision(settings: CleanSettings) -> Precision:
    return settings.precision if settings.vae_precision == "same" else settings.vae_precision
