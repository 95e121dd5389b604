"""Drawing with diffusers' samplers and a `DiffusersModel`, as the WebUI draws on a CPU from the same seed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from PIL import Image

from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.ports import Conditioning, PictureSize, PreviewRequest
from lib_trainer.refusals import ConfigError

MAX_CHUNKS = 8
"""Of 75 tokens each: a bound on memory, far above any prompt."""

SAMPLERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    # one step beyond each leading timestep and a last ᾱ of step 0: the WebUI's DDIM
    "DDIM": (
        DDIMScheduler,
        {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False},
    ),
    "Euler": (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
    "Euler a": (EulerAncestralDiscreteScheduler, {"timestep_spacing": "linspace"}),
    "DPM++ 2M Karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
}
LEAST_ALPHA = 4.8973451890853435e-08
"""ᾱ of the last step in samplers of models with zero terminal SNR: the WebUI's, so that σ stays a number."""
DEFAULT_SAMPLER = "DDIM"


@dataclass(frozen=True)
class PromptNetwork:
    """`<lora:name:weight>` or `<hypernet:name:weight>` in a prompt."""

    name: str
    weight: float
    kind: str = "lora"


def split_prompt(prompt: str) -> tuple[str, list[PromptNetwork]]:
    """The prompt without its `<lora:…>` and `<hypernet:…>` marks, and what they name.

    Raises `ConfigError` for a weight that is not a number.
    """
    networks = []
    for kind, name, weight in re.findall(r"<(lora|hypernet):([^:>]+)(?::([^>]*))?>", prompt):
        try:
            factor = float(weight or 1)
        except ValueError:
            factor = math.nan
        if not math.isfinite(factor):
            raise ConfigError("prompt.weight", kind=kind, name=name, weight=weight)
        networks.append(PromptNetwork(name, factor, kind))
    return re.sub(r"<(lora|hypernet):[^>]*>", "", prompt).strip(), networks


def draw(model: DiffusersModel, request: PreviewRequest) -> Image.Image:
    """One picture. The prompt is plain text here."""
    return draw_seeds(model, request, [request.seed])[0]


@torch.no_grad()
def draw_seeds(model: DiffusersModel, request: PreviewRequest, seeds: Sequence[int]) -> list[Image.Image]:
    """A picture for each seed, in one batch, with classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598)."""
    sampler, count = _sampler(model, request), len(seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    family = model.family
    told = _told(model, request).each(lambda one: one.repeat_interleave(count, dim=0).to(model.device))
    shape = (1, family.latent_channels, request.height // family.cell, request.width // family.cell)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    latents = noise.to(model.device) * sampler.init_noise_sigma
    beside = _all_hidden(model, request, 2 * count)
    for timestep in sampler.timesteps:
        scaled = sampler.scale_model_input(latents, timestep)
        steps = timestep.expand(2 * count).to(model.device)
        shown = torch.cat([scaled, scaled])
        if beside is not None:
            shown = torch.cat([shown, beside], dim=1)
        without, with_prompt = model.predict(shown, steps, told).chunk(2)
        guided = without + request.cfg_scale * (with_prompt - without)
        latents = sampler.step(guided, timestep, latents, **_noise(sampler, generators), return_dict=False)[0]
    pixels = model.decode_latents(latents).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one) for one in ((pixels + 1) * 127.5).round().astype(np.uint8)]


def _all_hidden(model: DiffusersModel, request: PreviewRequest, count: int) -> torch.Tensor | None:
    """(count, 5, h, w) for a model that inpaints, as the WebUI's txt2img has it (`txt2img_image_conditioning`): all of
    the picture is hidden, and the latents beside it are those of a middle grey; None for other models."""
    if not model.inpaints:
        return None
    grey = model.encode_images(torch.zeros(1, 3, request.height, request.width))[:, : model.family.latent_channels]
    latents = grey.to(model.device) * model.latent_scale
    return torch.cat([torch.ones_like(latents[:, :1]), latents], dim=1).expand(count, -1, -1, -1)


def _told(model: DiffusersModel, request: PreviewRequest) -> Conditioning:
    """The negative prompt and the prompt, as the WebUI conditions a picture of this size."""
    told = model.encode_text([request.negative_prompt, request.prompt], request.clip_skip, MAX_CHUNKS)
    if model.family.zero_empty:
        told = told.emptied([not request.negative_prompt, False])
    if model.family.sizes:
        side = request.height, request.width
        told = told.sized([PictureSize(side, (0, 0), side)] * 2)
    return told


def _sampler(model: DiffusersModel, request: PreviewRequest) -> Any:
    name = request.sampler or DEFAULT_SAMPLER
    if name not in SAMPLERS:
        raise ConfigError("prompt.sampler", sampler=request.sampler, samplers=SAMPLERS)
    make, options = SAMPLERS[name]
    schedule = model.schedule.overruled(request.prediction, request.zero_terminal_snr)
    alphas = schedule.used.clamp(min=LEAST_ALPHA)
    betas = 1 - alphas / torch.cat([torch.ones(1), alphas[:-1]])
    prediction = "epsilon" if schedule.prediction == "epsilon" else "v_prediction"
    # Lin et al. 2023, arXiv:2305.08891, section 3.3: sampling begins at the last step, where there is nothing but noise
    if schedule.zero_terminal:
        options = options | {"timestep_spacing": "trailing"}
    sampler = make(trained_betas=betas.float().numpy(), prediction_type=prediction, **options)
    sampler.set_timesteps(request.steps)
    return sampler


def _noise(sampler: Any, generators: list[torch.Generator]) -> dict[str, list[torch.Generator]]:
    """Ancestral samplers draw noise at every step; it comes from the picture's seed."""
    return {"generator": generators} if isinstance(sampler, EulerAncestralDiscreteScheduler) else {}
