"""Train the miniature's VAE and fold its latents' scale into the quant convolutions."""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from .common import SCALING_FACTOR, VAE_CONFIG, Ema, Learner, save
from .rich import vae_pool

KL_WEIGHT = 2e-4
"""Of the mean KL per latent value: enough that latents stay near unit scale and the decoder bears some noise."""
FIRST_LOGVAR = -5.0
"""Bias of the log-variance at the start: with unit noise from step 0 nothing gets through, and nothing is learnt."""

NOISE = 0.04
"""Noise on scaled latents while the decoder trains alone; they have unit variance."""
TRAIN_EPS, STOCK_EPS = 1.0, 1e-6
"""The group norms' epsilon while training, and what SD's VAE has. SD's 32 groups leave two channels in each here, so a
norm that really normalises wipes plain colours and training crawls; with an epsilon as large as the activations it
is nearly linear, and learns several times faster. `stock_norms` then folds the difference into the weights, exactly."""
INTO_STREAM = ("conv_in", "conv1", "conv2", "to_out.0")
"""Layers that write into what a group norm reads; weight and bias scale with it, other layers' biases alone do."""
ALONG_STREAM = ("conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")


def set_eps(vae: AutoencoderKL, eps: float) -> None:
    """Give every group norm this epsilon."""
    for module in vae.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = eps


@torch.no_grad()
def stock_norms(vae: AutoencoderKL) -> None:
    """Turn a VAE trained at TRAIN_EPS into the same function at STOCK_EPS.

    norm(s x; s^2 eps) = norm(x; eps): so shrink all that the norms read by s = sqrt(STOCK_EPS / TRAIN_EPS).
    """
    scale = (STOCK_EPS / TRAIN_EPS) ** 0.5
    for name, module in vae.named_modules():
        if name.endswith(INTO_STREAM):
            module.weight *= scale
            module.bias *= scale
        elif name.endswith(ALONG_STREAM):
            module.bias *= scale
    set_eps(vae, STOCK_EPS)


def as_batch(pool: NDArray[Any], index: NDArray[Any], rng: np.random.Generator | None = None) -> torch.Tensor:
    """Pictures of the pool, uint8 (n, 3, h, w), as floats -1 to 1; with rng also mirrored half of the time."""
    batch = torch.from_numpy(pool[index]).float() / 127.5 - 1.0
    if rng is not None:
        flips = torch.from_numpy(rng.random(len(index)) < 0.5)
        batch = torch.where(flips[:, None, None, None], batch.flip(3), batch)
    return batch


@torch.no_grad()
def reconstruction_mse(vae: AutoencoderKL, pool: NDArray[Any]) -> float:
    """Mean squared error on [-1, 1] pixels through the posterior's mode, in float32."""
    errors = []
    for start in range(0, len(pool), 32):
        batch = as_batch(pool, np.arange(start, min(start + 32, len(pool))))
        errors.append((vae.decode(vae.encode(batch).latent_dist.mode()).sample - batch).square().mean((1, 2, 3)))
    return float(torch.cat(errors).mean())


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, pool: NDArray[Any]) -> float:
    """Rescale the latents so that SCALING_FACTOR makes their variance 1; returns the factor applied.

    quant_conv's mean rows are multiplied by it, its log-variance rows shifted by 2 log of it, and post_quant_conv's
    weights divided, so that decode(encode(x)) stays what it was.
    """
    means = torch.cat([vae.encode(as_batch(pool, np.arange(s, s + 32))).latent_dist.mode() for s in range(0, 512, 32)])
    factor = 1.0 / (float(means.std()) * SCALING_FACTOR)
    channels = means.shape[1]
    vae.quant_conv.weight[:channels] *= factor
    vae.quant_conv.bias[:channels] *= factor
    vae.quant_conv.bias[channels:] += 2.0 * float(np.log(factor))
    vae.post_quant_conv.weight /= factor
    return factor


def loss_of(vae: AutoencoderKL, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, plain mse) of one batch (n, 3, h, w) in [-1, 1]: L1 + MSE + a little KL."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(batch).latent_dist
        output = vae.decode(posterior.sample()).sample
    error = output.float() - batch
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    mse = error.square().mean()
    return error.abs().mean() + mse + KL_WEIGHT * kl, mse.detach()


def save_averaged(vae: AutoencoderKL, ema: Ema, pool: NDArray[Any], check: NDArray[Any], path: Path) -> None:
    """Write the averaged weights, still at TRAIN_EPS, with their latents' scale folded; the model stays as it was."""
    kept = {key: value.clone() for key, value in vae.state_dict().items()}
    ema.swap()
    factor = fold_scale(vae, pool)
    print(f"vae check mse {reconstruction_mse(vae, check):.5f}, latents folded by {factor:.3f}", flush=True)
    save(path, vae.state_dict())
    ema.swap()
    vae.load_state_dict(kept)


def load_joint(work: Path) -> AutoencoderKL:
    """The VAE after its first stage, at TRAIN_EPS, with unit-variance latents."""
    vae = AutoencoderKL(**VAE_CONFIG)
    set_eps(vae, TRAIN_EPS)
    vae.load_state_dict(torch.load(work / "vae_joint.pt"))
    return vae


def train_joint(work: Path, steps: int = 2500, horizon: int = 3600, batch: int = 12, seed: int = 1) -> None:
    """First stage: encoder and decoder together; writes work/vae_joint.pt every 500 steps and at the end.

    The rate follows a cosine over `horizon` steps but stops early: the decoder is finished later on fixed latents.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pool, check = vae_pool(8000, seed), vae_pool(256, seed + 1)
    vae = AutoencoderKL(**VAE_CONFIG)
    torch.nn.init.constant_(vae.quant_conv.bias.detach()[4:], FIRST_LOGVAR)
    set_eps(vae, TRAIN_EPS)
    learner = Learner(vae.parameters(), 1.5e-3, horizon, betas=(0.9, 0.99), weight_decay=1e-4)
    started = time.time()
    for step in range(1, steps + 1):
        loss, mse = loss_of(vae, as_batch(pool, rng.integers(0, len(pool), batch), rng))
        loss.backward()
        learner.step()
        if step % 50 == 0:
            print(f"vae {step} loss {loss.item():.4f} mse {mse.item():.5f} {time.time() - started:.0f}s", flush=True)
        if step % 500 == 0 or step == steps:
            save_averaged(vae, learner.ema, pool, check, work / "vae_joint.pt")


@torch.no_grad()
def _latents_of(vae: AutoencoderKL, pool: NDArray[Any]) -> torch.Tensor:
    """Mean latents, unscaled, of every picture of the pool."""
    parts = [as_batch(pool, np.arange(s, min(s + 32, len(pool)))) for s in range(0, len(pool), 32)]
    return torch.cat([vae.encode(part).latent_dist.mode() for part in parts])


def train_decoder(work: Path, steps: int = 2000, batch: int = 12, rate: float = 1e-3, seed: int = 4) -> None:
    """Second stage: the decoder alone on fixed latents; writes work/vae.pt, final and with stock norms.

    A little noise on the latents, NOISE of their standard deviation, as a sampler leaves some, too.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pool, check = vae_pool(8000, seed), vae_pool(256, seed + 1)
    # Mirrored halves are drawn once and for all, so that each picture is encoded once.
    pool[::2] = pool[::2, :, :, ::-1]
    vae = load_joint(work)
    latents = _latents_of(vae, pool)
    print(f"decoder starts from check mse {reconstruction_mse(vae, check):.5f}", flush=True)
    params = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    learner = Learner(params, rate, steps, betas=(0.9, 0.99), weight_decay=1e-4)
    started = time.time()
    for step in range(1, steps + 1):
        index = rng.integers(0, len(pool), batch)
        noisy = latents[torch.from_numpy(index)]
        noisy = noisy + torch.randn_like(noisy) * (NOISE / SCALING_FACTOR)
        with torch.autocast("cpu", torch.bfloat16):
            output = vae.decode(noisy).sample
        error = output.float() - as_batch(pool, index)
        mse = error.square().mean()
        (error.abs().mean() + mse).backward()
        learner.step()
        if step % 50 == 0:
            print(f"decoder {step} mse {mse.item():.5f} {time.time() - started:.0f}s", flush=True)
        if step % 500 == 0 or step == steps:
            learner.ema.swap()
            print(f"decoder {step} check mse {reconstruction_mse(vae, check):.5f}", flush=True)
            final = copy.deepcopy(vae)
            stock_norms(final)
            save(work / "vae.pt", final.state_dict())
            learner.ema.swap()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("joint", "decoder"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    stage = {"joint": train_joint, "decoder": train_decoder}[options.stage]
    stage(options.work, **({"steps": options.steps} if options.steps else {}))
