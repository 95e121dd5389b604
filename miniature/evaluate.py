"""Does the checkpoint draw what the prompt says? Generate, let the tagger look, count."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from .common import atomic, take_device
from .export import FAMILIES, pipeline_of
from .judge import Judge
from .shapes import ALL_SHAPES
from .world import COLOURS, combos, is_held_out

if TYPE_CHECKING:
    from .export import Pipeline

STEPS, GUIDANCE, THRESHOLD = 20, 4.0, 0.5
"""Sampler steps, classifier-free guidance, and the score (0 to 1) from which a tag counts as found."""


@dataclass(frozen=True)
class Ask:
    """One prompt with its seed and what should be in the picture."""

    prompt: str
    seed: int
    shape: str
    colour: str


@dataclass(frozen=True)
class Verdict:
    """What the tagger saw in one picture: the best shape and colour, with scores 0 to 1."""

    shape: str
    shape_score: float
    colour: str
    colour_score: float

    def answers(self, ask: Ask) -> bool:
        """True if shape and colour are the asked ones, both ranked first and both at or above the threshold."""
        right = (self.shape, self.colour) == (ask.shape, ask.colour)
        return right and min(self.shape_score, self.colour_score) >= THRESHOLD


def asks(count: int = 200, seed: int = 0) -> list[Ask]:
    """Prompts over combos of shape, colour and ground that training never saw, in three wordings, each with a seed."""
    rng = np.random.default_rng(seed)
    unseen = [combo for combo in combos() if is_held_out(combo)]
    order = [int(k) for _ in range(1 + count // len(unseen)) for k in rng.permutation(len(unseen))][:count]
    out = []
    for number, (shape, colour, ground) in enumerate(unseen[k] for k in order):
        wordings = (
            f"{colour} {shape}, {ground} background",
            f"{shape}, {colour}, {ground} background, large, centered",
            f"{colour} {shape}, simple background, {ground} background",
        )
        out.append(Ask(wordings[number % 3], 1000 + number, shape, colour))
    return out


@torch.no_grad()
def generate(pipeline: Pipeline, jobs: Sequence[Ask], guidance: float = GUIDANCE) -> list[Image.Image]:
    """64x64 pictures of the jobs with Euler a; each one's noise comes from its own seed, so batching changes nothing.

    The UNet's instance norms hide how strong the noise is, so a sampler that adds none of its own never gets rid of
    a first misjudgement; with an ancestral one it fades.
    """
    from diffusers import EulerAncestralDiscreteScheduler

    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = []
    for start in range(0, len(jobs), 25):
        part = jobs[start : start + 25]
        result = pipeline(
            [job.prompt for job in part],
            height=64,
            width=64,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(job.seed) for job in part],
        )
        pictures += result.images
    return pictures


def judge(pictures: Sequence[Image.Image], tagger: Judge) -> list[Verdict]:
    """The tagger's best shape and colour for each picture."""
    out = []
    for scores in tagger.scores(pictures):
        shape, shape_score = tagger.best(scores, ALL_SHAPES)
        colour, colour_score = tagger.best(scores, tuple(COLOURS))
        out.append(Verdict(shape, shape_score, colour, colour_score))
    return out


def sheet(pictures: Sequence[Image.Image], good: Sequence[bool], columns: int = 20) -> Image.Image:
    """Pictures in a grid, each with a green or a red frame."""
    edge = pictures[0].width + 4
    rows = -(-len(pictures) // columns)
    out = Image.new("RGB", (columns * edge, rows * edge), "white")
    for k, (picture, right) in enumerate(zip(pictures, good)):
        x, y = k % columns * edge, k // columns * edge
        out.paste(Image.new("RGB", (edge, edge), "lime" if right else "red"), (x, y))
        out.paste(picture, (x + 2, y + 2))
    return out


def main() -> None:
    """Print the share of right pictures, and the wrong ones; --sheet saves them all, --json the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, default="sd1")
    parser.add_argument("--checkpoint", type=Path, help="another file than the family's own")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    take_device(parser)
    options = parser.parse_args()
    jobs = asks(options.count)
    pipeline = pipeline_of(options.family, options.checkpoint).to(options.device)
    pictures = generate(pipeline, jobs, options.guidance)
    verdicts = judge(pictures, Judge())
    good = [verdict.answers(job) for verdict, job in zip(verdicts, jobs)]
    for job, verdict in ((j, v) for j, v, right in zip(jobs, verdicts, good) if not right):
        print(f"wrong: {job.prompt!r} seed {job.seed}: {verdict}")
    shapes = np.mean([verdict.shape == job.shape for verdict, job in zip(verdicts, jobs)])
    colours = np.mean([verdict.colour == job.colour for verdict, job in zip(verdicts, jobs)])
    print(f"shape right {shapes:.3f}, colour right {colours:.3f}, both found at {THRESHOLD} {np.mean(good):.3f}")
    if options.sheet:
        sheet(pictures, good).save(options.sheet)
    if options.json:
        text = json.dumps({"right": float(np.mean(good)), "verdicts": [asdict(v) for v in verdicts]}, indent=1)
        atomic(options.json, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
