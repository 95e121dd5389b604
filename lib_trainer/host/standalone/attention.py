"""Attention for training on diffusers' modules.

diffusers reads the signature of an attention's processor at every call, which takes longer than the attention of a
small model. Modules whose processor would do nothing but attend are computed directly while a model trains.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from lib_trainer.host.ldm.attention import attended
from lib_trainer.patching import replaced_forward

MORE = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k", "residual_connection")
"""What an `Attention` may have beside projections and heads; none of Stable Diffusion's UNets has any of it."""


@contextlib.contextmanager
def direct_attention(unet: nn.Module) -> Iterator[None]:
    """Every attention of a UNet computes what its processor would, bit for bit, without being asked how."""
    with contextlib.ExitStack() as stack:
        for module in unet.modules():
            if isinstance(module, Attention) and _only_attends(module):
                forward = functools.partial(_attend, module, module.forward)
                stack.enter_context(replaced_forward(module, forward))
        yield


def _only_attends(module: Attention) -> bool:
    if type(module.processor) is not AttnProcessor2_0 or module.rescale_output_factor != 1:
        return False
    return not any(getattr(module, name, None) for name in MORE)


def _attend(
    module: Any,
    before: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    **others: Any,
) -> torch.Tensor:
    if attention_mask is not None or others or hidden_states.ndim != 3:
        return before(hidden_states, encoder_hidden_states, attention_mask, **others)  # type: ignore[no-any-return]
    told = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    out = attended(module, hidden_states, told)
    for layer in module.to_out:
        out = layer(out)
    return out
