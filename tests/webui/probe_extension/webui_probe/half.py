"""What a WebUI in half precision lacks on a CPU, so that its tests are those of a card and take minutes.

What they are about stays: weights, inputs and results are in half precision, what overflows is infinite, and tensors of
different precisions are refused.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from modules import devices, shared
from modules.hypernetworks.hypernetwork import HypernetworkModule
from torch.nn import functional as F

HALVES = (torch.float16, torch.bfloat16)
TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])


def prepare() -> None:
    """Once in a process."""
    if not hasattr(F.conv2d, "__wrapped__"):
        F.conv2d = _faster(F.conv2d)
        HypernetworkModule.forward = _in_fp32(HypernetworkModule.forward)


def prepare_newer_torch() -> None:
    """Once in a process, on every device: what the WebUI's own files and training lack with a torch of 2.2 or later.

    Newer torch's zip files hold records that the WebUI's own reader calls malicious; ours it has to take. And a base
    class of its data sets takes no arguments any more.
    """
    if TORCH >= (2, 2) and not isinstance(torch.save, functools.partial):
        torch.save = functools.partial(torch.save, _use_new_zipfile_serialization=False)
        torch.utils.data.Sampler.__init__ = lambda *_: None  # type: ignore[method-assign]


@contextlib.contextmanager
def in_fp32() -> Iterator[None]:
    """The loaded model for the WebUI's own training, which cannot do without autocast, and has none on a CPU."""
    kept = [(parameter, parameter.data) for parameter in shared.sd_model.parameters()]
    with contextlib.ExitStack() as stack:
        for name in ("dtype", "dtype_unet", "dtype_vae", "dtype_inference"):
            stack.enter_context(mock.patch.object(devices, name, torch.float32))
        stack.enter_context(mock.patch.object(devices, "force_fp16", False))
        stack.enter_context(mock.patch.object(shared.sd_model.model.diffusion_model, "dtype", torch.float32))
        for parameter, data in kept:
            parameter.data = data.float()
        try:
            yield
        finally:
            for parameter, data in kept:
                parameter.data = data


def _faster(own: Any) -> Any:
    """Convolutions in half precision at the speed of fp32.

    torch's CPU has no fast ones: 64 channels at 32×32 take 70 ms in fp16 and in bf16 where fp32 takes 1.2 (measured),
    and the VAE's were five sixths of what a picture costs. A card multiplies half precision and sums in fp32, and so
    does the slow path: computed in fp32 and rounded once, 0.3 % of the numbers come out one unit in the last place
    apart, by the order of the sum.
    """

    @functools.wraps(own)
    def conv2d(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *how: Any, **named: Any
    ) -> Any:
        given = [input, weight] if bias is None else [input, weight, bias]
        if torch.is_autocast_enabled("cpu"):
            given = [one.to(torch.get_autocast_dtype("cpu")) for one in given]
        dtype = given[0].dtype
        if dtype not in HALVES or any(one.dtype is not dtype or one.device.type != "cpu" for one in given):
            return own(input, weight, bias, *how, **named)
        wide = [one.float() for one in given]
        with torch.autocast("cpu", enabled=False):
            return own(wide[0], wide[1], wide[2] if bias is not None else None, *how, **named).to(dtype)

    return conv2d


def _in_fp32(own: Any) -> Any:
    """A hypernetwork is fp32 and is given what the UNet computes in. The WebUI's autocast, which users have, sees to
    that; with `--precision half` there is none, and every picture with a hypernetwork ends in an error."""

    @functools.wraps(own)
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = own(self, x.float())
        return out.to(x.dtype)

    return forward
