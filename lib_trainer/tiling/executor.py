"""Runs a network's steps over row bands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from lib_trainer.tiling.attention import attend
from lib_trainer.tiling.computed import Convolved, Pointwise, Upsampled, composed
from lib_trainer.tiling.maps import Given, Map, OnDevice, Shape, Source, Store, rows
from lib_trainer.tiling.network import Attention, Conv, Down, Network, Norm, Out, Plain, Residual, Step, Up, next_norm
from lib_trainer.tiling.plan import Plan
from lib_trainer.tiling.statistics import Affine, Moments

Progress = Callable[[float], None]
"""Called with the fraction done, 0 to 1, many times a run; what it raises ends the run."""


class Execution:
    """One pass of one input through one network. Use once."""

    def __init__(
        self,
        network: Network,
        plan: Plan,
        *,
        norms_in_fp32: bool = False,
        upcast_attention: bool = False,
        progress: Progress | None = None,
        store: Callable[[], Store] = OnDevice,
    ) -> None:
        self.network, self.plan = network, plan
        self.dtype, self.late = network.dtype, norms_in_fp32
        self.done = 0
        self._upcast, self._progress, self._store = upcast_attention, progress, store

    def count(self, macs: int) -> None:
        self.done += macs
        if self._progress is not None:
            self._progress(min(self.done / max(self.plan.macs, 1), 1.0))

    def run(self, given: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → the network's output; `given` is neither changed nor freed."""
        source: Source = Given(given.to(self.dtype))
        steps = self.network.steps
        for number, step in enumerate(steps[:-1]):
            norm = next_norm(steps[number + 1])
            source = self._step(step, source, norm, steps[number + 1])
        last = steps[-1]
        assert isinstance(last, Out)
        return self._out(last, source)

    def _step(self, step: Step, source: Source, norm: Norm | None, after: Step) -> Source:
        if isinstance(step, Plain):
            return self._kept(Convolved(self, source, step.conv, None), norm)
        if isinstance(step, Residual):
            return self._residual(step, source, norm)
        if isinstance(step, Attention):
            return self._attention(step, source, norm)
        if isinstance(step, Up):
            upsampled = Upsampled(self, source, step.conv)
            if self.plan.recomputes(upsampled.shape.height) and _changes_channels(after):
                return self._measured(upsampled, norm)
            return self._kept(upsampled, norm)
        assert isinstance(step, Down)
        return self._down(step, source, norm)

    def _heights(self, shape: Shape) -> list[tuple[int, int]]:
        return self.plan.bands(shape.batch * shape.channels * shape.width, shape.height)

    def _new_map(self, shape: Shape, norm: Norm | None) -> Map:
        return Map(shape, self._store(), None if norm is None else Moments(norm.groups))

    def _kept(self, source: Source, norm: Norm | None) -> Map:
        """Compute every row of `source` once, and free what it is made from meanwhile."""
        out = self._new_map(source.shape, norm)
        for first, last in self._heights(source.shape):
            out.append(rows(source, first, last))
            source.release(last)
        source.release(source.shape.height + 2)
        return out

    def _measured(self, source: Source, norm: Norm | None) -> Source:
        """Compute every row of `source` for its statistics alone."""
        if norm is not None:
            source.moments = Moments(norm.groups)
            for first, last in self._heights(source.shape):
                source.moments.add(rows(source, first, last))
        return source

    def _residual(self, step: Residual, source: Source, norm: Norm | None) -> Map:
        hidden: Source = Convolved(self, source, step.conv1, _affine(source, step.norm1))
        shortcut, saving = source, self.plan.recomputes(source.shape.height)
        if step.shortcut is not None and not saving:
            hidden, shortcut = self._both(step, step.shortcut, source, hidden)
        elif step.shortcut is not None:
            shortcut = self._shortcut(step.shortcut, source)
            hidden = self._kept_beside(hidden, step.norm2)
        elif saving:
            hidden = self._measured(hidden, step.norm2)
        else:
            hidden = self._kept_beside(hidden, step.norm2)
        branch = Convolved(self, hidden, step.conv2, _affine(hidden, step.norm2))
        out = self._new_map(branch.shape, norm)
        for first, last in self._heights(out.shape):
            band = rows(branch, first, last)
            band += rows(shortcut, first, last)
            out.append(band)
            branch.release(last)
            if isinstance(hidden, Map):  # otherwise the branch still reads rows above, and has released the rest
                shortcut.release(last)
        return out

    def _kept_beside(self, source: Source, norm: Norm) -> Map:
        """As `_kept`, with what it is made from still needed."""
        out = self._new_map(source.shape, norm)
        for first, last in self._heights(source.shape):
            out.append(rows(source, first, last))
        return out

    def _shortcut(self, conv: Conv, source: Source) -> Source:
        if isinstance(source, Upsampled):  # one convolution instead of two, and of half the width
            return Upsampled(self, source.source, composed(conv, source.conv))
        return Pointwise(self, source, conv)

    def _both(self, step: Residual, conv: Conv, source: Source, hidden: Source) -> tuple[Map, Map]:
        """Branch and shortcut together, so that each band of the wide input is freed at once."""
        pointwise = Pointwise(self, source, conv)
        kept, beside = self._new_map(hidden.shape, step.norm2), self._new_map(pointwise.shape, None)
        for first, last in self._heights(source.shape):
            kept.append(rows(hidden, first, last))
            beside.append(rows(pointwise, first, last))
            hidden.release(last)
        source.release(source.shape.height)
        return kept, beside

    def _attention(self, step: Attention, source: Source, norm: Norm | None) -> Map:
        shape, affine = source.shape, _affine(source, step.norm)
        size = (shape.batch, shape.height * shape.width, shape.channels)
        key, value = (rows(source, 0, 1).new_empty(size) for _ in range(2))
        for first, last in self._heights(shape):
            tokens = self._tokens(source, affine, first, last)
            here = slice(first * shape.width, last * shape.width)
            key[:, here], value[:, here] = self._linear(tokens, step.key), self._linear(tokens, step.value)
        out = self._new_map(shape, norm)
        for first, last in self._heights(shape):
            query = self._linear(self._tokens(source, affine, first, last), step.query)
            seen = slice(*self._seen(first, last, shape))
            self.count(2 * query.numel() * (seen.stop - seen.start))
            mixed = attend(query, key[:, seen], value[:, seen], upcast=self._upcast)
            band = self._linear(mixed, step.proj).transpose(1, 2)
            out.append(band.reshape(shape.batch, shape.channels, last - first, shape.width) + rows(source, first, last))
            source.release(last)
        return out

    def _seen(self, first: int, last: int, shape: Shape) -> tuple[int, int]:
        """The pixels that the queries of these rows look at: all, or those of a window of rows."""
        window = self.plan.window
        if window is None:
            return 0, shape.height * shape.width
        return max(first - window, 0) * shape.width, min(last + window, shape.height) * shape.width

    def _tokens(self, source: Source, affine: Affine, first: int, last: int) -> torch.Tensor:
        """Normalised pixels (B, n, C)."""
        return affine(rows(source, first, last)).to(self.dtype).flatten(2).transpose(1, 2)

    def _linear(self, tokens: torch.Tensor, conv: Conv) -> torch.Tensor:
        self.count(tokens[:, :, 0].numel() * conv.macs)
        return F.linear(tokens, conv.weight.flatten(1), conv.bias)

    def _down(self, step: Down, source: Source, norm: Norm | None) -> Map:
        below = source.shape
        shape = Shape(below.batch, step.conv.out, below.height // 2, below.width // 2)
        out = self._new_map(shape, norm)
        for first, last in self._heights(shape):
            end = 2 * last + 1
            window = F.pad(rows(source, 2 * first, min(end, below.height)), (0, 1, 0, max(end - below.height, 0)))
            out.append(F.conv2d(window, step.conv.weight, step.conv.bias, stride=2))
            self.count(shape.batch * (last - first) * shape.width * step.conv.macs)
            source.release(2 * last)
        return out

    def _out(self, step: Out, source: Source) -> torch.Tensor:
        last_conv = Convolved(self, source, step.conv, _affine(source, step.norm))
        shape, out = last_conv.shape, None
        for first, last in self._heights(source.shape):
            band = rows(last_conv, first, last)
            if out is None:
                out = band.new_empty(shape.batch, shape.channels, shape.height, shape.width)
            out[:, :, first:last] = band.tanh_() if step.tanh else band
            last_conv.release(last)
        assert out is not None
        return out


def _affine(source: Source, norm: Norm) -> Affine:
    assert source.moments is not None, "the step before has gathered no statistics"
    return source.moments.affine(norm)


def _changes_channels(step: Step) -> bool:
    return isinstance(step, Residual) and step.shortcut is not None
