"""The settings recommended for the miniature, over held-out concepts and seeds: hit rate and what the model knew.

    python -m miniature.recommended --at-once 9          # three concepts, three seeds each, as in docs/learning.md
    python -m miniature.recommended --concepts heart --seeds 1

18 pictures of the concept beside many of what is known, each of these shown as often as all others.
"""

from __future__ import annotations

from collections.abc import Sequence

from .trials import MANY, RECOMMENDED, Bench, Figures, arguments, percent, trial


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each concept (default: 3)")
    parser.add_argument("--steps", type=int, default=400, help="of 8 pictures (default: 400)")
    options = parser.parse_args()
    bench = Bench(options.work, options.pictures)
    values = {**RECOMMENDED, "training.max_steps": options.steps}
    runs = {
        shape: [trial(shape, values, seed, beside=MANY) for seed in range(options.seeds)] for shape in options.concepts
    }
    bench.make([one for own in runs.values() for one in own], options.at_once)
    lines, everything = ["| concept | draws it | known |", "|---|---|---|"], list[Figures]()
    for shape, own in runs.items():
        judged = [bench.figures(one) for one in own]
        everything += judged
        lines.append(row(shape, judged))
        print(lines[-1], flush=True)
    print("\n".join([*lines, row("all", everything)]))


def row(name: str, judged: Sequence[Figures]) -> str:
    return f"| {name} | {percent(one.hit for one in judged)} | {percent(one.known for one in judged)} |"


if __name__ == "__main__":
    main()
