"""Make a miniature of another family: `python -m miniature.build_family sdxl` trains, writes the file and evaluates it.

What is found in the work folder is not trained again. SDXL-v starts from what SDXL's training left there, or else from
the committed file; SD2-v, as SDXL, from the SD1 miniature.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from .common import save
from .export import BUILT, CHECKPOINT, COMMITTED, DATA, checkpoint_of
from .family_layout import from_single_text, prove, to_single_file
from .ldm_layout import write
from .recipes import RECIPES, Recipe
from .train_family import State, train

STEPS = {"sdxl": 3000, "sdxl-v": 700, "sd2-v": 1000}
RATES = {"sdxl": 1.5e-3, "sdxl-v": 1e-3, "sd2-v": 1e-3}


def weights_of(recipe: Recipe, checkpoint: Path) -> dict[str, State]:
    """What training would have left of a single file: the weights of UNet and text encoders, in float32."""
    from diffusers.loaders import single_file_utils as convert

    single = {
        name: value.float() if value.is_floating_point() else value for name, value in load_file(checkpoint).items()
    }
    texts = [from_single_text(encoder, single) for encoder in recipe.encoders]
    text = {f"models.{number}.{name}": value for number, state in enumerate(texts) for name, value in state.items()}
    return {"unet": convert.convert_ldm_unet_checkpoint(single, dict(recipe.unet)), "text": text}


def assemble(recipe: Recipe, weights: dict[str, State], dest: Path) -> Path:
    """Write the single file, in fp16, and prove that diffusers reads it as it was trained."""
    texts = [
        {
            name.removeprefix(f"models.{number}."): value
            for name, value in weights["text"].items()
            if name.startswith(f"models.{number}.")
        }
        for number in range(len(recipe.encoders))
    ]
    single = to_single_file(recipe, weights["unet"], texts, load_file(CHECKPOINT))
    prove(recipe, single, weights["unet"], texts)
    write(single, dest)
    return dest


def build(family: str, work: Path, steps: int) -> Path:
    """Train if need be; returns the written checkpoint."""
    recipe, trained = RECIPES[family], work / f"{family}.pt"
    work.mkdir(parents=True, exist_ok=True)
    if not trained.is_file():
        start = None
        if family == "sdxl-v":
            start = work / "sdxl.pt"
            if not start.is_file():
                weights = weights_of(RECIPES["sdxl"], checkpoint_of("sdxl"))
                save(start, weights)
        train(recipe, work, steps, start, RATES[family])
    return assemble(
        recipe, torch.load(trained), (DATA if family in COMMITTED else BUILT) / f"mini-{family}.safetensors"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=RECIPES)
    parser.add_argument("--work", type=Path, default=BUILT)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    print(build(options.family, options.work, options.steps or STEPS[options.family]))
