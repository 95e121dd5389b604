"""What single options do to a concept that is learned, and to what was known: a table.

    python -m miniature.effects --at-once 9              # three concepts, a seed each, as in docs/learning.md
    python -m miniature.effects --concepts heart --only plain "min-SNR 5"

Each row is the job of `SETTINGS` with one option set, on the same pictures, seeds and steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .demo import MANY
from .trials import Bench, arguments, percent, trial

PRESERVED = "preserved 0.5"
ALONE = {PRESERVED}
"""What cannot be trained with others at once."""
EFFECTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "min-SNR 5": {"loss.weighting": "min_snr", "loss.min_snr_gamma": 5.0},
    "noise offset 0.05": {"noise.offset": 0.05},
    "caption dropout 0.1": {"captions.dropout": 0.1},
    "shuffled tags": {"captions.shuffle": True},
    "EMA 0.98": {"optimizer.ema": True, "optimizer.ema_decay": 0.98},
    "debiased": {"loss.weighting": "debiased"},
    "masks": {"masks.source": "file"},
    PRESERVED: {"preserve.weight": 0.5, "preserve.caption": "simple background"},
}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, default=160, help="of each run (default: 160)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each concept (default: 1)")
    parser.add_argument("--alone", action="store_true", help="without pictures of what is known beside the concept's")
    parser.add_argument("--only", nargs="*", choices=list(EFFECTS), default=list(EFFECTS), metavar="ROW")
    options = parser.parse_args()
    bench = Bench(options.work, options.pictures, options.device)
    lines = ["| option | draws it | known | both |", "|---|---|---|---|"]
    runs = {
        name: [
            trial(
                shape, {**EFFECTS[name], "training.max_steps": options.steps}, seed, beside=0 if options.alone else MANY
            )
            for shape in options.concepts
            for seed in range(options.seeds)
        ]
        for name in options.only
    }
    bench.make([one for name, own in runs.items() if name not in ALONE for one in own], options.at_once)
    for name, own in runs.items():
        judged = [bench.figures(one) for one in own]
        hit, known, both = ([getattr(one, of) for one in judged] for of in ("hit", "known", "both"))
        lines.append(f"| {name} | {percent(hit)} | {percent(known)} | {percent(both)} |")
        print(lines[-1], flush=True)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
