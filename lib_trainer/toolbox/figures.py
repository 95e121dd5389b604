"""What a tool says of what its result lacks, layer by layer and in all."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field

from lib_trainer.toolbox.decompose import relative


@dataclass(frozen=True)
class LayerFigure:
    """`rank`: what it has now, 0 where it is stored whole. `energy`: of the whole; `lost`: of what is missing.

    `advised`: the rank that keeps 95 % of the energy.
    """

    rank: int
    energy: float
    lost: float
    advised: int

    @property
    def share(self) -> float:
        """‖what is lost‖ / ‖the whole‖."""
        return relative(self.lost, self.energy)


@dataclass
class Figures:
    """layers  by their names in kohya's scheme
    left    the energy of what no layer of the result holds
    same    layers without a difference
    biases  layers whose differences of biases are left out
    """

    layers: dict[str, LayerFigure] = field(default_factory=dict)
    left: float = 0.0
    same: int = 0
    biases: int = 0

    @property
    def share(self) -> float:
        """‖what is lost‖ / ‖the whole‖ of the layers together."""
        return relative(self._lost, self._energy)

    @property
    def of_all(self) -> float:
        """The same with what was left out."""
        return relative(self._lost + self.left, self._energy + self.left)

    @property
    def _lost(self) -> float:
        return sum(one.lost for one in self.layers.values())

    @property
    def _energy(self) -> float:
        return sum(one.energy for one in self.layers.values())

    @property
    def advised(self) -> int:
        """The rank at which nine of ten layers keep 95 % of their energy."""
        ranks = sorted(one.advised for one in self.layers.values())
        return ranks[9 * (len(ranks) - 1) // 10] if ranks else 0

    @property
    def worst(self) -> list[tuple[str, LayerFigure]]:
        """The layers that lose most first."""
        return sorted(self.layers.items(), key=lambda pair: (-pair[1].share, pair[0]))

    def table(self) -> str:
        """As CSV."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("layer", "rank", "lost", "rank for 95 %", "norm of the difference"))
        for name, one in self.worst:
            rows.writerow((name, one.rank, f"{one.share:.6f}", one.advised, f"{one.energy**0.5:.6g}"))
        return text.getvalue()

    def metadata(self) -> str:
        """{layer: [rank, share that is lost, rank for 95 %]} as JSON."""
        return json.dumps({name: [one.rank, round(one.share, 6), one.advised] for name, one in self.layers.items()})
