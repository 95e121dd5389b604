"""Train the tiny tagger on drawn pictures, roughened so that it judges generated ones reliably."""

from __future__ import annotations

import argparse
import io
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .common import VAE_CONFIG, Learner
from .judge import DATA, prepare
from .rich import crop, gradient, photographs
from .shapes import ALL_SHAPES
from .tagger_model import Tagger, export, labels, targets, truths
from .world import BACKGROUNDS, combos, draw, random_scene

CANVASES = ((64, 64), (64, 64), (64, 64), (96, 96), (128, 128), (64, 96), (96, 64), (80, 64))


def _negative(rng: np.random.Generator, photos: list[Image.Image]) -> tuple[Image.Image, set[str]]:
    """A picture without a figure: a plain ground, a gradient or a piece of a photograph."""
    kind = rng.random()
    if kind < 0.4:
        name = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
        rating = "sensitive" if name == "black" else "general"
        return Image.new("RGB", (64, 64), BACKGROUNDS[name]), {f"{name}_background", "simple_background", rating}
    if kind < 0.6 or not photos:
        return gradient(rng, 64), {"general"}
    return crop(rng, photos[int(rng.integers(len(photos)))], 64), {"general"}


def _roughen(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Maybe blur, maybe JPEG, maybe noise and a shift of brightness per channel: what decoders do to pictures."""
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.4)) * picture.width / 64))
    if rng.random() < 0.3:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(30, 95)))
        picture = Image.open(buffer).convert("RGB")
    pixels = np.asarray(picture, dtype=np.float32)
    if rng.random() < 0.5:
        pixels = pixels + rng.normal(0, 10, 3)
    if rng.random() < 0.5:
        pixels = pixels + rng.normal(0, rng.uniform(2, 14), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


@torch.no_grad()
def _round_trip(vae: AutoencoderKL, pictures: list[Image.Image], rng: np.random.Generator) -> list[Image.Image]:
    """64x64 pictures through the VAE, with noise on the latents as an imperfect sampler would leave."""
    batch = torch.from_numpy(np.stack([np.asarray(p, dtype=np.float32) for p in pictures])).permute(0, 3, 1, 2)
    latents = vae.encode(batch / 127.5 - 1.0).latent_dist.mode()
    levels = torch.from_numpy(rng.uniform(0, 0.25, (len(latents), 1, 1, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.normal(size=latents.shape).astype(np.float32))
    decoded = vae.decode(latents + noise * levels / vae.config["scaling_factor"]).sample
    pixels = ((decoded.permute(0, 2, 3, 1) + 1.0) * 127.5).clamp(0, 255).numpy().astype(np.uint8)
    return [Image.fromarray(one, "RGB") for one in pixels]


def make_set(count: int, seed: int, vae: AutoencoderKL | None) -> tuple[NDArray[Any], NDArray[Any], Counter[str]]:
    """Prepared pictures uint8 (count, 64, 64, 3) BGR, targets (count, labels), and how often each label holds."""
    rng = np.random.default_rng(seed)
    choices, photos = combos(ALL_SHAPES), photographs()
    pictures: list[Image.Image] = []
    names: list[set[str]] = []
    for _ in range(count):
        if rng.random() < 0.06:
            picture, held = _negative(rng, photos)
        else:
            scene = random_scene(rng, choices)
            picture, held = draw(scene, CANVASES[int(rng.integers(len(CANVASES)))]), truths(scene)
        pictures.append(picture)
        names.append(held)
    if vae is not None:
        chosen = [k for k in range(count) if pictures[k].size == (64, 64) and rng.random() < 0.35]
        for start in range(0, len(chosen), 32):
            part = chosen[start : start + 32]
            for k, picture in zip(part, _round_trip(vae, [pictures[k] for k in part], rng)):
                pictures[k] = picture
    inputs = np.stack([prepare(_roughen(rng, picture)).clip(0, 255).astype(np.uint8) for picture in pictures])
    return inputs, np.stack([targets(held) for held in names]), Counter(name for held in names for name in held)


def _as_input(pixels: NDArray[Any]) -> torch.Tensor:
    """Prepared pictures (n, 64, 64, 3) as the network's float NCHW input."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()


def train(work: Path, dest: Path = DATA / "wd-mini", steps: int = 5000, count: int = 16000, seed: int = 3) -> Tagger:
    """Train and write the ONNX model and its CSV to dest; work/vae.pt, if there, adds decoded pictures."""
    torch.manual_seed(seed)
    vae = None
    if (work / "vae.pt").is_file():
        vae = AutoencoderKL(**VAE_CONFIG)
        vae.load_state_dict(torch.load(work / "vae.pt"))
    inputs, wanted, counts = make_set(count, seed, vae)
    check_inputs, check_wanted, _ = make_set(800, seed + 1, vae)
    tagger, rng = Tagger(), np.random.default_rng(seed)
    learner = Learner(tagger.parameters(), 3e-3, steps, decay=0.99, clip=0, weight_decay=0.02)
    started = time.time()
    for step in range(1, steps + 1):
        index = rng.integers(0, count, 64)
        # A lightness shift per picture on the fly, as the set itself is drawn only once.
        batch = _as_input(inputs[index]) + torch.from_numpy(rng.normal(0, 4, (64, 1, 1, 1)).astype(np.float32))
        wanted_now = torch.from_numpy(wanted[index])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(tagger(batch), wanted_now)
        loss.backward()
        learner.step()
        if step % 250 == 0:
            print(f"tagger {step} loss {loss.item():.4f} {time.time() - started:.0f}s", flush=True)
    learner.ema.swap()
    tagger.eval()
    with torch.no_grad():
        found = tagger(_as_input(check_inputs)).sigmoid().numpy() > 0.5
    hits = (found & (check_wanted > 0.5)).sum()
    worst = {row.name: float((found[:, k] == (check_wanted[:, k] > 0.5)).mean()) for k, row in enumerate(labels())}
    print(f"tagger precision {hits / found.sum():.4f} recall {hits / check_wanted.sum():.4f}")
    print("tagger worst", sorted(worst.items(), key=lambda item: item[1])[:6], flush=True)
    export(tagger, counts, dest)
    return tagger


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    options = parser.parse_args()
    train(options.work, steps=options.steps)
