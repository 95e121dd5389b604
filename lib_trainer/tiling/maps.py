"""Feature maps as rows that are asked for in order, whether they are kept or computed when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from lib_trainer.tiling.statistics import Affine, Moments


@dataclass(frozen=True)
class Shape:
    """Of a whole map (B, C, H, W)."""

    batch: int
    channels: int
    height: int
    width: int

    @property
    def numel(self) -> int:
        return self.batch * self.channels * self.height * self.width


class Source(Protocol):
    """A map whose rows can be read, in an order that only moves downwards once `release` was called."""

    shape: Shape
    moments: Moments | None

    def pieces(self, first: int, last: int) -> list[torch.Tensor]:
        """Rows first..last-1 as consecutive tensors (B, C, h, W), not to be written to."""
        ...

    def release(self, row: int) -> None:
        """Rows below `row` are not asked for again."""
        ...


class Store(Protocol):
    """Where the bands of a kept map lie."""

    def keep(self, band: torch.Tensor) -> int:
        """Take a band; its number."""
        ...

    def fetch(self, number: int) -> torch.Tensor:
        """The band on the device it is worked on."""
        ...

    def expect(self, number: int) -> None:
        """It will be fetched soon."""
        ...

    def forget(self, number: int) -> None: ...


class OnDevice:
    """Bands stay where they were made."""

    def __init__(self) -> None:
        self._bands: dict[int, torch.Tensor] = {}
        self._count = 0

    def keep(self, band: torch.Tensor) -> int:
        self._bands[self._count] = band
        self._count += 1
        return self._count - 1

    def fetch(self, number: int) -> torch.Tensor:
        return self._bands[number]

    def expect(self, number: int) -> None:
        return None

    def forget(self, number: int) -> None:
        self._bands.pop(number, None)


class Map:
    """A map whose bands are kept in a store until they are released."""

    def __init__(self, shape: Shape, store: Store, moments: Moments | None = None) -> None:
        self.shape, self.moments, self._store = shape, moments, store
        self._held: list[tuple[int, int, int]] = []
        self._height = 0

    def append(self, band: torch.Tensor) -> None:
        """The next rows, from the top down."""
        if self.moments is not None:
            self.moments.add(band)
        end = self._height + band.shape[2]
        self._held.append((self._height, end, self._store.keep(band)))
        self._height = end

    def pieces(self, first: int, last: int) -> list[torch.Tensor]:
        found, upcoming = [], None
        for start, end, number in self._held:
            if start >= last:
                upcoming = number
                break
            if end > first:
                band = self._store.fetch(number)
                found.append(band[:, :, max(first - start, 0) : last - start])
        if upcoming is not None:
            self._store.expect(upcoming)
        assert sum(piece.shape[2] for piece in found) == last - first, "rows were released too early"
        return found

    def release(self, row: int) -> None:
        while self._held and self._held[0][1] <= row:
            self._store.forget(self._held.pop(0)[2])


class Given:
    """A whole tensor (B, C, H, W) as a source, which is never freed: it is the caller's."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape = Shape(*tensor.shape)
        self.moments: Moments | None = None

    def pieces(self, first: int, last: int) -> list[torch.Tensor]:
        return [self.tensor[:, :, first:last]]

    def release(self, row: int) -> None:
        return None


def rows(source: Source, first: int, last: int) -> torch.Tensor:
    """Rows first..last-1 as one tensor."""
    found = source.pieces(first, last)
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


class Windows:
    """Bands of a map with one neighbour row on each side and one column, normalised and activated, ready for a 3×3.

    Beyond an edge stand zeros, which come after the activation as in a padded convolution; with `circular` the rows
    and columns of the opposite edge. Those rows are read once at the start, before any can be released.
    """

    def __init__(
        self, source: Source, *, circular: bool, affine: Affine | None, dtype: torch.dtype, late: bool
    ) -> None:
        self._source, self._circular, self._affine = source, circular, affine
        self._dtype, self._late = dtype, late
        self._wrapped: tuple[torch.Tensor, torch.Tensor] | None = None
        if circular:
            height = source.shape.height
            self._wrapped = rows(source, height - 1, height).clone(), rows(source, 0, 1).clone()

    def get(self, first: int, last: int) -> torch.Tensor:
        """(B, C, last-first+2, W+2) for rows first..last-1."""
        shape = self._source.shape
        size = (shape.batch, shape.channels, last - first + 2, shape.width + 2)
        found = list(self._parts(first, last))
        out = torch.empty(size, dtype=self._dtype, device=found[0][1].device)
        if first == 0:
            out[:, :, 0].zero_()
        if last == shape.height:
            out[:, :, -1].zero_()
        for row, part in found:
            self._fill(out[:, :, row : row + part.shape[2], 1:-1], part)
        out[:, :, :, 0].zero_()
        out[:, :, :, -1].zero_()
        if self._affine is not None and not self._late:
            torch.nn.functional.silu(out, inplace=True)  # zero stays zero, and the whole is one piece of memory
        if self._circular:
            out[:, :, :, 0] = out[:, :, :, -2]
            out[:, :, :, -1] = out[:, :, :, 1]
        return out

    def _parts(self, first: int, last: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Each part with the row of the window where it begins."""
        height = self._source.shape.height
        if self._wrapped is not None and first == 0:
            yield 0, self._wrapped[0]
        row = 1 if first == 0 else 0
        for piece in self._source.pieces(max(first - 1, 0), min(last + 1, height)):
            yield row, piece
            row += piece.shape[2]
        if self._wrapped is not None and last == height:
            yield row, self._wrapped[1]

    def _fill(self, target: torch.Tensor, part: torch.Tensor) -> None:
        if self._affine is None:
            target.copy_(part)
        elif self._late:  # SiLU before the rounding, as under autocast
            target.copy_(torch.nn.functional.silu(self._affine(part), inplace=True))
        else:
            self._affine.into(target, part)
