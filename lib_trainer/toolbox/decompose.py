"""Low-rank parts of what adapters add: at a fixed rank, or at the rank that keeps a share of the energy.

Energy is the sum of the squares of a matrix's entries, which is that of its singular values (Eckart & Young 1936: the
largest ones are the best that a rank can keep). A matrix given as up·down is decomposed without being formed: QR of
both, and an SVD of the small core, exact to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lib_trainer.networks.low_rank import EXACT_BELOW, EXTRA, largest_parts
from lib_trainer.transfer import widest_float

ADVISED = 0.95
"""The share of the energy whose rank is told."""
FIRST = 32
"""Rank that a search for a share begins with."""


@dataclass(frozen=True)
class Wanted:
    """`rank`: at most so many; 0: no limit. `keep`: the share of the energy that is enough, up to 1."""

    rank: int = 0
    keep: float = 1.0

    @property
    def all(self) -> bool:
        return self.rank == 0 and self.keep >= 1

    def enough(self, energies: torch.Tensor, total: float) -> int | None:
        """How many of these, the largest first, are enough; None where more of them are needed than there are here."""
        found = rank_keeping(energies, total, self.keep) if self.keep < 1 else None
        most = self.rank or None
        if found is not None:
            return min(found, most) if most else found
        return most if most is not None and most <= len(energies) else None


@dataclass(frozen=True)
class Parts:
    """up (out, r)·down (r, n). `total`: the energy of the whole; `advised`: the rank that keeps `ADVISED` of it."""

    up: torch.Tensor
    down: torch.Tensor
    total: float
    advised: int

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


def rank_keeping(energies: torch.Tensor, total: float, share: float) -> int | None:
    """How many, the largest first, have this share of the total; None where all of them have less."""
    reached = torch.cumsum(energies.cpu().double(), 0) >= share * total * (1 - 1e-12)
    return int(reached.int().argmax()) + 1 if bool(reached.any()) else None


def split(matrix: torch.Tensor, wanted: Wanted) -> Parts:
    """Of a whole matrix (out, n) in fp32: exactly where it is small, else by `largest_parts`."""
    total = energy(matrix)
    most = min(matrix.shape)
    count = min(wanted.rank or FIRST, most)
    if most <= EXACT_BELOW * (count + EXTRA):
        count = most
    while True:
        u, s, vh = largest_parts(matrix, count)
        chosen = wanted.enough(s.cpu().double() ** 2, total)
        if chosen is not None or count == most:
            break
        count = min(2 * count, most)
    rank = min(chosen or most, len(s))
    advised = rank_keeping(s.cpu().double() ** 2, total, ADVISED) or _advised(matrix, total)
    return Parts(u[:, :rank] * s[:rank].sqrt(), s[:rank].sqrt()[:, None] * vh[:rank], total, advised)


def join(up: torch.Tensor, down: torch.Tensor, wanted: Wanted) -> Parts:
    """Of up (out, k)·down (k, n), with k no larger than either side, computed in double precision."""
    left, right = torch.linalg.qr(up.double()), torch.linalg.qr(down.double().t())
    u, s, vh = torch.linalg.svd(left.R @ right.R.t(), full_matrices=False)
    energies, total = s**2, float((s**2).sum())
    sure = int((s > s[:1] * torch.finfo(torch.float32).eps).sum()) or 1  # what the factors had twice is rounding noise
    rank = min(wanted.enough(energies, total) or len(s), sure)
    root = s[:rank].sqrt()
    advised = rank_keeping(energies, total, ADVISED) or len(s)
    return Parts(
        ((left.Q @ u[:, :rank]) * root).float(), ((vh[:rank] @ right.Q.t()) * root[:, None]).float(), total, advised
    )


def energy(matrix: torch.Tensor) -> float:
    """In double precision, where the device has it."""
    return float(torch.linalg.vector_norm(matrix, dtype=widest_float(matrix.device))) ** 2


def lost(matrix: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> float:
    """The energy of what up·down, as they are stored, leaves of a matrix."""
    return energy(torch.addmm(matrix.float(), up.float(), down.float(), alpha=-1))


def lost_between(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> float:
    """The same of a matrix that is given as a product, without forming either."""
    up = torch.cat([one[0].double(), -other[0].double()], 1)
    down = torch.cat([one[1].double(), other[1].double()])
    return max(0.0, float(((up.t() @ up) * (down @ down.t())).sum()))


def relative(lost_energy: float, total: float) -> float:
    """‖what is lost‖ / ‖the whole‖; 0 of nothing."""
    return math.sqrt(max(0.0, lost_energy) / total) if total > 0 else 0.0


def _advised(matrix: torch.Tensor, total: float) -> int:
    """From the eigenvalues of the smaller of the two products with itself, which are the energies."""
    gram = matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix
    energies = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    return rank_keeping(energies, total, ADVISED) or len(energies)
