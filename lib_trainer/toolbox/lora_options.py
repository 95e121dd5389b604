"""The options of the tools for LoRA files. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from lib_trainer.options.declare import option
from lib_trainer.toolbox.writes import Precision, Writes

Names = Literal["keep", "kohya", "sgm", "diffusers", "peft"]
NAMES = {"keep": "as they are", "kohya": "as sd-scripts writes them", "sgm": "the UNet as SGM names it",
         "diffusers": "the UNet as diffusers names it", "peft": "peft's, with dots"}  # fmt: skip
MEANT = (
    "With its strength as in a prompt: FILE:0.8, FILE:TEXT:UNET, or named, FILE:te=0.5:unet=0.9:lbw=…, where lbw is a "
    "list of LoRA Block Weight's (12, 17, 20 or 26 numbers), one of its presets, or blocks as in 'input_0-5=0, "
    "middle=0.5'."
)
RANK = "The most that a layer gets. 0: no limit, where a share is given."
KEEP = (
    "Each layer gets the rank that keeps this share of its energy (the sum of squares), up to the rank above. 0: the "
    "rank alone decides."
)
FOR_BASE = (
    "The checkpoint that changes which depend on a model (DoRA, OFT) are computed for; they become plain LoRA then."
)


class ExtractSettings(Writes, frozen=True):
    """Extract"""

    base: Annotated[
        str, option("Base", "The checkpoint that the LoRA is for.", place="path", width="wide", files="checkpoints")
    ] = ""
    tuned: Annotated[
        str, option("Tuned", "The checkpoint that it imitates.", place="path", width="wide", files="checkpoints")
    ] = ""
    rank: Annotated[int, option("Rank", RANK, low=0, high=4096)] = 32
    conv_rank: Annotated[
        int, option("Rank of 3×3 convolutions", "0: as the rank. -1: leave them out.", low=-1, high=4096)
    ] = 0
    keep: Annotated[float, option("Share to keep", KEEP, low=0, high=1, step=0.01)] = 0.0
    parts: Annotated[
        Literal["all", "unet", "text"],
        option("Parts", "Of the model.", names={"all": "UNet and text encoders", "unet": "UNet", "text": "text"}),
    ] = "all"
    norms: Annotated[
        bool, option("Norms", "Also the differences of norms (w_norm, b_norm), which the WebUI reads.")
    ] = False
    names: Annotated[Literal["kohya", "sgm", "diffusers", "peft"], option("Names", "Of the modules.", names=NAMES)] = (
        "kohya"
    )
    device: Annotated[str, option("Runs on", "cpu, or cuda for a graphics card.", advanced=True)] = "cpu"
    report: Annotated[str, option("Report", "A CSV file with what each layer loses.", place="path", advanced=True)] = ""
    precision: Annotated[
        Precision, option("Precision", "Of the LoRA's numbers.", names={"keep": "the tuned file's, of 8 bits fp16"})
    ] = "fp16"


class InjectSettings(Writes, frozen=True):
    """Inject"""

    model: Annotated[
        str, option("Checkpoint", "What the LoRAs are put into.", place="path", width="wide", files="checkpoints")
    ] = ""
    loras: Annotated[
        tuple[str, ...], option("LoRA", f"One or several, of any kind. {MEANT}", width="wide", files="loras")
    ] = ()


class CombineSettings(Writes, frozen=True):
    """Combine"""

    loras: Annotated[
        tuple[str, ...], option("LoRA", f"Two or more, of any kind. {MEANT}", width="wide", files="loras")
    ] = ()
    rank: Annotated[int, option("Rank", "The most that a layer gets. 0: exact, ranks add up.", low=0, high=4096)] = 0
    keep: Annotated[float, option("Share to keep", KEEP, low=0, high=1, step=0.01)] = 0.0
    base: Annotated[str, option("Checkpoint", FOR_BASE, place="path", width="wide", files="checkpoints")] = ""
    names: Annotated[Names, option("Names", "Of the modules.", names=NAMES)] = "keep"


class ResizeSettings(Writes, frozen=True):
    """Resize"""

    lora: Annotated[str, option("LoRA", "Of any kind.", place="path", width="wide", files="loras")] = ""
    rank: Annotated[int, option("Rank", RANK, low=0, high=4096)] = 0
    keep: Annotated[float, option("Share to keep", KEEP, low=0, high=1, step=0.01)] = 0.0
    base: Annotated[str, option("Checkpoint", FOR_BASE, place="path", width="wide", files="checkpoints")] = ""
    names: Annotated[Names, option("Names", "Of the modules.", names=NAMES)] = "keep"
    report: Annotated[str, option("Report", "A CSV file with what each layer loses.", place="path", advanced=True)] = ""


class ConvertSettings(Writes, frozen=True):
    """Convert"""

    lora: Annotated[str, option("LoRA", "Of any kind.", place="path", width="wide", files="loras")] = ""
    names: Annotated[Literal["kohya", "sgm", "diffusers", "peft"], option("Names", "Of the modules.", names=NAMES)] = (
        "kohya"
    )


class RepairSettings(Writes, frozen=True):
    """Repair"""

    lora: Annotated[str, option("LoRA", f"The overfitted one. {MEANT}", width="wide", files="loras")] = ""
    blocks: Annotated[
        str,
        option(
            "Strength by block",
            "Of this LoRA: a list of LoRA Block Weight's (12, 17, 20 or 26 numbers, the first for the text encoders), "
            "one of its presets, or blocks as in 'input_0-5=0, middle=0.5'. It replaces what stands behind the file.",
            width="wide",
        ),
    ] = ""
    text: Annotated[
        Literal["keep", "drop"], option("Text encoders", "Of this LoRA.", names={"keep": "keep", "drop": "leave out"})
    ] = "keep"
    text_from: Annotated[
        str,
        option(
            "Text encoders from",
            f"Another LoRA, whose text encoders are taken instead. {MEANT}",
            width="wide",
            files="loras",
        ),
    ] = ""
    others: Annotated[
        tuple[str, ...],
        option("Merged with", f"Other LoRAs that are added. {MEANT}", flag="with", width="wide", files="loras"),
    ] = ()
    rank: Annotated[
        int, option("Rank", "The most that a layer gets. 0: as it is, or the ranks together.", low=0, high=4096)
    ] = 0
    keep: Annotated[float, option("Share to keep", KEEP, low=0, high=1, step=0.01)] = 0.0
    base: Annotated[str, option("Checkpoint", FOR_BASE, place="path", width="wide", files="checkpoints")] = ""
    names: Annotated[Names, option("Names", "Of the modules.", names=NAMES)] = "keep"
