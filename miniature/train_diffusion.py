"""Train the miniature's UNet and text encoder together on latents of the world's scenes."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import CLIPTextConfig, CLIPTextModel

from .common import CLIP_CONFIG, SCALING_FACTOR, UNET_CONFIG, Learner, save
from .text import batch_of, known_ids, with_junk
from .train_vae import load_joint
from .world import Scene, caption, combos, draw, is_held_out, random_scene

EMPTY_CAPTIONS = 0.1
BATCH = 64
MEAN_WEIGHT = 4.0
"""Extra weight of the error's mean over each latent channel. SD's 32 groups over 32 channels are instance norms, which
take the means away right before the output, and with them the ground's colour; the network has to send them as
patterns, and at their natural weight, 1 in 64 values, it hardly learns to. The loss has its minimum where it had it."""


@dataclass(frozen=True)
class Data:
    """Scenes and their latents (n, 4, 8, 8), scaled to about unit variance."""

    scenes: list[Scene]
    latents: torch.Tensor


@dataclass(frozen=True)
class Models:
    """The two networks that train together."""

    unet: UNet2DConditionModel
    text: CLIPTextModel

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Weights of both, by name."""
        return {"unet": self.unet.state_dict(), "text": self.text.state_dict()}

    def load(self, state: dict[str, dict[str, torch.Tensor]]) -> None:
        """Take over what `state` gave."""
        self.unet.load_state_dict(state["unet"])
        self.text.load_state_dict(state["text"])


def alphas_cumprod() -> torch.Tensor:
    """SD1's scaled-linear schedule, float32 (1000,), falling from .9991 to .0047."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, 0).float()


@torch.no_grad()
def encode(vae: AutoencoderKL, scenes: list[Scene]) -> torch.Tensor:
    """Latents of drawn scenes, (n, 4, 8, 8), times the scaling factor."""
    out = []
    for start in range(0, len(scenes), 32):
        pixels = np.stack([np.asarray(draw(scene)) for scene in scenes[start : start + 32]])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        out.append(vae.encode(batch).latent_dist.mode() * SCALING_FACTOR)
    return torch.cat(out)


def make_data(vae: AutoencoderKL, count: int, seed: int) -> Data:
    """count scenes of the training combos with their latents."""
    rng = np.random.default_rng(seed)
    choices = [combo for combo in combos() if not is_held_out(combo)]
    scenes = [random_scene(rng, choices, play=0.0) for _ in range(count)]
    # Rigid scenes repeat; each is encoded once.
    once = list(dict.fromkeys(scenes))
    latents = dict(zip(once, encode(vae, once)))
    return Data(scenes, torch.stack([latents[scene] for scene in scenes]))


def make_models(seed: int) -> Models:
    """Both networks with fresh weights."""
    torch.manual_seed(seed)
    return Models(UNet2DConditionModel(**UNET_CONFIG), CLIPTextModel(CLIPTextConfig(**CLIP_CONFIG)))


def errors_of(
    models: Models, data: Data, index: NDArray[Any], rng: np.random.Generator, acp: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted squared error of the predicted noise over the scenes of index, and of its means over each channel.

    Captions are drawn anew. Each scene is taken twice with other noise and times, since a caption of 77 tokens costs
    nearly as much to encode as the UNet.
    """
    captions = [caption(data.scenes[i], rng) if rng.random() >= EMPTY_CAPTIONS else "" for i in index]
    context = models.text(with_junk(batch_of(captions), rng)).last_hidden_state.repeat(2, 1, 1)
    clean = data.latents[torch.from_numpy(index)].repeat(2, 1, 1, 1)
    noise = torch.randn_like(clean)
    # One timestep per stratum of the batch: the same uniform law with less variance.
    n = len(clean)
    times = ((torch.randperm(n) + torch.rand(n)) * (1000 / n)).long().clamp(max=999)
    level = acp[times][:, None, None, None]
    noisy = level.sqrt() * clean + (1.0 - level).sqrt() * noise
    error = models.unet(noisy, times, context).sample - noise
    # At low noise the error is large and says nothing of shapes; the weight levels it out (.1 to 4, 1 near t = 400).
    weight = ((1.0 - level) / level).sqrt().clamp(0.1, 4.0)
    return (weight * error.square()).mean(), (weight[..., 0, 0] * error.mean((2, 3)).square()).mean()


def parameter_groups(models: Models) -> list[dict[str, object]]:
    """Weight decay for matrices alone; embeddings of unused words would only shrink."""
    named = [*models.unet.named_parameters(), *models.text.named_parameters()]
    decayed = [p for name, p in named if p.ndim > 1 and "embedding" not in name]
    plain = [p for name, p in named if p.ndim <= 1 or "embedding" in name]
    return [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]


def _share_gradients(params: list[torch.nn.Parameter], table: torch.nn.Parameter, rows: torch.Tensor) -> None:
    """Average the gradients over all ranks; of the big embedding table only the rows that train."""
    if not torch.distributed.is_initialized():
        return
    grads = [p.grad for p in params if p is not table and p.grad is not None]
    some = table.grad[rows] if table.grad is not None else torch.zeros(len(rows), table.shape[1])
    flat = torch.cat([*(grad.flatten() for grad in grads), some.flatten()])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    *parts, last = flat.split([*(grad.numel() for grad in grads), some.numel()])
    for grad, part in zip(grads, parts):
        grad.copy_(part.view_as(grad))
    table.grad = torch.zeros_like(table)
    table.grad[rows] = last.view_as(some)


def train(work: Path, steps: int = 9000, start: Path | None = None, rate: float = 1.5e-3, seed: int = 2) -> Models:
    """Train on latents of work/vae_joint.pt; write work/diffusion.pt (averaged weights), snapshots every 250 steps.

    start: a file of that kind to go on from, at a fresh learning-rate curve.
    """
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
    batch = BATCH // ranks
    if not (work / "latents.pt").is_file():
        save(work / "latents.pt", make_data(load_joint(work), 12000, seed))
    data: Data = torch.load(work / "latents.pt", weights_only=False)
    print(f"latents mean {data.latents.mean().item():.3f} std {data.latents.std().item():.3f}", flush=True)
    models = make_models(seed)
    if start is not None:
        models.load(torch.load(start))
    rng = np.random.default_rng([seed, rank])
    torch.manual_seed(seed + 1000 * rank)
    learner = Learner(parameter_groups(models), rate, steps, betas=(0.9, 0.99))
    table = models.text.text_model.embeddings.token_embedding.weight
    rows = torch.tensor(known_ids())
    known = torch.zeros(len(table), 1)
    known[rows] = 1.0
    acp, started, running, drift = alphas_cumprod(), time.time(), 0.0, 0.0
    for step in range(1, steps + 1):
        error, mean_error = errors_of(models, data, rng.integers(0, len(data.scenes), batch // 2), rng, acp)
        (error + MEAN_WEIGHT * mean_error).backward()
        if table.grad is not None:
            table.grad.mul_(known)
        _share_gradients(learner.params, table, rows)
        learner.step()
        running += (error.item() - running) / min(step, 100)
        drift += (mean_error.item() - drift) / min(step, 100)
        if step % 50 == 0 and rank == 0:
            print(f"diffusion {step} mse {running:.4f} mean {drift:.5f} {time.time() - started:.0f}s", flush=True)
        if step % 250 == 0 and rank == 0:
            learner.ema.swap()
            save(work / "diffusion_snapshot.pt", models.state())
            learner.ema.swap()
    learner.ema.swap()
    if rank == 0:
        save(work / "diffusion.pt", models.state())
    return models


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    options = parser.parse_args()
    train(options.work, options.steps, options.start, options.rate)
