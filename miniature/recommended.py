"""The settings recommended for the miniature, over held-out concepts and seeds: hit rate and what the model knew.

    python -m miniature.recommended                      # three concepts, three seeds each, as in docs/learning.md
    python -m miniature.recommended --concepts heart --seeds 1

400 steps of 8 pictures, with pictures of what is known beside the concept's, and without them.
"""

from __future__ import annotations

from .trials import Bench, arguments, percent, trial


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each concept (default: 3)")
    parser.add_argument("--alone", action="store_true", help="also without pictures of what is known")
    options = parser.parse_args()
    bench = Bench(options.work, options.pictures)
    lines = ["| pictures of what is known | concept | draws it | known |", "|---|---|---|---|"]
    for beside in [True, *([False] if options.alone else [])]:
        hits, knowns = [], []
        for shape in options.concepts:
            judged = [bench.figures(trial(shape, {}, seed, beside=beside)) for seed in range(options.seeds)]
            hit, known = [one.hit for one in judged], [one.known for one in judged]
            hits, knowns = hits + hit, knowns + known
            lines.append(f"| {'beside' if beside else 'none'} | {shape} | {percent(hit)} | {percent(known)} |")
            print(lines[-1], flush=True)
        lines.append(f"| {'beside' if beside else 'none'} | all | {percent(hits)} | {percent(knowns)} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
