"""Which plan is run: the fastest that fits, and what follows where memory runs out all the same."""

from __future__ import annotations

from collections.abc import Sequence

from lib_trainer.tiling.network import Down, Network, Plain, Residual, Up
from lib_trainer.tiling.plan import BAND_SHARE, HALVINGS, MIN_BAND, UNTILED_COPIES, Plan, Tier, predict


def candidates(
    network: Network,
    shape: Sequence[int],
    itemsize: int,
    *,
    tiers: Sequence[Tier] = tuple(Tier),
    window: int | None = None,
) -> list[Plan]:
    """From the fastest to the smallest: in each tier bands of the usual height, then half of it, and so on."""
    batch, _, height, width = shape
    _, _, out_height, out_width = network.output_shape(tuple(shape))
    tall, wide = max(height, out_height), max(width, out_width)
    usual = max(batch * tall * wide * network.widest // BAND_SHARE, MIN_BAND)
    found: list[Plan] = []
    for tier in tiers:
        share = usual if tier is Tier.RESIDENT else max(usual // 2, MIN_BAND)
        for halving in range(HALVINGS):
            plan = Plan(tier, max(share >> halving, 1), tall, window=window)
            found.append(predict(network, shape, plan, itemsize))
    return found


def fitting(plans: Sequence[Plan], device_bytes: float, host_bytes: float) -> list[Plan]:
    """Those that are predicted to fit, in their order."""
    return [plan for plan in plans if plan.device_bytes <= device_bytes and plan.host_bytes <= host_bytes]


def untiled_bytes(network: Network, shape: Sequence[int], itemsize: int, *, keeps_maps: bool = False) -> int:
    """What the module itself needs at its widest; `keeps_maps` for ldm's encoder, which keeps every map to the end."""
    batch, _, height, width = shape
    now, peak, kept = 0, 0, 0
    for step in network.steps:
        if isinstance(step, Up):
            height, width = 2 * height, 2 * width
            now = batch * height * width * step.conv.out
            peak = max(peak, 2 * now + now // 4)
        elif isinstance(step, Down):
            height, width = height // 2, width // 2
            now = batch * height * width * step.conv.out
        elif isinstance(step, Plain):
            now = batch * height * width * step.conv.out
        elif isinstance(step, Residual):
            peak = max(peak, kept + int(UNTILED_COPIES * now))
            now = batch * height * width * step.conv2.out
        if keeps_maps:
            kept += now
    return itemsize * max(peak, kept)
