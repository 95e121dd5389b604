"""What the training scripts share: model shapes, averaged weights, the learning-rate curve, atomic files."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

SCALING_FACTOR = 0.18215
"""SD1's latent scale; the VAE's quant convolutions are folded so that it gives unit variance."""

VAE_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    # Not 32 at the top: with SD's fixed 32 groups that is an instance norm, which wipes each channel's mean
    # just before the output convolution, and colours drift.
    "block_out_channels": (64, 64, 64, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 64,
    "scaling_factor": SCALING_FACTOR,
}
UNET_CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 2,
    "cross_attention_dim": 32,
    # diffusers' name is historical: for SD1 this is the number of heads.
    "attention_head_dim": 4,
    "norm_num_groups": 32,
}
CLIP_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 32,
    "intermediate_size": 128,
    "projection_dim": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}


class Ema:
    """Exponential moving average of parameters, warmed up so that early steps do not linger."""

    def __init__(self, params: Iterable[torch.nn.Parameter], decay: float = 0.999) -> None:
        self.params = list(params)
        self.decay = decay
        self.steps = 0
        self.shadow = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self) -> None:
        """One step: shadow moves towards the parameters by 1 - decay, faster at first."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.params], 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and parameters; call it twice to be back."""
        for param, shadow in zip(self.params, self.shadow):
            kept = param.detach().clone()
            param.copy_(shadow)
            shadow.copy_(kept)


class Learner:
    """AdamW along a cosine over `steps`, and the average of what it makes of the parameters.

    params: as torch.optim takes them; settings: of AdamW. Gradients are clipped to the norm `clip` if it is given.
    """

    def __init__(
        self, params: Any, rate: float, steps: int, decay: float = 0.998, clip: float = 1.0, **settings: Any
    ) -> None:
        self.optimizer = torch.optim.AdamW(params, lr=rate, **settings)
        self.params = [param for group in self.optimizer.param_groups for param in group["params"]]
        self.curve = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: cosine(step, steps))
        self.ema, self.clip = Ema(self.params, decay), clip

    def step(self) -> None:
        """One step along the gradients that are there."""
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.params, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.curve.step()
        self.ema.update()


def cosine(step: int, total: int, warmup: int = 100) -> float:
    """Learning-rate factor, 0 to 1: a linear rise over warmup steps, then half a cosine down to 1%."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


def take_device(parser: argparse.ArgumentParser) -> None:
    """The option --device, a `torch.device`. What a CPU draws and trains is what docs/ show, so it is the usual one."""
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="or cuda (default: cpu)")


def print_table(make: Callable[..., list[str]], doc: str | None, steps: int, **counts: tuple[int, str]) -> int:
    """The main of a script that fills a new folder with runs of `steps` and prints a table of them.

    make: is given the folder and, by their names, steps, device and each count of {name: (usual, help)}; all are
    options of the command line. Returns the exit code.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="a new folder")
    for name, (usual, told) in ({"steps": (steps, "optimizer steps of each run")} | counts).items():
        parser.add_argument(f"--{name}", type=int, default=usual, help=f"{told} (default: {usual})")
    take_device(parser)
    given = vars(parser.parse_args())
    print("\n".join(make(given.pop("dir").absolute(), **given)))
    return 0


def atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let write() fill a temporary neighbour of path, then move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, state: object) -> None:
    """torch.save, atomically."""
    atomic(path, lambda temporary: torch.save(state, temporary))
