"""The families that have a description, the models that are only recognised, and what can be trained of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lib_trainer.families.family import VAE_PREFIX, Family, Stranger
from lib_trainer.families.sd1 import SD1
from lib_trainer.families.sd2 import SD2
from lib_trainer.families.sdxl import SDXL
from lib_trainer.refusals import ModelError

FAMILIES = (SD1, SD2, SDXL)
DEFAULT = next(family for family in FAMILIES if family.trainable)
"""What a model that does not tell is taken for."""

EDITING = Stranger("editing or depth", draws=False)
REFINER = Stranger("the SDXL refiner")
SSD = Stranger("SSD-1B")
SD3 = Stranger("SD 3")
FLUX = Stranger("Flux")

TEXT_ROOTS = ("cond_stage_model.", "conditioner.")
PREFIXES = (DEFAULT.unet.prefix, VAE_PREFIX, *TEXT_ROOTS)
"""Of the tensors that loaders read. What else files hold (`model_ema.`, the schedule, optimizer states) is junk."""


def trainable() -> str:
    """The words of the families that can be trained, as a sentence names them."""
    *others, last = (family.word for family in FAMILIES if family.trainable)
    return f"{', '.join(others)} or {last}"


def by_family(told: Callable[[Family], str]) -> str:
    """What is said of each family that can be trained, those first of which the same is said: 'a (SD 1.x, SD 2.x), b
    (SDXL)'; for the help of options."""
    words: dict[str, list[str]] = {}
    for family in FAMILIES:
        if family.trainable:
            words.setdefault(told(family), []).append(family.word)
    return ", ".join(f"{said} ({', '.join(named)})" for said, named in words.items())


def checked(found: Family | Stranger, path: Path | None = None) -> Family:
    """The family of a model that can be trained: the loaded one, or that of a file.

    Raises `ModelError` naming what it is instead.
    """
    if isinstance(found, Family) and found.trainable:
        return found
    if isinstance(found, Stranger) and not found.draws:
        if path is None:
            raise ModelError("family.loaded_for_editing")
        raise ModelError("family.file_for_editing", path=path)
    if path is None:
        raise ModelError("family.loaded_not_supported", found=found.word, trained=trainable())
    raise ModelError("family.file_not_supported", path=path, found=found.word, trained=trainable())
