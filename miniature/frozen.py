"""What a frozen miniature can be made to draw by its context alone: no embedding can reach more.

    python -m miniature.frozen --family sdxl --concepts heart crescent --steps 800

Of one prompt ("red, white background, large, centered") the text encoders' whole output learns, all 77 rows and the
pooled vector, from 24 pictures of a shape that the model has never seen; an embedding's few rows move only a part of
that, and the same way for every prompt. The tagger says how many of the pictures drawn from it show the shape.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.ports import Conditioning, PictureSize, PreviewRequest
from lib_trainer.training.objective import Objective

from .common import take_device
from .demo import CFG_SCALE, SAMPLER, SIDE
from .export import FAMILIES, export_webui
from .judge import Judge
from .shapes import ALL_SHAPES
from .trials import CONCEPTS
from .world import draw, random_scene

PICTURES, BATCH = 24, 8
PROMPT = "red, white background, large, centered"
RATES = (1e-2, 3e-2, 1e-1)
SCALES = (CFG_SCALE, 2.0)
"""Of guidance: what was learned is far from what captions say, and is soon driven too far."""
SIZE = PictureSize((SIDE, SIDE), (0, 0), (SIDE, SIDE))


@dataclass(frozen=True)
class Learned:
    """A prompt's conditioning, (1, …), and the mean losses of the first and the last fifty steps."""

    told: Conditioning
    first: float
    last: float


def latents_of(model: DiffusersModel, shape: str) -> torch.Tensor:
    """(PICTURES, C, H, W) on the CPU, scaled: the means of red figures on white."""
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, [(shape, "red", "white")], 0.0) for _ in range(PICTURES)]
    pixels = np.stack([np.asarray(draw(one, (SIDE, SIDE)).convert("RGB"), np.float32) for one in scenes])
    with torch.no_grad():
        moments = model.encode_images(torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2).contiguous())
    return moments[:, : model.family.latent_channels].float().cpu() * model.latent_scale


def learn(model: DiffusersModel, latents: torch.Tensor, rate: float, steps: int) -> Learned:
    """With Adam and half a cosine, from the prompt's own conditioning."""
    with torch.no_grad():
        start = model.encode_text([PROMPT], 1, 1)
    rows = [torch.nn.Parameter(one.clone()) for one in (start.context, start.pooled) if one is not None]
    optimizer, noise = torch.optim.Adam(rows, lr=rate), torch.Generator().manual_seed(0)
    objective, losses = Objective(model.schedule), list[float]()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        batch = latents[torch.randint(len(latents), (BATCH,), generator=noise)]
        noised = objective.noised(batch, noise).sent(model.device)
        told = Conditioning(*rows)
        if model.family.sizes:
            told = told.sized([SIZE])
        told = told.each(lambda one: one.to(model.device).expand(BATCH, *one.shape[1:]))
        loss = objective.loss(model.predict(noised.latents, noised.timesteps, told), noised)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return Learned(
        Conditioning(*[one.detach() for one in rows]), float(np.mean(losses[:50])), float(np.mean(losses[-50:]))
    )


@contextlib.contextmanager
def saying(model: DiffusersModel, told: Conditioning) -> Iterator[None]:
    """While this holds, the second of two prompts is told as `told`, whatever it says."""
    real = model.encode_text

    def encode(texts: list[str], *rest: int) -> Conditioning:
        own = real(texts, *rest)
        pooled = None if own.pooled is None or told.pooled is None else torch.cat([own.pooled[:1], told.pooled])
        return Conditioning(torch.cat([own.context[:1], told.context]), pooled)

    with mock.patch.object(model, "encode_text", encode):
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("demo/frozen"))
    parser.add_argument("--family", choices=FAMILIES, default="sd1")
    parser.add_argument("--concepts", nargs="*", choices=CONCEPTS, default=list(CONCEPTS), metavar="SHAPE")
    parser.add_argument("--rates", nargs="*", type=float, default=RATES, metavar="RATE")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=50)
    take_device(parser)
    options = parser.parse_args()
    folder = options.dir.absolute() / options.family
    host, judge = StandaloneHost(export_webui(folder / "model", options.family), folder, options.device), Judge()
    model = host.model()
    for part in (model.unet, *model.text.parts().values()):
        part.requires_grad_(False)
    asked = PreviewRequest(PROMPT, width=SIDE, height=SIDE, sampler=SAMPLER)
    told = " | ".join(f"draws it at guidance {scale:g}" for scale in SCALES)
    print(f"| family | shape | rate | loss, first 50 | last 50 of {options.steps} | {told} ({options.seeds} seeds) |")
    print("|---" * (5 + len(SCALES)) + "|")
    for shape in options.concepts:
        latents = latents_of(model, shape)
        for rate in options.rates:
            found, right = learn(model, latents, rate, options.steps), []
            for scale in SCALES:
                with saying(model, found.told):
                    drawn = host.draw_seeds(replace(asked, cfg_scale=scale), range(100, 100 + options.seeds))
                right.append(np.mean([judge.best(one, ALL_SHAPES)[0] == shape for one in judge.scores(drawn)]))
            shares = " | ".join(f"{one:.0%}" for one in right)
            row = f"| {options.family} | {shape} | {rate:g} | {found.first:.4f} | {found.last:.4f} | {shares} |"
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
