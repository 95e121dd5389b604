"""Seven learning rates on the miniature: which is best, and does the range of the finder hold it?

    python -m miniature.rates --at-once 7           # three concepts, as in docs/learning.md
    python -m miniature.rates --concepts heart --only 1e-3 3e-3

Each rate is trained for the whole length and judged by pictures; the finder sees only its own short runs, on the same
job, set to the rates of `SETTINGS`.
"""

from __future__ import annotations

import json
import math
from typing import Any

from lib_trainer.config import from_values
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.finder import Report

from .common import atomic
from .trials import SETTINGS, Bench, Trial, arguments, trial

RATES = (3e-3, 1e-3, 1e-2, 3e-4, 3e-2, 1e-4, 1e-1)
"""Of the UNet; the text encoder's stands to it as in `SETTINGS`. The likely ones first."""
UNET, TEXT = "optimizer.unet_lr", "optimizer.text_encoder_lr"


def at(shape: str, rate: float, steps: int) -> Trial:
    return trial(shape, {UNET: rate, TEXT: rate * SETTINGS[TEXT] / SETTINGS[UNET], "training.max_steps": steps})


def found(bench: Bench, shape: str, steps: int) -> dict[str, Any]:
    """What the finder says of the job: `low`, `middle`, `high` and `sure`, or `unknown`."""
    one = trial(shape, {"training.max_steps": steps})
    kept = bench.folder / "figures" / f"{one.key}-rate.json"
    if not kept.is_file():
        desk = TrainingDesk(bench.host())
        desk.find_rate(from_values(bench.values_of(one)))
        view = desk.searches.wait()
        if view is None or not isinstance(view.result, Report):
            raise RuntimeError(f"the search ended: {view.error if view else ''}")
        report, own = view.result, SETTINGS[UNET]
        tried = [[own * each.factor, each.steps, each.gain, each.error] for each in report.tried]
        answer: dict[str, Any] = {"tried": tried, "told": str(view.told), "seconds": view.elapsed_seconds}
        if (between := report.range) is not None:
            answer |= {name: own * getattr(between, name) for name in ("low", "middle", "high")}
            answer["sure"] = between.sure
        atomic(kept, lambda place: place.write_text(json.dumps(answer), encoding="utf-8"))
    answer = json.loads(kept.read_text(encoding="utf-8"))
    return answer


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, default=160, help="of each whole run (default: 160)")
    parser.add_argument("--only", type=float, nargs="*", default=RATES, metavar="RATE")
    options = parser.parse_args()
    bench = Bench(options.work, options.pictures, options.device)
    lines = [f"| concept | rate | draws it | known | both | steps: {options.steps} |", "|---|---|---|---|---|---|"]
    for shape in options.concepts:
        answer = found(bench, shape, options.steps)
        print(f"{shape}: {answer['told']} ({answer['seconds']:.0f} s)", flush=True)
        judged = {}
        bench.make([at(shape, rate, options.steps) for rate in options.only], options.at_once)
        for rate in options.only:
            judged[rate] = bench.figures(at(shape, rate, options.steps))
            print(f"{shape} {rate:g}: {judged[rate]}", flush=True)
        best = max(judged, key=lambda rate: judged[rate].both)
        for rate, one in sorted(judged.items()):
            inside = "in the range" if answer.get("low", math.inf) <= rate <= answer.get("high", 0.0) else ""
            mark = "best" * (rate == best)
            told = ", ".join(filter(None, (mark, inside)))
            lines.append(f"| {shape} | {rate:g} | {one.hit:.0%} | {one.known:.0%} | {one.both:.0%} | {told} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
