"""ldm's, sgm's and diffusers' encoders and decoders read as a `Network`.

They are told by what they have, never by their class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from lib_trainer.tiling.network import (
    Attention,
    Conv,
    Down,
    Network,
    Norm,
    Out,
    Plain,
    Residual,
    Step,
    UnsupportedVae,
    Up,
)


def describe(module: nn.Module) -> Network:
    """The steps of an encoder or decoder of a KL VAE. Raises `UnsupportedVae`, naming what is not as expected.

    Weights are referred to, not copied, so a description is made anew for every run.
    """
    try:
        if hasattr(module, "mid_block"):
            return Network(*_diffusers(module))
        if hasattr(module, "mid") and hasattr(module, "num_resolutions"):
            return Network(*_ldm(module))
    except AttributeError as error:
        raise UnsupportedVae("vae.built_differently", module=type(module).__name__, reason=error) from error
    raise UnsupportedVae("vae.not_kl", module=type(module).__name__)


def _ldm(module: Any) -> tuple[str, tuple[Step, ...]]:
    """CompVis' latent-diffusion and Stability's generative-models: `mid`, `down` or `up`."""
    kind = "decoder" if hasattr(module, "up") else "encoder"
    if hasattr(module, "up") and hasattr(module, "down"):
        raise UnsupportedVae("vae.two_ways", module=type(module).__name__)
    if getattr(module, "give_pre_end", False):
        raise UnsupportedVae("vae.stops_early")
    middle = [*_residual(module.mid.block_1), *_attention(module.mid.attn_1), *_residual(module.mid.block_2)]
    steps: list[Step] = [Plain(_conv(module.conv_in))]
    if kind == "decoder":
        levels = [_level(level, "upsample") for level in reversed(module.up)]
        steps += [*middle, *(step for level in levels for step in level)]
    else:
        levels = [_level(level, "downsample") for level in module.down]
        steps += [*(step for level in levels for step in level), *middle]
    steps.append(Out(_norm(module.norm_out), _conv(module.conv_out), bool(getattr(module, "tanh_out", False))))
    return kind, tuple(steps)


def _level(level: Any, name: str) -> Iterator[Step]:
    attentions = list(getattr(level, "attn", ()))
    for number, block in enumerate(level.block):
        yield from _residual(block)
        if attentions:
            yield from _attention(attentions[number])
    if hasattr(level, name):
        yield _resampled(getattr(level, name), up=name == "upsample")


def _diffusers(module: Any) -> tuple[str, tuple[Step, ...]]:
    """diffusers' AutoencoderKL: `mid_block`, `down_blocks` or `up_blocks`."""
    kind = "decoder" if hasattr(module, "up_blocks") else "encoder"
    middle: list[Step] = []
    for number, block in enumerate(module.mid_block.resnets):
        middle += _residual(block)
        if number < len(module.mid_block.attentions):
            middle += _attention(module.mid_block.attentions[number])
    steps: list[Step] = [Plain(_conv(module.conv_in))]
    sides: list[Step] = []
    for level in module.up_blocks if kind == "decoder" else module.down_blocks:
        if getattr(level, "attentions", None):
            raise UnsupportedVae("vae.attention", level=type(level).__name__)
        for block in level.resnets:
            sides += _residual(block)
        for one in getattr(level, "upsamplers", None) or ():
            sides.append(_resampled(one, up=True))
        for one in getattr(level, "downsamplers", None) or ():
            sides.append(_resampled(one, up=False))
    steps += [*middle, *sides] if kind == "decoder" else [*sides, *middle]
    if type(module.conv_act).__name__ != "SiLU":
        raise UnsupportedVae("vae.activation", found=type(module.conv_act).__name__)
    steps.append(Out(_norm(module.conv_norm_out), _conv(module.conv_out)))
    return kind, tuple(steps)


def _residual(block: Any) -> Iterator[Step]:
    if getattr(block, "time_emb_proj", None) is not None or getattr(block, "temb_proj", None) is not None:
        raise UnsupportedVae("vae.time_step")
    if (
        getattr(block, "output_scale_factor", 1.0) != 1.0
        or getattr(block, "up", False)
        or getattr(block, "down", False)
    ):
        raise UnsupportedVae("vae.rescales")
    if type(getattr(block, "nonlinearity", None)).__name__ not in ("SiLU", "NoneType"):
        raise UnsupportedVae("vae.activation", found=type(block.nonlinearity).__name__)
    shortcut = getattr(block, "conv_shortcut", None) or getattr(block, "nin_shortcut", None)
    if shortcut is not None and shortcut.kernel_size != (1, 1):
        raise UnsupportedVae("vae.shortcut", size=str(shortcut.kernel_size))
    yield Residual(
        _norm(block.norm1),
        _conv(block.conv1),
        _norm(block.norm2),
        _conv(block.conv2),
        None if shortcut is None else _conv(shortcut, side=1),
    )


def _attention(block: Any) -> Iterator[Step]:
    if block is None or isinstance(block, nn.Identity):
        return
    if hasattr(block, "proj_out"):
        parts = block.norm, block.q, block.k, block.v, block.proj_out
    elif hasattr(block, "group_norm"):
        if block.heads != 1 or not block.residual_connection or block.rescale_output_factor != 1:
            raise UnsupportedVae("vae.heads")
        parts = block.group_norm, block.to_q, block.to_k, block.to_v, block.to_out[0]
    else:
        raise UnsupportedVae("vae.other_attention", module=type(block).__name__)
    norm, *products = parts
    query, key, value, proj = (_conv(part, side=1) for part in products)
    yield Attention(_norm(norm), query, key, value, proj)


def _resampled(module: Any, *, up: bool) -> Step:
    conv = getattr(module, "conv", None)
    if conv is None or getattr(module, "norm", None) is not None or getattr(module, "use_conv_transpose", False):
        raise UnsupportedVae("vae.resamples", module=type(module).__name__)
    if up:
        return Up(_conv(conv))
    if tuple(conv.stride) != (2, 2) or _padding(conv) != (0, 0) or conv.kernel_size != (3, 3):
        raise UnsupportedVae("vae.downsampling")
    return Down(Conv(conv.weight.detach(), None if conv.bias is None else conv.bias.detach()))


def _conv(module: Any, side: int = 3) -> Conv:
    bias = None if module.bias is None else module.bias.detach()
    if isinstance(module, nn.Linear):
        return Conv(module.weight.detach()[:, :, None, None], bias)
    plain = (
        module.kernel_size == (side, side) and tuple(module.stride) == (1, 1) and _padding(module) == (side // 2,) * 2
    )
    if not plain or module.groups != 1 or tuple(module.dilation) != (1, 1):
        raise UnsupportedVae("vae.convolution", found=str(module), side=side)
    if module.padding_mode not in ("zeros", "circular"):
        raise UnsupportedVae("vae.padding", mode=module.padding_mode)
    return Conv(module.weight.detach(), bias, module.padding_mode == "circular" and side == 3)


def _padding(module: Any) -> tuple[int, ...]:
    return tuple(module.padding) if not isinstance(module.padding, str) else (-1, -1)


def _norm(module: Any) -> Norm:
    if not isinstance(module, nn.GroupNorm) or module.weight is None:
        raise UnsupportedVae("vae.norm", found=type(module).__name__)
    return Norm(module.num_groups, module.eps, module.weight.detach(), module.bias.detach())
