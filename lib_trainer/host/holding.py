"""How a host holds its model while it is trained. Every change is a context manager that puts back what it found."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lib_trainer.autocasting import without_autocast
from lib_trainer.patching import replaced_forward
from lib_trainer.tiling.attach import banded
from lib_trainer.tiling.changed import changed_layers


@contextlib.contextmanager
def frozen(*roots: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient, and every module is in eval mode.

    The WebUI leaves `requires_grad=True` on the whole UNet, which makes a backward pass compute every gradient.
    """
    parameters = [(parameter, parameter.requires_grad) for root in roots for parameter in root.parameters()]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    try:
        for parameter, _ in parameters:
            parameter.requires_grad_(False)
        for module, _ in modes:
            if module.training:  # to set what it is already takes as long as for a parameter
                module.training = False
        yield
    finally:
        for parameter, flag in parameters:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            if module.training is not mode:
                module.training = mode


@contextlib.contextmanager
def checkpointed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Each block's activations are recomputed in the backward pass (Chen et al. 2016, arXiv:1604.06174).

    torch's non-reentrant form: the reentrant one, and ldm's own, drop the gradients of adapters inside the block.
    """
    with contextlib.ExitStack() as stack:
        for block in blocks:
            stack.enter_context(replaced_forward(block, functools.partial(_recomputed, block.forward)))
        yield


def recomputed_blocks(unet: nn.Module, resnet: str) -> list[nn.Module]:
    """What is recomputed of a UNet: each block of the class `resnet`, and each transformer, of ldm or of diffusers.

    Of one that is several layers deep each layer: all at once would be the larger part of what is to be saved.
    """
    blocks: list[nn.Module] = []
    for module in unet.modules():
        layers = getattr(module, "transformer_blocks", None)
        if isinstance(layers, nn.ModuleList):
            blocks += [module] if len(layers) == 1 else layers
        elif type(module).__name__ == resnet:
            blocks.append(module)
    return blocks


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    try:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    except BaseException as error:
        # torch leaves its hooks on saved tensors in a generator that the traceback keeps alive, and takes them off
        # whenever that is collected, in whichever thread: the next run's, say. Out of memory is such an error.
        traceback.clear_frames(error.__traceback__)
        raise


def encode_moments(
    vae: nn.Module, encode: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor
) -> tuple[torch.Tensor, bool]:
    """Posterior moments in the VAE's own precision; where half precision overflows, once more in fp32, and True.

    The stock SDXL VAE gives NaN in fp16, and the WebUI's own fallback covers decoding only. A picture whose maps would
    not fit the free memory is encoded over row bands (docs/tiled-vae.md).
    """
    parameter, encoder = next(vae.parameters()), getattr(vae, "encoder", None)
    in_bands = banded(encoder) if isinstance(encoder, nn.Module) else contextlib.nullcontext()
    with torch.no_grad(), without_autocast(parameter.device.type), in_bands:
        moments = encode(pixels.to(parameter.device, parameter.dtype)).float()
        overflows = parameter.dtype is torch.float16 and not bool(torch.isfinite(moments).all())
        if overflows:
            with _in_fp32(vae):
                moments = encode(pixels.to(parameter.device, torch.float32)).float()
    return moments.cpu(), overflows


@contextlib.contextmanager
def _in_fp32(module: nn.Module) -> Iterator[None]:
    """All parameters in fp32 for a while; the half-precision originals come back bit for bit."""
    originals = [(parameter, parameter.data) for parameter in module.parameters()]
    try:
        for parameter, original in originals:
            parameter.data = original.float()
        yield
    finally:
        for parameter, original in originals:
            parameter.data = original


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, dtypes and bytes of a module's tensors, and over how its convolutions pad.

    Empty where others have changed a layer: what it makes is then not told by its tensors.
    """
    if next(changed_layers(module), ""):
        return ""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for name, layer in module.named_modules():
        if (mode := getattr(layer, "padding_mode", "zeros")) != "zeros":
            digest.update(f"{name} pads by {mode}".encode())
    return digest.hexdigest()
