"""Real encoders and decoders of ldm and diffusers with random weights, small in channels and whole in structure."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pytest
import torch
from torch import nn

CHANNELS = (32, 64, 128, 128)
"""Of the four levels: they change where SD1's (128, 256, 512, 512) change."""
MODULES = ("ldm decoder", "ldm encoder", "diffusers decoder", "diffusers encoder")


def randomise(module: nn.Module, seed: int = 0) -> Any:
    """Weights that keep activations of order one over the layers, with norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(noise * 0.3 + ("norm" in name and name.endswith("weight")))
    return module.eval().requires_grad_(False)


def build_ldm() -> dict[str, Any]:
    model = pytest.importorskip("ldm.modules.diffusionmodules.model", reason="ldm is in requirements/test-no-deps.txt")
    settings = {
        "ch": 32, "out_ch": 3, "ch_mult": (1, 2, 4, 4), "num_res_blocks": 2, "attn_resolutions": [], "in_channels": 3,
        "resolution": 64, "z_channels": 4,
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the shape that it is made for
        return {"ldm encoder": model.Encoder(**settings), "ldm decoder": model.Decoder(**settings)}


def build_diffusers(channels: tuple[int, ...] = CHANNELS) -> Any:
    from diffusers import AutoencoderKL

    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return randomise(AutoencoderKL(block_out_channels=channels, layers_per_block=2, **kinds), 3)


@pytest.fixture(scope="session")
def modules() -> dict[str, Any]:
    """By the names of `MODULES`. Tests leave them as they found them."""
    vae = build_diffusers()
    found = {name: randomise(module, 1) for name, module in build_ldm().items()}
    return found | {"diffusers encoder": vae.encoder, "diffusers decoder": vae.decoder}


@contextlib.contextmanager
def padded(module: nn.Module, mode: str) -> Any:
    """All convolutions padded by "zeros" or "circular", as the WebUI's tiling option sets it."""
    convolutions = [one for one in module.modules() if isinstance(one, nn.Conv2d)]
    try:
        for one in convolutions:
            one.padding_mode = mode
        yield
    finally:
        for one in convolutions:
            one.padding_mode = "zeros"


def given(module_name: str, batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Latents of height × width, or a picture eight times as large."""
    generator = torch.Generator().manual_seed(seed)
    if module_name.endswith("decoder"):
        return torch.randn(batch, 4, height, width, generator=generator)
    return torch.rand(batch, 3, 8 * height, 8 * width, generator=generator) * 2 - 1


def error(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Largest and mean difference, in standard deviations of what was expected."""
    assert found.shape == expected.shape and found.dtype is expected.dtype
    difference = (found.double() - expected.double()).abs() / expected.double().std()
    return float(difference.max()), float(difference.mean())
