"""What the options of a job say of its adapters: which layers get one, and how these learn."""

from __future__ import annotations

from lib_trainer.config import JobConfig, field_specs
from lib_trainer.families.family import Family, Part
from lib_trainer.networks.adapters import AdapterSpec, Dropouts
from lib_trainer.networks.blocks import learns, parse_blocks
from lib_trainer.ports import AdaptableModule
from lib_trainer.training.optimizers import known

Planned = list[tuple[AdaptableModule, AdapterSpec]]
"""Modules that get an adapter, and of what kind and rank."""


def adapter_rates(job: JobConfig, family: Family) -> dict[Part, float]:
    own = job.optimizer
    return family.rates(own.unet_lr, own.text_encoder_lr, own.text_encoder_2_lr)


def learns_in(job: JobConfig, target: AdaptableModule, family: Family) -> bool:
    """Whether a job trains what stands beside this layer: rates of parts and blocks, and the preset, decide."""
    factor = parse_blocks(job.blocks.rates, "blocks.rates", family.unet).get(target.block, 1.0)
    rate = adapter_rates(job, family)[target.part]
    return bool(rate and factor and learns(job.blocks.preset, target.block, family.unet))


def lora_plus(job: JobConfig) -> float:
    """How many times faster second matrices learn (Hayou et al. 2024, arXiv:2402.12354), where there are two."""
    return job.optimizer.lora_plus if job.network.kind in field_specs()["optimizer.lora_plus"].kinds else 1.0


def largest_norm(job: JobConfig) -> float:
    """To which each module's change is bounded; 0 for no bound. What an optimizer averages is not moved."""
    bounded = not job.network.dora and not known(job.optimizer).averages
    return job.network.max_norm if bounded else 0.0


def dropouts_of(job: JobConfig) -> Dropouts:
    return Dropouts(job.network.dropout, job.network.rank_dropout, job.network.module_dropout)
