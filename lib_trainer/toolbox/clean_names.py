"""Which tensors of a checkpoint are needed, which are known to be junk, and which are not known."""

from __future__ import annotations

import re

from lib_trainer.families.known import PREFIXES
from lib_trainer.toolbox.facts import MARKERS

EMA = "model_ema."
POSITIONS = "position_ids"
JUNK: dict[str, str] = {
    r"(betas|alphas_cumprod(_prev)?|sqrt_.*|log_one_minus_alphas_cumprod|posterior_.*|lvlb_weights|logvar)": "schedule",
    r"(scale_factor|denoiser\.sigmas|model\.betas|model\.alphas_cumprod.*)": "schedule",
    r"first_stage_model\.loss\..*": "the VAE's training",
    r"(first_stage_model|cond_stage_model)\.model_ema\..*": "running averages of other parts",
    r"embedding_manager\..*": "embeddings in training",
    r"(optimizer|optimizer_states|lr_schedulers|callbacks|loops|global_step|epoch)(\..*)?": "training",
}
"""What is left out, as patterns of whole names, and what it is. Nothing else is."""


def is_junk(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in JUNK)


def is_known(name: str) -> bool:
    """Whether it is of the model, a marker, a running average, or known junk."""
    return name.startswith((*PREFIXES, EMA)) or name in MARKERS or is_junk(name)


def average_of(name: str) -> str:
    """What the running average of a tensor is called: `model.diffusion_model.out.0.weight` →
    `model_ema.diffusion_modelout0weight`."""
    return EMA + name.removeprefix("model.").replace(".", "")
