"""Maps that are never kept: their rows are computed from another map's whenever they are asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch.nn import functional as F

from lib_trainer.tiling.maps import Shape, Source, Windows, rows
from lib_trainer.tiling.network import Conv
from lib_trainer.tiling.plan import taps
from lib_trainer.tiling.statistics import Affine, Moments


class Context(Protocol):
    """What a computation needs to know of the run that it belongs to."""

    dtype: torch.dtype
    late: bool

    def count(self, macs: int) -> None:
        """So much was computed."""
        ...


class Convolved:
    """A 3×3 convolution of a map, after its norm and SiLU where `affine` is given."""

    def __init__(self, context: Context, source: Source, conv: Conv, affine: Affine | None) -> None:
        self.shape = replace(source.shape, channels=conv.out)
        self.moments: Moments | None = None
        self._context, self._source, self._conv = context, source, conv
        self._windows = Windows(source, circular=conv.circular, affine=affine, dtype=context.dtype, late=context.late)

    def pieces(self, first: int, last: int) -> list[torch.Tensor]:
        window = self._windows.get(first, last)
        out = F.conv2d(window, self._conv.weight, self._conv.bias)
        self._context.count(out[:, 0].numel() * self._conv.macs)
        return [out]

    def release(self, row: int) -> None:
        self._source.release(row - 1)


class Pointwise:
    """A 1×1 convolution of a map."""

    def __init__(self, context: Context, source: Source, conv: Conv) -> None:
        self.shape = replace(source.shape, channels=conv.out)
        self.moments: Moments | None = None
        self._context, self._source, self._conv = context, source, conv

    def pieces(self, first: int, last: int) -> list[torch.Tensor]:
        out = F.conv2d(rows(self._source, first, last), self._conv.weight, self._conv.bias)
        self._context.count(out[:, 0].numel() * self._conv.macs)
        return [out]

    def release(self, row: int) -> None:
        self._source.release(row)


class Upsampled:
    """Nearest neighbour ×2 and a 3×3 convolution.

    In fp32 as four 2×2 convolutions of the map before it: every second row and column of the doubled map repeats its
    neighbour, so for each of the four positions of an output pixel two of the three taps in each direction fall on the
    same input and are added beforehand (the polyphase form, Vaidyanathan 1993): 16 instead of 36 products for four
    output pixels. In half precision the sums of taps would be rounded once more, which takes the result 2 to 4% further
    from the truth than the untiled one is; there each window is doubled and convolved as it stands.
    """

    def __init__(self, context: Context, source: Source, conv: Conv) -> None:
        below = source.shape
        self.shape = Shape(below.batch, conv.out, 2 * below.height, 2 * below.width)
        self.moments: Moments | None = None
        self.source, self.conv, self._context = source, conv, context
        self._phases = polyphase(conv.weight) if taps(context.dtype.itemsize) == 4 else None
        self._windows = Windows(source, circular=conv.circular, affine=None, dtype=context.dtype, late=False)

    def pieces(self, first: int, last: int) -> list[torch.Tensor]:
        top, bottom = first // 2, -(-last // 2)
        window = self._windows.get(top, bottom)
        height, width = 2 * (bottom - top), 2 * self.source.shape.width
        if self._phases is None:
            doubled = F.interpolate(window, scale_factor=2.0, mode="nearest")[:, :, 1:-1, 1:-1]
            whole = F.conv2d(doubled, self.conv.weight, self.conv.bias)
            self._context.count(whole[:, 0].numel() * self.conv.macs)
        else:
            whole = self._by_phase(window, self._phases, height, width)
        return [whole[:, :, first - 2 * top : last - 2 * top]]

    def _by_phase(
        self, window: torch.Tensor, phases: dict[tuple[int, int], torch.Tensor], height: int, width: int
    ) -> torch.Tensor:
        out = window.new_empty((self.shape.batch, self.shape.channels, height // 2, 2, width // 2, 2))
        for (down, right), weight in phases.items():
            one = F.conv2d(window, weight, self.conv.bias)
            self._context.count(one[:, 0].numel() * weight.numel())
            out[:, :, :, down, :, right] = one[:, :, down : down + height // 2, right : right + width // 2]
        return out.view(self.shape.batch, self.shape.channels, height, width)

    def release(self, row: int) -> None:
        self.source.release(row // 2 - 1)


def polyphase(weight: torch.Tensor) -> dict[tuple[int, int], torch.Tensor]:
    """(C_out, C_in, 3, 3) on a doubled map → (C_out, C_in, 2, 2) for output rows 2i+0, 2i+1 and columns likewise.

    Added in fp32, rounded once.
    """
    exact = weight.float()
    found = {}
    for down in (0, 1):
        by_row = _merged(exact, down, 2)
        for right in (0, 1):
            found[down, right] = _merged(by_row, right, 3).to(weight.dtype)
    return found


def _merged(weight: torch.Tensor, position: int, dim: int) -> torch.Tensor:
    first, second, third = weight.unbind(dim)
    pair = (first, second + third) if position == 0 else (first + second, third)
    return torch.stack(pair, dim)


def composed(outer: Conv, inner: Conv) -> Conv:
    """A 1×1 convolution after a 3×3 one as a single 3×3: (S·W, S·b + c). Computed in fp32, rounded once."""
    matrix = outer.weight.float().flatten(1)
    weight = torch.einsum("oc,cikl->oikl", matrix, inner.weight.float()).to(inner.weight.dtype)
    bias = torch.zeros(outer.out, device=matrix.device) if outer.bias is None else outer.bias.float()
    if inner.bias is not None:
        bias = bias + matrix @ inner.bias.float()
    return Conv(weight, bias.to(inner.weight.dtype), inner.circular)
