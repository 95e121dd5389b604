"""The main job on the miniature: learn a shape the checkpoint has never seen, then draw without and with the LoRA.

`python -m miniature.demo` writes a concept set, a job file, the LoRA and a picture into a new folder under `demo/`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image, ImageDraw, ImageFont

from lib_trainer.cli import main as cli
from lib_trainer.config import (
    DatasetConfig,
    JobConfig,
    ModelConfig,
    NetworkConfig,
    OptimizerConfig,
    OutputConfig,
    TrainingConfig,
    dump_job,
    from_values,
    to_values,
)
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.ports import PreviewRequest

from .export import FAMILIES, checkpoint_of, export_webui
from .recipes import RECIPES
from .world import write_concept, write_known

TRIGGER, SHAPE, COLOURS = "zorb", "heart", ("red", "blue")
NAME, SIDE, SEEDS, STEPS = "zorb", 64, tuple(range(1, 7)), 400
CFG_SCALE, SAMPLER = 4.0, "Euler a"
"""What the miniature draws best with."""
SCALE, GAP, HEAD = 3, 6, 26
"""Guidance; then the picture's layout: enlargement, space between pictures and height of a caption, in pixels."""
MANY = 180
"""Pictures of what is known that an epoch shows once each beside as many of the concept."""
RECOMMENDED: dict[str, Any] = {"loss.weighting": "debiased", "captions.dropout": 0.1}
"""Over the usual settings, with `MANY` pictures of what is known: the checkpoint itself learned with such weights, and
with a tenth of the captions left out. One that predicts v needs them: else half as many pictures show the concept."""


def concept_job(folder: Path, name: str = NAME, steps: int = STEPS) -> JobConfig:
    """The job as a person would set it for a checkpoint this small: defaults but for size, rates, batch and steps.

    The captions hold the trigger word already; those of the regularisation pictures must not get it.
    """
    return JobConfig(
        dataset=DatasetConfig(folder=str(folder), width=SIDE, height=SIDE),
        network=NetworkConfig(rank=32, alpha=32.0),
        optimizer=OptimizerConfig(unet_lr=3e-3, text_encoder_lr=2e-3),
        training=TrainingConfig(max_steps=steps, batch_size=8, precision="fp32"),
        output=OutputConfig(name=name),
    )


def prompts() -> list[str]:
    """The picture's rows: each colour without and with the LoRA, then what the checkpoint knew before, with it."""
    mark = f" <lora:{NAME}:1>"
    wanted = [f"{TRIGGER}, {colour}, white background, large, centered" for colour in COLOURS]
    return [prompt + end for prompt in wanted for end in ("", mark)] + ["red circle, white background" + mark]


def draw_rows(host: StandaloneHost) -> list[tuple[str, list[Image.Image]]]:
    """Every prompt with the same seeds."""
    requests = [
        PreviewRequest(prompt, width=SIDE, height=SIDE, cfg_scale=CFG_SCALE, sampler=SAMPLER) for prompt in prompts()
    ]
    return [(request.prompt, host.draw_seeds(request, SEEDS)) for request in requests]


def grid(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Rows of pictures, enlarged without smoothing, each row under its caption."""
    side = SIDE * SCALE
    width = GAP + max(len(pictures) for _, pictures in rows) * (side + GAP)
    out = Image.new("RGB", (width, GAP + len(rows) * (HEAD + side + GAP)), "white")
    pen, font = ImageDraw.Draw(out), _font()
    for row, (caption, pictures) in enumerate(rows):
        top = GAP + row * (HEAD + side + GAP)
        pen.text((GAP, top + 4), caption, fill="black", font=font)
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((side, side), Image.NEAREST)
            out.paste(enlarged, (GAP + column * (side + GAP), top + HEAD))
    return out


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font that reads well, which matplotlib brings along; Pillow's own tiny one without it."""
    try:
        import matplotlib

        return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 15)
    except (ImportError, OSError):
        return ImageFont.load_default()


def verdict(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> list[str]:
    """What the miniature tagger, which had no part in training, sees in each row."""
    from .judge import Judge
    from .shapes import ALL_SHAPES

    tagger = Judge()
    lines = []
    for caption, pictures in rows:
        seen = [tagger.best(scores, ALL_SHAPES)[0] for scores in tagger.scores(list(pictures))]
        lines.append(f"  {caption}: {', '.join(seen)}")
    return lines


def new_folder(parent: Path) -> Path:
    """The first of run-1, run-2 … that is not there yet: an earlier demo is kept."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / f"run-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def run(folder: Path, steps: int, family: str = "sd1", say: Callable[[str], None] = print) -> int:
    """The whole demo on that family's miniature. Returns the exit code of the training command."""
    started = time.monotonic()
    checkpoint = export_webui(folder / "model", family)
    write_concept(folder / "pictures", shape=SHAPE, trigger=TRIGGER, colours=COLOURS, size=(SIDE, SIDE))
    job = concept_job(Path("pictures"), steps=steps)  # relative paths are meant from the job file's folder
    if family in RECIPES and RECIPES[family].prediction == "v_prediction":
        write_known(folder / "pictures", count=MANY, repeats=1)
        job = from_values(to_values(job) | RECOMMENDED)
    else:
        write_known(folder / "pictures")
    job = msgspec.structs.replace(job, model=ModelConfig(checkpoint=str(checkpoint.relative_to(folder))))
    dump_job(job, folder / "job.toml")
    say(f"The concept '{TRIGGER}', a shape that the checkpoint has never seen: {folder / 'pictures'}")
    say(f"python -m lib_trainer train {folder / 'job.toml'} --root {folder}")
    code = cli.main(["train", str(folder / "job.toml"), "--root", str(folder)])
    if code:
        return code
    say("Drawing without and with the LoRA, same seeds")
    rows = draw_rows(StandaloneHost(checkpoint, folder))
    picture = folder / "without-and-with.png"
    grid(rows).save(picture)
    say(f"The tagger looks at them ('{TRIGGER}' is its word '{SHAPE}'):")
    for line in verdict(rows):
        say(line)
    say(f"Done in {time.monotonic() - started:.0f} s. Look at {picture}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python dev.py demo", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps (default: {STEPS})")
    parser.add_argument("--dir", type=Path, default=Path("demo"), help="parent of the new folder (default: demo)")
    parser.add_argument("--family", choices=FAMILIES, default="sd1", help="of the checkpoint (default: sd1)")
    options = parser.parse_args()
    try:
        checkpoint_of(options.family)
    except FileNotFoundError as error:  # not every family's is part of the repository
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run(new_folder(options.dir.absolute()), options.steps, options.family)


if __name__ == "__main__":
    sys.exit(main())
