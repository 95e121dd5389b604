"""What the tools that look are told. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

from lib_trainer.options.declare import Section, option


class InspectSettings(Section, frozen=True):
    """Inspect"""

    file: Annotated[
        str,
        option(
            "File",
            "A checkpoint, LoRA, VAE, embedding … or a diffusers folder.",
            place="path",
            width="wide",
            files="models",
        ),
    ] = ""
    whole: Annotated[
        bool,
        option("Read every number", "For the hashes of the parts and broken tensors; else names alone.",
               flag="no-numbers"),
    ] = True  # fmt: skip
    vaes: Annotated[
        tuple[str, ...],
        option(
            "VAEs to compare with",
            "Files, or folders of them: whichever has the same numbers as the VAE inside is named.",
            place="path",
            width="wide",
            files="folders",
        ),
    ] = ()


class DuplicatesSettings(Section, frozen=True):
    """Duplicates"""

    folders: Annotated[
        tuple[str, ...],
        option("Folders", "Of models and VAEs, with what is below them.", place="path", width="wide", files="folders"),
    ] = ()
    trash: Annotated[
        tuple[str, ...],
        option(
            "To the trash",
            "Files that are moved into the folder .trainer-trash beside them, if another one holds the same.",
            place="path",
            width="wide",
            files="nothing",
        ),
    ] = ()
