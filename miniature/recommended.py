"""The settings recommended for the miniature, over held-out concepts and seeds: hit rate and what the model knew.

    python -m miniature.recommended --pictures 6         # three concepts, three seeds each, as in docs/learning.md
    python -m miniature.recommended --pictures 6 --device cuda --at-once 9
    python -m miniature.recommended --concepts heart --seeds 1

    python -m miniature.recommended --only "few known" "many known" --steps 110 --seeds 1

18 pictures of the concept beside others of what is known, as often as these. `--only` compares other settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .demo import MANY, RECOMMENDED
from .trials import BESIDE, Bench, Figures, Trial, arguments, percent, trial

DEBIASED = {"loss.weighting": "debiased"}
TRIED: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "recommended": (RECOMMENDED, MANY),
    "all captions told": (DEBIASED, MANY),
    "576 known": (RECOMMENDED, 576),
    "576 known at 2e-3": (
        {**RECOMMENDED, "optimizer.unet_lr": 2e-3, "optimizer.text_encoder_lr": 1.3e-3},
        576,
    ),
    "few known": ({}, BESIDE),
    "many known": ({}, MANY),
    "the same at 5e-3": ({**RECOMMENDED, "optimizer.unet_lr": 5e-3, "optimizer.text_encoder_lr": 3.3e-3}, MANY),
}
"""Settings over `SETTINGS`, and how many pictures of what is known there are."""


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each concept (default: 3)")
    parser.add_argument("--steps", type=int, default=400, help="of 8 pictures (default: 400)")
    parser.add_argument("--only", nargs="*", choices=list(TRIED), default=["recommended"], metavar="SETTINGS")
    options = parser.parse_args()
    bench = Bench(options.work, options.pictures, options.device)
    runs: dict[tuple[str, str], list[Trial]] = {}
    for name in options.only:
        values, beside = TRIED[name]
        values = {**values, "training.max_steps": options.steps}
        for shape in options.concepts:
            runs[name, shape] = [trial(shape, values, seed, beside=beside) for seed in range(options.seeds)]
    bench.make([one for own in runs.values() for one in own], options.at_once)
    lines = ["| settings | concept | draws it | known |", "|---|---|---|---|"]
    for name in options.only:
        everything: list[Figures] = []
        for shape in options.concepts:
            judged = [bench.figures(one) for one in runs[name, shape]]
            everything += judged
            lines.append(row(name, shape, judged))
            print(lines[-1], flush=True)
        lines.append(row(name, "all", everything))
    print("\n".join(lines))


def row(name: str, shape: str, judged: Sequence[Figures]) -> str:
    return f"| {name} | {shape} | {percent(one.hit for one in judged)} | {percent(one.known for one in judged)} |"


if __name__ == "__main__":
    main()
