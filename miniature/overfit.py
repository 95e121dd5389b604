"""Two LoRAs that are overfitted on purpose, and repaired in three ways: what comes back, and what the concept loses.

    python -m miniature.overfit --dir FOLDER

Each learns a shape that the checkpoint has never seen from four pictures, without pictures of what is known beside
them and for too long, so that it draws its shape whatever is asked. The toolbox's `repair` then makes files of it:
weaker, without its text encoder, and merged with the other one. The tagger, which had no part in training, says how
many pictures show the concept where it is called, and the right shape where another is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.ports import PreviewRequest
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.tools import TOOLS
from lib_trainer.training.desk import TrainingDesk

from .common import print_table
from .demo import CFG_SCALE, SAMPLER, SIDE, concept_job
from .export import export_webui
from .judge import Judge
from .shapes import ALL_SHAPES
from .world import write_concept

CONCEPTS = {"zorb": "heart", "wub": "arrow"}
KNOWN = ("circle", "square", "star", "triangle")
"""What the checkpoint could draw before."""
PICTURES = 4


def learn(host: StandaloneHost, folder: Path, trigger: str, steps: int) -> None:
    write_concept(folder / trigger, shape=CONCEPTS[trigger], trigger=trigger, colours=("red",), count=PICTURES)
    job = concept_job(folder / trigger, name=trigger, steps=steps)
    job = msgspec.structs.replace(job, training=msgspec.structs.replace(job.training, batch_size=PICTURES))
    desk = TrainingDesk(host)
    desk.start(job)
    view = desk.wait()
    if view is None or view.state != "finished":
        raise RuntimeError(f"the run ended: {view}")


def repaired(loras: Path, trigger: str, other: str) -> dict[str, str]:
    """{way: the name of its file}."""
    own = str(loras / f"{trigger}.safetensors")
    ways: dict[str, dict[str, object]] = {
        "as it is": {},
        "weaker (0.6)": {"lora": f"{own}:0.6"},
        "text encoder left out": {"lora": own, "text": "drop"},
        "merged with the other": {"lora": f"{own}:0.6", "others": (f"{loras / other}.safetensors:0.4",), "rank": 32},
    }
    found = {}
    for number, (way, values) in enumerate(ways.items()):
        found[way] = f"{trigger}-{number}" if values else trigger
        if values:
            tool = TOOLS["repair"]
            settings = tool.made({**values, "output": str(loras / found[way])})
            tool.prepare(settings).work(Progress())
    return found


def share(host: StandaloneHost, judge: Judge, prompt: str, lora: str, shape: str, seeds: int) -> float:
    """Of how many seeds the tagger's best shape is this one."""
    mark = f" <lora:{lora}:1>" if lora else ""
    request = PreviewRequest(prompt + mark, width=SIDE, height=SIDE, cfg_scale=CFG_SCALE, sampler=SAMPLER)
    scores = judge.scores(host.draw_seeds(request, range(100, 100 + seeds)))
    return sum(judge.best(one, ALL_SHAPES)[0] == shape for one in scores) / seeds


def measured(host: StandaloneHost, judge: Judge, trigger: str, lora: str, seeds: int) -> tuple[float, float]:
    """The share of the concept where it is called, and the mean share of the shapes that were known."""
    concept = share(host, judge, f"{trigger}, red, white background", lora, CONCEPTS[trigger], seeds)
    known = [share(host, judge, f"blue {one}, white background", lora, one, seeds) for one in KNOWN]
    return concept, sum(known) / len(known)


def run(folder: Path, steps: int, seeds: int, device: torch.device, say: Callable[[str], None] = print) -> list[str]:
    """Train, repair and judge; returns a Markdown table."""
    host = StandaloneHost(export_webui(folder / "model"), folder, device)
    for trigger in CONCEPTS:
        say(f"Overfitting {trigger}: {PICTURES} pictures, {steps} steps")
        learn(host, folder, trigger, steps)
    judge = Judge()
    lines = ["| LoRA | repair | concept | what was known |", "|---|---|---|---|"]
    _, known = measured(host, judge, "zorb", "", seeds)
    lines.append(f"| none | | | {known:.0%} |")
    triggers = list(CONCEPTS)
    for trigger, other in zip(triggers, reversed(triggers)):
        for way, name in repaired(host.lora_folder(), trigger, other).items():
            concept, known = measured(host, judge, trigger, name, seeds)
            lines.append(f"| {trigger} | {way} | {concept:.0%} | {known:.0%} |")
    return lines


if __name__ == "__main__":
    sys.exit(print_table(run, __doc__, 400, seeds=(20, "pictures of each prompt")))
