"""The engine in the place of one module's own `forward`, and the decision whether it is needed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.memory import SHARE, free_bytes, is_out_of_memory, release_cached
from lib_trainer.patching import replaced_forward
from lib_trainer.refusals import Reason, Sentence
from lib_trainer.tiling.adapters import describe
from lib_trainer.tiling.changed import changed_layers, has_own_forward
from lib_trainer.tiling.choose import untiled_bytes
from lib_trainer.tiling.engine import BudgetTooSmall, Options, check_input, computed_in, run
from lib_trainer.tiling.network import Network, UnsupportedVae

log = logging.getLogger(__name__)
COARSE_SIDE = 64
"""Latent pixels of the longer side of a coarse picture."""
SMALL_BYTES = 256 << 20
"""Below that a module is run as it is without a look at the free memory; should it fail, bands come to its help."""


def worth_it(network: Network, given: torch.Tensor, budget: int | None = None) -> bool:
    """Whether the untiled module would not fit what is free on the device, or `budget` bytes of it."""
    dtype, _ = computed_in(network, given.device)
    needed = untiled_bytes(network, given.shape, dtype.itemsize, keeps_maps=network.kind == "encoder")
    if budget is None and needed < SMALL_BYTES:
        return False
    free = free_bytes(given.device) * SHARE
    return needed > (free if budget is None else min(budget, free))


def decide_and_run(
    module: nn.Module,
    given: torch.Tensor,
    plain: Callable[[torch.Tensor], Any],
    options: Options,
    *,
    always: bool = False,
    say: Callable[[Sentence], None],
) -> Any:
    """The output of `module`, an encoder or decoder: `plain(given)` where that fits, else over row bands.

    `always` takes bands also where they are not needed. Where bands were wanted and cannot be had, `say` is told why in
    one sentence and the plain way is taken. Raises what the engine raises: a defect in it is not passed by.
    """
    try:
        network = describe(module)
    except UnsupportedVae as error:
        say(Sentence("vae.passed_by", reason=error))
        return plain(given)
    try:
        check_input(network, given)
    except Reason as error:  # a shape that is none of this VAE's: the module's own error says the rest
        say(Sentence("vae.left_out", reason=error))
        return plain(given)
    wanted = always or worth_it(network, given, options.budget)
    change = next(changed_layers(module), "")
    if not wanted or change:
        if wanted:
            say(Sentence("vae.changed", change=change))
        try:
            return plain(given)
        except Exception as error:
            if change or not is_out_of_memory(error):
                raise
        release_cached(given.device)
    try:
        return run(network, given, options)
    except BudgetTooSmall as error:
        say(Sentence("vae.left_out", reason=error))
        return plain(given)


@contextlib.contextmanager
def banded(module: nn.Module, options: Options = Options()) -> Iterator[None]:  # noqa: B008 - frozen
    """`module`, an encoder or decoder, runs over row bands wherever its input is too large for the free memory.

    A small input goes the plain way, bit for bit, and so does a module that is no KL VAE's or that others have changed;
    the log says so. `options.budget` takes the place of the free memory.
    """
    if has_own_forward(module):
        log.info("Tiled VAE is left out: another extension has given %s a forward of its own.", type(module).__name__)
        yield
        return
    own = module.forward

    def forward(given: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not isinstance(given, torch.Tensor) or (torch.is_grad_enabled() and given.requires_grad):
            return own(given, *args, **kwargs)
        return decide_and_run(module, given, own, options, say=log.info)

    with replaced_forward(module, forward):
        yield


def coarse(forward: Callable[[torch.Tensor], torch.Tensor], network: Network, given: torch.Tensor) -> torch.Tensor:
    """What `forward` makes of a small copy, enlarged: of the right size and colours, and quickly there.

    For a run that was interrupted: unlike the unfinished maps it is a picture.
    """
    size = network.output_shape(tuple(given.shape))[-2:]
    side = COARSE_SIDE if network.kind == "decoder" else 8 * COARSE_SIDE
    factor = min(1.0, side / max(given.shape[-2:]))
    small = [max(1, round(length * factor)) for length in given.shape[-2:]]
    if network.kind == "encoder":
        small = [max(8, length // 8 * 8) for length in small]
    with torch.no_grad():
        made = forward(F.interpolate(given.float(), small, mode="area").to(given.dtype))
        return F.interpolate(made.float(), size, mode="bicubic").to(made.dtype)
