"""The way in: one input through one network, in as much memory as there is."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lib_trainer.autocasting import autocast_dtype, without_autocast
from lib_trainer.memory import SHARE, free_bytes, host_free_bytes, is_out_of_memory, release_cached
from lib_trainer.refusals import Decimals, MemoryExhausted, Reason
from lib_trainer.tiling.choose import candidates, fitting
from lib_trainer.tiling.executor import Execution, Progress
from lib_trainer.tiling.host_memory import in_host_memory
from lib_trainer.tiling.maps import OnDevice
from lib_trainer.tiling.network import Network
from lib_trainer.tiling.plan import Plan, Tier


class BudgetTooSmall(MemoryExhausted):
    """A budget that was set does not suffice for the smallest bands. Raised before anything is computed."""


@dataclass(frozen=True)
class Options:
    """How to run. The defaults give the untiled result in the memory that is free.

    `budget` bytes on the device, None = 90% of what is free. `tiers` in the order they are tried. `window` latent rows
    of attention on each side: an approximation; None is exact. `upcast_attention` computes attention in fp32.
    """

    budget: int | None = None
    tiers: tuple[Tier, ...] = tuple(Tier)
    window: int | None = None
    upcast_attention: bool = False
    progress: Progress | None = None
    chosen: Callable[[Plan], None] | None = None
    """Told of each plan before it is run."""


def run(network: Network, given: torch.Tensor, options: Options = Options()) -> torch.Tensor:
    """(B, C, H, W) → the network's output, as its own module would give it.

    Where memory runs out, bands are halved and then the next tier is taken; nothing is ever blended or left out.
    Raises `MemoryExhausted` where even the smallest plan does not fit, ValueError for a shape that is none of this
    network's.
    """
    check_input(network, given)
    dtype, late = computed_in(network, given.device)
    network = network.to(dtype)
    plans = plans_for(network, given, options)
    with torch.no_grad(), without_autocast(given.device.type):
        for number, plan in enumerate(plans):
            if options.chosen is not None:
                options.chosen(plan)
            try:
                return attempt(network, plan, given, options, late)
            except Exception as error:
                if number + 1 == len(plans) or not is_out_of_memory(error):
                    if is_out_of_memory(error):
                        raise exhausted(network, given) from None
                    raise
            gc.collect()
            release_cached(given.device)
    raise AssertionError("there is at least one plan")


def attempt(network: Network, plan: Plan, given: torch.Tensor, options: Options, late: bool = False) -> torch.Tensor:
    """Run exactly this plan."""
    execution = Execution(
        network,
        plan,
        norms_in_fp32=late,
        upcast_attention=options.upcast_attention,
        progress=options.progress,
        store=in_host_memory(given.device) if plan.tier is Tier.HOST else OnDevice,
    )
    return execution.run(given)


def plans_for(network: Network, given: torch.Tensor, options: Options) -> list[Plan]:
    """What may be tried, in order. Raises `BudgetTooSmall` if nothing fits a budget that was set."""
    tiers = options.tiers
    if given.device.type == "cpu":  # its own memory is the host's: keeping maps there would only copy them
        tiers = tuple(tier for tier in tiers if tier is not Tier.HOST) or tiers
    every = candidates(network, given.shape, network.dtype.itemsize, tiers=tiers, window=options.window)
    free = free_bytes(given.device) * SHARE
    budget = free if options.budget is None else min(options.budget, free)
    found = fitting(every, budget, host_free_bytes() * SHARE)
    if not found and options.budget is not None and options.budget < every[-1].device_bytes:
        needed = every[-1].device_bytes / 2**30
        raise BudgetTooSmall(
            "vae.budget_too_small", budget=Decimals(options.budget / 2**30, 2), needed=Decimals(needed, 2)
        )
    return found or every[-1:]


def check_input(network: Network, given: torch.Tensor) -> None:
    """Raise `Reason` unless `given` is (B, C, H, W) of this network's channels."""
    decodes, shape = network.kind == "decoder", str(tuple(given.shape))
    if given.dim() != 4 or given.shape[1] != network.channels:
        raise Reason(
            "vae.latents_of_another" if decodes else "vae.pictures_of_another", shape=shape, channels=network.channels
        )
    if 0 in network.output_shape(tuple(given.shape)):
        raise Reason("vae.latents_too_small" if decodes else "vae.pictures_too_small", shape=shape)


def computed_in(network: Network, device: torch.device) -> tuple[torch.dtype, bool]:
    """The dtype of convolutions, and whether norms stay in fp32: what autocast does where it is on."""
    dtype = autocast_dtype(device.type)
    return (network.dtype, False) if dtype is None else (dtype, True)


def exhausted(network: Network, given: torch.Tensor) -> MemoryExhausted:
    return MemoryExhausted(
        "vae.no_memory_to_decode" if network.kind == "decoder" else "vae.no_memory_to_encode",
        shape=str(tuple(given.shape)),
    )
