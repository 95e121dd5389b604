"""Every kind of training on the miniature, on the same held-out concept: what each learns, keeps, weighs and costs.

    python -m miniature.kinds                     # 50 seeds a kind, as in docs/kinds.md
    python -m miniature.kinds --seeds 10 --only LoRA Embedding
    python -m miniature.kinds --family sdxl       # on the SDXL miniature, or sd2-v
    python -m miniature.kinds --only Embedding --set embedding.vectors=16 training.max_steps=800
    python -m miniature.kinds --prior             # prior preservation: the class's variety with and without

Each kind is trained in a process of its own, one after the other, so that its peak memory is its own. The tagger that
judges the pictures had no part in training. Results of single kinds are kept in --work and reused.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lib_trainer.config import from_values
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.kinds.registry import prompt_for
from lib_trainer.ports import PreviewRequest
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.work import events as ev

from .common import take_device
from .demo import CFG_SCALE, COLOURS, MANY, RECOMMENDED, SAMPLER, SHAPE, SIDE
from .export import export_webui
from .judge import Judge
from .shapes import ALL_SHAPES, SHAPES
from .trials import CONCEPTS
from .world import COLOURS as ALL_COLOURS
from .world import combos, random_scene, tags_of, write_concept, write_known
from .world import draw as draw_scene

UNRELATED = (("red circle, white background", "circle"), ("blue star, white background", "star"))
KNOWN = {"sd1": UNRELATED, "sdxl": (("red circle", "circle"),), "sd2-v": (("red circle", "circle"),)}
"""By family: what its miniature draws well, so that a loss can be seen. Blue stars are not among it on SDXL."""
INSTEAD_OF = "circle"
"""The shape that the difference's pairs lead away from."""

RATES = {"optimizer.unet_lr": 3e-3, "optimizer.text_encoder_lr": 2e-3}
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": RATES,
    "LoCon": RATES | {"network.kind": "locon"},
    "LoHa": RATES | {"network.kind": "loha", "network.rank": 8, "network.alpha": 8.0},
    "LoKr": RATES | {"network.kind": "lokr", "network.rank": 64, "network.factor": 4},
    "DoRA": RATES | {"network.dora": True},
    "rs-LoRA": RATES | {"network.rank_stabilised": True, "network.alpha": 5.6},
    "LoRA + embedding": RATES | {"network.kind": "pivotal", "embedding.learning_rate": 1e-2, "embedding.vectors": 2},
    "Difference": {"network.kind": "difference", "optimizer.unet_lr": 1e-3, "optimizer.text_encoder_lr": 1e-3},
    "Embedding": {"network.kind": "embedding", "embedding.learning_rate": 3e-2, "embedding.vectors": 8},
    "Hypernetwork": {
        "network.kind": "hypernetwork",
        "hypernetwork.learning_rate": 1e-2,
        "hypernetwork.layer_structure": "1, 2, 1",
    },
    "Checkpoint": {"network.kind": "checkpoint", "finetune.unet_lr": 3e-4, "finetune.text_encoder_lr": 3e-4},
}
XL_RATES = {"optimizer.unet_lr": 3e-3, "optimizer.text_encoder_lr": 2e-3}
XL_KINDS: dict[str, dict[str, Any]] = {
    "LoRA": XL_RATES | {"training.max_steps": 160},
    "LoCon": XL_RATES | {"network.kind": "locon", "training.max_steps": 160},
    "LoRA + embedding": XL_RATES
    | {
        "network.kind": "pivotal",
        "embedding.learning_rate": 1e-2,
        "embedding.vectors": 2,
        "training.max_steps": 160,
    },
    "Checkpoint": {
        "network.kind": "checkpoint",
        "finetune.unet_lr": 1e-3,
        "finetune.text_encoder_lr": 1e-3,
        "training.max_steps": 400,
    },
    "Embedding": {
        "network.kind": "embedding",
        "embedding.learning_rate": 1e-1,
        "embedding.vectors": 48,
        "embedding.norm_decay": 0.0,
        "training.max_steps": 900,
    },
}
"""Each with steps of its own."""
V_KINDS: dict[str, dict[str, Any]] = {"LoRA": RATES | RECOMMENDED}
COMMON: dict[str, Any] = {
    "dataset.width": SIDE, "dataset.height": SIDE, "network.rank": 32, "network.alpha": 32.0,
    "network.conv_rank": 8, "network.conv_alpha": 8.0, "training.batch_size": 8, "training.precision": "fp32",
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How kinds are measured. `changes` are put over a kind's settings; `work` is an absolute folder."""

    family: str
    work: Path
    seeds: int
    steps: int | None
    device: torch.device
    changes: dict[str, Any]
    shape: str = SHAPE

    @property
    def word(self) -> str:
        """What the shape is called by: no caption had the word."""
        return CONCEPTS.get(self.shape, CONCEPTS[SHAPE])

    def host(self, folder: Path) -> StandaloneHost:
        return self.of(export_webui(folder / "model", self.family), folder)

    def of(self, checkpoint: Path | None, folder: Path) -> StandaloneHost:
        return StandaloneHost(checkpoint, folder, self.device)

    def kept(self, name: str, *, prior: bool) -> Path:
        """Where a kind's figures are kept."""
        told = ["prior"] * prior + [self.family, name, str(self.seeds), str(self.steps or "usual")]
        told += [str(self.device)] * (self.device.type != "cpu") + [self.shape] * (self.shape != SHAPE)
        text = json.dumps(self.changes, sort_keys=True)
        told += [hashlib.sha256(text.encode()).hexdigest()[:8]] if self.changes else []
        return self.work / f"{' '.join(told)}.json"


def changed(text: str) -> tuple[str, Any]:
    """`field=value` of the command line: a number, True or False, or else a text."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def train(host: StandaloneHost, values: dict[str, Any]) -> dict[str, Any]:
    """Run a job; its file, parameters, median step and losses."""
    steps: list[ev.StepDone] = []
    started: list[ev.Started] = []

    def heard(event: ev.Event) -> None:
        if isinstance(event, ev.StepDone):
            steps.append(event)
        elif isinstance(event, ev.Started):
            started.append(event)

    desk = TrainingDesk(host)
    desk.start(from_values(values), heard)
    view = desk.wait()
    if view is None or view.state != "finished" or view.output is None:
        raise SystemExit(f"The run did not finish: {view.error if view else ''}")
    return {
        "file": str(view.output),
        "bytes": view.output.stat().st_size,
        "parameters": started[0].trained_parameters,
        "seconds": float(np.median([step.seconds for step in steps])),
    }


def pictures(host: StandaloneHost, prompt: str, seeds: Sequence[int]) -> list[Image.Image]:
    request = PreviewRequest(prompt, width=SIDE, height=SIDE, cfg_scale=CFG_SCALE, sampler=SAMPLER)
    return [one for start in range(0, len(seeds), 25) for one in host.draw_seeds(request, seeds[start : start + 25])]


def share(judge: Judge, drawn: Sequence[Image.Image], shape: str) -> float:
    """Share of pictures whose best-scored shape is `shape`."""
    return float(np.mean([judge.best(scores, ALL_SHAPES)[0] == shape for scores in judge.scores(drawn)]))


def learned(judge: Judge, host: StandaloneHost, mark: str, way: Way, kind: str) -> float:
    """Share of the concept's shape in pictures that are asked for it; `mark` is put behind each prompt."""
    each, word = range(100, 100 + way.seeds // len(COLOURS)), INSTEAD_OF if kind == "difference" else way.word
    asked = [f"{word}, {colour}, white background, large, centered{mark}" for colour in COLOURS]
    return float(np.mean([share(judge, pictures(host, one, each), way.shape) for one in asked]))


def kept(judge: Judge, host: StandaloneHost, mark: str, seeds: int, family: str, kind: str = "") -> float:
    """Share of unrelated prompts that are drawn right."""
    unrelated = [(prompt, shape) for prompt, shape in KNOWN[family] if kind != "difference" or shape != INSTEAD_OF]
    others = range(200, 200 + seeds // len(KNOWN[family]))
    return float(np.mean([share(judge, pictures(host, prompt + mark, others), s) for prompt, s in unrelated]))


def write_pairs(before: Path, after: Path, taught: str, count: int = 18) -> None:
    """Circles, and the same scenes with the new shape in the circle's place, under the circle's caption.

    Between them pairs of other shapes that do not change: what the difference is to leave alone.
    """
    rng = np.random.default_rng(0)
    circles = [one for one in combos((INSTEAD_OF,)) if one[1] in COLOURS]
    others = combos(tuple(shape for shape in SHAPES if shape != INSTEAD_OF))
    for index in range(2 * count):
        scene = random_scene(rng, others if index % 2 else circles, 0.0)
        for folder, shape in ((before, scene.shape), (after, scene.shape if index % 2 else taught)):
            folder.mkdir(parents=True, exist_ok=True)
            draw_scene(replace(scene, shape=shape), (SIDE, SIDE)).save(folder / f"{index:03}.png")
            (folder / f"{index:03}.txt").write_text(", ".join(tags_of(scene)), encoding="utf-8")


def write_set(folder: Path, kind: str, way: Way) -> dict[str, str]:
    """What this kind trains on; the fields of the job that say where it is.

    Beside SDXL's as many pictures of what is known are in an epoch, each another one.
    """
    if kind == "difference":
        write_pairs(folder / "before", folder / "after", way.shape)
        return {"dataset.folder": str(folder / "after"), "difference.before": str(folder / "before")}
    target = write_concept(folder, shape=way.shape, trigger=way.word, colours=COLOURS)
    write_known(folder, count=MANY, repeats=1) if way.family != "sd1" else write_known(folder)
    # a new word only: what is known has nothing to teach it
    return {"dataset.folder": str(target if kind == "embedding" else folder)}


def one_kind(name: str, way: Way) -> dict[str, Any]:
    """Train a kind and look at what it draws."""
    family, seeds, folder = way.family, way.seeds, way.work / f"{way.family}-{name}".replace(" ", "-")
    host, own = way.host(folder), SETTINGS[family][name]
    kind = own.get("network.kind", "lora")
    values = COMMON | write_set(folder / "pictures", kind, way) | {"training.max_steps": 400, "output.name": way.word}
    values |= own | ({"training.max_steps": way.steps} if way.steps else {}) | way.changes
    result = train(host, values)
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    used, mark = host, prompt_for(host, Path(result["file"]))
    if kind == "checkpoint":
        used = way.of(Path(result["file"]), folder)
    mark = "" if mark == way.word else f" {mark}"
    judge = Judge()
    bare = way.of(host.checkpoint, folder / "nothing")
    result["with"] = learned(judge, used, mark, way, kind)
    result["kept"] = kept(judge, used, mark, seeds, family, kind)
    asked = "pairs" if kind == "difference" else "concept" if way.shape == SHAPE else way.shape
    before = way.work / f"before {family} {asked} {seeds}.json"
    if not before.is_file():  # many kinds are asked the same
        found = {
            "without": learned(judge, bare, "", way, kind),
            "kept without": kept(judge, bare, "", seeds, family, kind),
        }
        before.write_text(json.dumps(found), encoding="utf-8")
    return result | json.loads(before.read_text(encoding="utf-8"))


SETTINGS = {"sd1": KINDS, "sdxl": XL_KINDS, "sd2-v": V_KINDS}


def table(results: dict[str, dict[str, Any]], seeds: int) -> str:
    lines = [
        f"| kind | draws it ({seeds} seeds) | without the file | unrelated prompts right | before | parameters | "
        "file | s/step | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in results.items():
        lines.append(
            f"| {name} | {one['with']:.0%} | {one['without']:.0%} | {one['kept']:.0%} | {one['kept without']:.0%} | "
            f"{one['parameters']:,} | {one['bytes'] / 1000:,.0f} kB | {one['seconds']:.3f} | "
            f"{one['peak'] / 2**20:,.0f} MiB |"
        )
    return "\n".join(lines)


PRIOR: dict[str, dict[str, Any]] = {
    "without class pictures": {},
    "with class pictures": {"prior.class_prompt": "circle", "prior.class_pictures": 30, "preview.cfg_scale": CFG_SCALE},
}


def prior(name: str, way: Way) -> dict[str, Any]:
    """DreamBooth of one red heart on white as 'zorb circle': is a 'circle' still any circle?

    Variety: share of circles, number of colours among them, and the mean distance of two pictures' pixels (of 255).
    """
    folder, seeds = way.work / name.replace(" ", "-"), way.seeds
    host = way.host(folder)
    target = folder / "pictures"
    target.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(6):
        scene = random_scene(rng, [(way.shape, "red", "white")], 0.0)
        draw_scene(scene, (SIDE, SIDE)).save(target / f"{index}.png")
        (target / f"{index}.txt").write_text(f"{way.word} circle", encoding="utf-8")
    values = COMMON | {
        "dataset.folder": str(target), "output.name": way.word, "network.kind": "checkpoint",
        "training.max_steps": way.steps or 700,
        "finetune.unet_lr": 1e-3, "finetune.text_encoder_lr": 1e-3, "preview.sampler": SAMPLER,
    }  # fmt: skip
    result = train(host, values | PRIOR[name] | way.changes)
    judge = Judge()
    for label, used in (("after", way.of(Path(result["file"]), folder)), ("before", host)):
        drawn = pictures(used, "circle", range(300, 300 + seeds))
        scores = judge.scores(drawn)
        found = [judge.best(one, tuple(ALL_COLOURS))[0] for one in scores]
        pixels = np.stack([np.asarray(one, np.float32) for one in drawn]).reshape(len(drawn), -1)
        pairs = [float(np.abs(a - b).mean()) for index, a in enumerate(pixels) for b in pixels[index + 1 :]]
        result[label] = {
            "circles": share(judge, drawn, "circle"),
            "colours": len(set(found)),
            "commonest": max(found.count(colour) for colour in set(found)) / len(found),
            "distance": float(np.mean(pairs)),
        }
    result["concept"] = share(
        judge,
        pictures(way.of(Path(result["file"]), folder), f"{way.word} circle", range(300, 300 + seeds)),
        way.shape,
    )
    return result


def prior_table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| checkpoint | 'circle' is a circle | colours | share of the commonest | mean distance of two pictures | "
        "'zorb circle' is a heart |",
        "|---|---|---|---|---|---|",
    ]
    first = next(iter(results.values()))["before"]
    rows = [("before training", first, None)] + [(n, one["after"], one["concept"]) for n, one in results.items()]
    for name, seen, concept in rows:
        learned = "" if concept is None else f"{concept:.0%}"
        lines.append(
            f"| {name} | {seen['circles']:.0%} | {seen['colours']} | {seen['commonest']:.0%} | "
            f"{seen['distance']:.1f} | {learned} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--steps", type=int, help="400, and 700 for --prior; of SDXL's kinds each its own")
    parser.add_argument("--family", choices=SETTINGS, default="sd1")
    parser.add_argument("--only", nargs="*", metavar="KIND")
    parser.add_argument("--prior", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("demo/kinds"))
    parser.add_argument("--set", nargs="*", type=changed, default=[], metavar="FIELD=VALUE", help="over the settings")
    parser.add_argument("--concept", choices=ALL_SHAPES, default=SHAPE, help="a shape, never seen or known")
    take_device(parser)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    registry: dict[str, dict[str, Any]] = PRIOR if options.prior else SETTINGS[options.family]
    changes = dict(options.set)
    way = Way(
        options.family, options.work.absolute(), options.seeds, options.steps, options.device, changes, options.concept
    )
    if options.alone:
        print(json.dumps(prior(options.alone, way) if options.prior else one_kind(options.alone, way)))
        return
    results = {}
    for name in options.only or registry:
        done_before = way.kept(name, prior=options.prior)
        if not done_before.is_file():
            started = time.monotonic()
            command = [sys.executable, "-m", "miniature.kinds", *sys.argv[1:], "--alone", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            done_before.parent.mkdir(parents=True, exist_ok=True)
            done_before.write_text(done.stdout.splitlines()[-1], encoding="utf-8")
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        results[name] = json.loads(done_before.read_text(encoding="utf-8"))
    print(prior_table(results) if options.prior else table(results, options.seeds))


if __name__ == "__main__":
    main()
