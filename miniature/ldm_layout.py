"""From diffusers' names to the single-file ldm layout, at build time.

No table is kept: the key names come from the real ldm classes, and the mapping from running diffusers' own
ldm-to-diffusers converters on tensors that carry their key's number, then reading it backwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from .common import UNET_CONFIG, VAE_CONFIG, atomic

State = dict[str, torch.Tensor]
UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
YAML = Path(__file__).with_name("data") / "mini-sd1.yaml"


def ldm_params() -> dict[str, Any]:
    """The `model.params` of mini-sd1.yaml."""
    import yaml

    params: dict[str, Any] = yaml.safe_load(YAML.read_text(encoding="utf-8"))["model"]["params"]
    return params


def ldm_unet() -> torch.nn.Module:
    """The real ldm UNetModel of mini-sd1.yaml, untrained."""
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    model: torch.nn.Module = UNetModel(**ldm_params()["unet_config"]["params"])
    return model


class LdmVae(torch.nn.Module):
    """The real ldm Encoder and Decoder with the two quant convolutions, as ldm's AutoencoderKL holds them."""

    def __init__(self) -> None:
        from ldm.modules.diffusionmodules.model import Decoder, Encoder

        super().__init__()
        config = ldm_params()["first_stage_config"]["params"]
        size, embed = config["ddconfig"], config["embed_dim"]
        self.encoder, self.decoder = Encoder(**size), Decoder(**size)
        self.quant_conv = torch.nn.Conv2d(2 * size["z_channels"], 2 * embed, 1)
        self.post_quant_conv = torch.nn.Conv2d(embed, size["z_channels"], 1)

    def mode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Mean latents (n, 4, h/8, w/8) of pixels (n, 3, h, w) in [-1, 1], unscaled."""
        return self.quant_conv(self.encoder(pixels))[:, :4]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels of unscaled latents."""
        return self.decoder(self.post_quant_conv(latents))


def _marked(model: torch.nn.Module, prefix: str) -> tuple[State, list[str]]:
    """The model's keys with prefix, each tensor filled with its key's number."""
    state = model.state_dict()
    names = [prefix + key for key in state]
    return {name: torch.full(value.shape, k) for k, (name, value) in enumerate(zip(names, state.values()))}, names


def _back(converted: State, names: list[str], shapes: State, trained: State) -> State:
    """Trained diffusers tensors under their ldm names and in their ldm shapes (1x1 convolutions for linear layers)."""
    if set(converted) != set(trained):
        raise ValueError(f"converter and model disagree: {sorted(set(converted) ^ set(trained))[:5]}")
    out: State = {}
    for key, marker in converted.items():
        name = names[int(marker.flatten()[0])]
        out[name] = trained[key].reshape(shapes[name].shape)
    if len(out) != len(names):
        raise ValueError(f"ldm keys without a source: {sorted(set(names) - set(out))[:5]}")
    return {name: out[name] for name in names}


def schedule_buffers() -> State:
    """The float32 (1000,) buffers of ldm's DDPM, as SD1 checkpoints carry them."""
    import numpy as np

    params = ldm_params()
    betas = np.linspace(params["linear_start"] ** 0.5, params["linear_end"] ** 0.5, 1000, dtype=np.float64) ** 2
    acp = np.cumprod(1.0 - betas)
    prev = np.append(1.0, acp[:-1])
    variance = betas * (1.0 - prev) / (1.0 - acp)
    values = {
        "betas": betas,
        "alphas_cumprod": acp,
        "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": np.sqrt(acp),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - acp),
        "log_one_minus_alphas_cumprod": np.log(1.0 - acp),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / acp),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / acp - 1.0),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(prev) / (1.0 - acp),
        "posterior_mean_coef2": (1.0 - prev) * np.sqrt(1.0 - betas) / (1.0 - acp),
    }
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def to_ldm(unet: State, vae: State, text: State) -> State:
    """One SD1.5-style state dict of the three diffusers/transformers state dicts: fp16 weights, fp32 schedule."""
    marks, names = _marked(ldm_unet(), UNET)
    out = _back(convert_ldm_unet_checkpoint(dict(marks), UNET_CONFIG), names, marks, unet)
    marks, names = _marked(LdmVae(), VAE)
    out |= _back(convert_ldm_vae_checkpoint(dict(marks), VAE_CONFIG), names, marks, vae)
    out |= {CLIP + key: value for key, value in text.items()}
    half = {key: value.half() if value.is_floating_point() else value for key, value in out.items()}
    position_ids = CLIP + "text_model.embeddings.position_ids"
    half[position_ids] = torch.arange(77, dtype=torch.int64)[None]
    return {**schedule_buffers(), **{key: value.detach().clone().contiguous() for key, value in half.items()}}


def write(state: State, path: Path) -> None:
    """Write a safetensors file, atomically."""
    from safetensors.torch import save_file

    atomic(path, lambda temporary: save_file(state, str(temporary), metadata={"format": "pt"}))
