"""What a VAE's encoder makes of a picture, worked out once in a process.

Hundreds of tests train on the same few pictures, and in half precision a picture takes a CPU longer than a step. All
around the encoder's arithmetic still happens each time: loading, casting, bands, posteriors, scaling, caching.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

METHODS, HOOKS = {"forward", "_conv_forward", "_call_impl"}, ("_forward_pre_hooks", "_forward_hooks")
KNOWN: dict[bytes, torch.Tensor] = {}
"""By all that the result hangs on."""


@contextlib.contextmanager
def remembered_encoders() -> Iterator[None]:
    """Of ldm's class and of diffusers'. An encoder that is changed in a weight or a type has it worked out anew; so has
    one with a layer that has a forward or a hook of its own, and whoever looks at operations or runs on a card."""
    from diffusers.models.autoencoders.vae import Encoder

    classes: list[Any] = [Encoder]
    with contextlib.suppress(ImportError):
        from ldm.modules.diffusionmodules import model

        classes.append(model.Encoder)
    with contextlib.ExitStack() as stack:
        for one in classes:
            stack.enter_context(mock.patch.object(one, "forward", _remembered(one.forward)))
        yield


def _remembered(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(forward)
    def remembered(self: nn.Module, given: torch.Tensor) -> torch.Tensor:
        if not _plain(self, given):
            return forward(self, given)
        key = _key(self, given)
        if key not in KNOWN:
            KNOWN[key] = forward(self, given).clone()
        return KNOWN[key].clone()

    return remembered


def _plain(encoder: nn.Module, given: torch.Tensor) -> bool:
    """Whether the result hangs on nothing but types, weights and what is given."""
    watched = torch.is_grad_enabled() or torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu")
    if watched or given.device.type != "cpu" or torch._C._len_torch_dispatch_stack():
        return False
    layers = [layer for layer in encoder.modules() if layer is not encoder]
    return not any(METHODS & vars(one).keys() or any(getattr(one, hooks) for hooks in HOOKS) for one in layers)


def _key(encoder: nn.Module, given: torch.Tensor) -> bytes:
    digest = hashlib.blake2b()
    for name, layer in encoder.named_modules():
        own = vars(layer)
        digest.update(f"{name} {type(layer)} {type(layer).forward} {own.get('padding_mode')}".encode())
        for tensor in (*own["_parameters"].values(), *own["_buffers"].values()):
            if tensor is not None:
                _add(digest, tensor)
    _add(digest, given)
    return digest.digest()


def _add(digest: Any, tensor: torch.Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}".encode())
    digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
