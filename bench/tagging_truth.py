"""Precision and recall of the miniature tagger on drawn pictures, along the threshold.

    python -m bench.tagging_truth --count 600

Truth is what was drawn. Every line of the table comes from the cached scores of one run. Counted over general and
character tags of all pictures together (micro average); ratings are left out.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib_trainer.tagging.models.folders import at
from lib_trainer.tagging.models.labels import RATING
from lib_trainer.tagging.models.registry import Tagger
from lib_trainer.tagging.pictures import list_pictures
from lib_trainer.tagging.scores.pipeline import score_pictures
from lib_trainer.tagging.scores.store import ScoreStore
from lib_trainer.tagging.scores.table import Thresholds, select
from miniature.tagger_model import truths
from miniature.world import ALL_SHAPES, combos, draw, random_scene

MINI = Path(__file__).parents[1] / "miniature" / "data" / "wd-mini"
LINES = (0.05, 0.1, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SIZES = ((64, 64), (128, 128), (96, 64), (80, 64))
"""What the miniature was trained for; its own test reaches the same figures on them."""


@dataclass(frozen=True)
class Row:
    line: float
    precision: float
    recall: float
    tags: float


def measure(tagger: Tagger, folder: Path, count: int, seed: int = 21) -> list[Row]:
    """Draw `count` scenes into `folder`, score them once, and compare with the truth at every line."""
    rng = np.random.default_rng(seed)
    wanted = np.zeros((count, len(tagger.labels)), bool)
    for number in range(count):
        scene = random_scene(rng, combos(ALL_SHAPES))
        draw(scene, SIZES[number % len(SIZES)]).save(folder / f"{number:05}.png")
        wanted[number] = [name in truths(scene) for name in tagger.labels.names]
    judged = tagger.labels.category_array != RATING
    pictures = list_pictures(folder).pictures
    with ScoreStore(folder) as store:
        score_pictures(tagger, store, pictures)
        known = store.known_content(pictures)
        table = store.table(tagger.fingerprint, [known[path] for path in pictures])
    rows = []
    for line in LINES:
        found = np.zeros_like(wanted)
        chosen = select(table, Thresholds(line, line))
        found[table.rows[chosen], table.columns[chosen]] = True
        right = (found & wanted)[:, judged].sum()
        precision, recall = right / max(1, found[:, judged].sum()), right / wanted[:, judged].sum()
        rows.append(Row(line, float(precision), float(recall), float(found[:, judged].sum() / count)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=600)
    options = parser.parse_args()
    tagger = at(MINI).open(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(tagger, Path(folder), options.count)
    print("| threshold | precision | recall | tags a picture |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.line:.2f} | {row.precision:.3f} | {row.recall:.3f} | {row.tags:.1f} |")


if __name__ == "__main__":
    main()
