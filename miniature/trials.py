"""One run on the miniature, judged: does it draw the concept where it is called, and what is left of what was known?

The scripts that compare settings are made of these. A trial that was made once is kept in a folder and found again, so
that a script may be ended and started anew, and several may share their trials.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lib_trainer.config import from_values
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.ports import PreviewRequest
from lib_trainer.training.desk import TrainingDesk

from .common import atomic, take_device
from .demo import CFG_SCALE, MANY, SAMPLER, SIDE
from .export import export_webui
from .judge import Judge
from .shapes import ALL_SHAPES, SHAPES
from .stacked import stacked
from .world import COLOURS, write_concept, write_known

CONCEPTS = {"heart": "zorb", "crescent": "glim", "arrow": "wub"}
"""Shapes that the checkpoint has never seen, with the words that they are called by."""
TAUGHT = ("red", "blue")
"""Colours of the pictures that are learned from."""
OWN, BESIDE = 18, 60
"""Pictures of a concept, and of what is known beside them where nothing else is said."""
SETTINGS: dict[str, Any] = {
    "dataset.width": SIDE, "dataset.height": SIDE, "network.rank": 32, "network.alpha": 32.0,
    "optimizer.unet_lr": 3e-3, "optimizer.text_encoder_lr": 2e-3,
    "training.batch_size": 8, "training.max_steps": 400, "training.precision": "fp32",
}  # fmt: skip
"""What a person would set for a checkpoint this small; the rest are defaults."""


@dataclass(frozen=True)
class Figures:
    """Shares, 0 to 1. `hit`: pictures that show the concept where it is called; `known`: those that show the right
    shape where another is asked for; `sure`: the tagger's mean score of the right shape, over both. `seconds` of the
    training."""

    hit: float
    known: float
    sure: float
    seconds: float

    @property
    def both(self) -> float:
        """What a run is judged by where one number is wanted."""
        return (self.hit + self.known) / 2


@dataclass(frozen=True)
class Trial:
    """A run of `SETTINGS` with `values` over them, on the pictures of a concept, with `beside` pictures of what is
    known beside them: an epoch shows as many as of the concept, so that the fewer are repeated."""

    shape: str
    values: tuple[tuple[str, Any], ...] = ()
    seed: int = 0
    beside: int = BESIDE

    @property
    def key(self) -> str:
        told = json.dumps([self.shape, {**SETTINGS, **dict(self.values)}, self.seed, self.beside], sort_keys=True)
        return f"{self.shape}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def trial(shape: str, values: Mapping[str, Any], seed: int = 0, *, beside: int = BESIDE) -> Trial:
    return Trial(shape, tuple(sorted(values.items())), seed, beside)


class Bench:
    """Trials in a folder, with the checkpoint and the pictures that they share."""

    def __init__(self, folder: Path, pictures: int = 5, device: torch.device | None = None) -> None:
        """`pictures` of each prompt; on the CPU where no device is given."""
        self.folder, self._pictures = folder.absolute(), pictures
        self._device = device or torch.device("cpu")
        self._judge: Judge | None = None

    def host(self) -> StandaloneHost:
        made = self.folder / "model"
        checkpoint = next(made.glob("*.safetensors"), None) or export_webui(made)
        return StandaloneHost(checkpoint, self.folder, self._device)

    def set_of(self, one: Trial) -> Path:
        """The folder of pictures of a trial, written once."""
        masked = "masks.source" in dict(one.values)
        name = "-".join([one.shape, *[f"beside{one.beside}"] * bool(one.beside), *["masked"] * masked])
        folder = self.folder / "sets" / name
        if not folder.is_dir():
            shown = max(MANY, one.beside)
            repeats, word = shown // OWN, CONCEPTS[one.shape]
            target = write_concept(folder, one.shape, word, TAUGHT, OWN, repeats)
            if masked:
                write_masks(target)
            if one.beside:
                write_known(folder, one.beside, shown // one.beside)
        return folder

    def values_of(self, one: Trial) -> dict[str, Any]:
        """The whole job of a trial."""
        own = {"dataset.folder": str(self.set_of(one)), "training.seed": one.seed, "output.name": one.key}
        own["dataset.cache"] = "disk"  # of all trials of a set
        return {**SETTINGS, **dict(one.values), **own}

    def figures(self, one: Trial) -> Figures:
        """Of a trial, which is made where its figures are not there yet. Raises `RuntimeError` if the run failed."""
        if not self._kept(one).is_file():
            self._keep(one, self._made(one))
        return Figures(**json.loads(self._kept(one).read_text(encoding="utf-8")))

    def make(self, trials: Sequence[Trial], at_once: int) -> None:
        """Those whose figures are not there yet, so many at once, all of one length. One that was ended goes on."""
        missing = [one for one in dict.fromkeys(trials) if not self._kept(one).is_file()]
        for start in range(0, len(missing), at_once) if at_once > 1 else ():
            part = missing[start : start + at_once]
            for one, found in zip(part, self._made_together(part), strict=True):
                self._keep(one, found)

    def _kept(self, one: Trial) -> Path:
        return self.folder / "figures" / f"{one.key}-{self._pictures}.json"

    def _keep(self, one: Trial, found: Figures) -> None:
        atomic(self._kept(one), lambda place: place.write_text(json.dumps(asdict(found)), encoding="utf-8"))

    def _made_together(self, trials: Sequence[Trial]) -> list[Figures]:
        host, started = self.host(), time.monotonic()
        name = hashlib.sha256(" ".join(one.key for one in trials).encode()).hexdigest()[:16]
        under_way = self.folder / "stacks" / f"{name}.pt"
        jobs = [from_values({**self.values_of(one), "output.existing": "replace"}) for one in trials]
        with stacked(host, jobs) as stack:
            stack.train(under_way, lambda text: print(f"{len(trials)} runs: {text}", flush=True))
            seconds = (time.monotonic() - started) / len(trials)
            asked = [self._asked(one) for one in trials]
            prompts = [[(prompt, seed) for prompt, _, seed in own] for own in asked]
            drawn = stack.pictures(prompts, SIDE, CFG_SCALE, SAMPLER)
        found = [self._figures(own, shown, seconds) for own, shown in zip(asked, drawn, strict=True)]
        under_way.unlink(missing_ok=True)
        return found

    def _asked(self, one: Trial) -> list[tuple[str, str, int]]:
        """Prompts with the shape that is to be seen and a seed, those that call the concept first."""
        ends = [f"{CONCEPTS[one.shape]}, {colour}, white background, large, centered" for colour in TAUGHT]
        called = [(prompt, one.shape, seed) for prompt in ends for seed in range(100, 100 + 5 * self._pictures)]
        known = [
            (f"{colour} {shape}, white background", shape) for shape, colour in zip(SHAPES, itertools.cycle(COLOURS))
        ]
        return called + [(*asked, seed) for asked in known for seed in range(200, 200 + self._pictures)]

    def _figures(self, asked: Sequence[tuple[str, str, int]], drawn: Sequence[Image.Image], seconds: float) -> Figures:
        """The share of the pictures whose best-scored shape is the right one, and the mean score of that one."""
        if self._judge is None:
            self._judge = Judge()
        right, sure, scores = [], [], self._judge.scores(drawn)
        for (_, shape, _), own in zip(asked, scores, strict=True):
            right.append(self._judge.best(own, ALL_SHAPES)[0] == shape)
            sure.append(self._judge.best(own, (shape,))[1])
        of_concept = len(TAUGHT) * 5 * self._pictures
        halves = [(right[:of_concept], sure[:of_concept]), (right[of_concept:], sure[of_concept:])]
        (hit, sure_hit), (known, sure_known) = [(float(np.mean(a)), float(np.mean(b))) for a, b in halves]
        return Figures(hit, known, (sure_hit + sure_known) / 2, seconds)

    def bare(self, shape: str) -> Figures:
        """Of the checkpoint without anything learned."""
        return self._judged(self.host(), trial(shape, {}), "", 0.0)

    def _made(self, one: Trial) -> Figures:
        host, started = self.host(), time.monotonic()
        desk = TrainingDesk(host)
        desk.start(from_values({**self.values_of(one), "output.existing": "replace"}))
        view = desk.wait()
        if view is None or view.state != "finished" or view.output is None:
            if view is not None and "loss" in view.error:  # not a number: nothing can be drawn with it
                return Figures(0.0, 0.0, 0.0, time.monotonic() - started)
            raise RuntimeError(f"the run ended: {view.error if view else ''}")
        found = self._judged(host, one, f" <lora:{view.output.stem}:1>", time.monotonic() - started)
        view.output.unlink()
        return found

    def _judged(self, host: StandaloneHost, one: Trial, mark: str, seconds: float) -> Figures:
        asked, drawn = self._asked(one), list[Image.Image]()
        for prompt, own in itertools.groupby(asked, key=lambda each: each[0]):
            request = PreviewRequest(prompt + mark, width=SIDE, height=SIDE, cfg_scale=CFG_SCALE, sampler=SAMPLER)
            drawn += host.draw_seeds(request, [seed for _, _, seed in own])
        return self._figures(asked, drawn, seconds)


def write_masks(folder: Path) -> None:
    """Beside each picture one that is white where it is not as its corner is: where the figure lies."""
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"), np.int16)
        figure = (np.abs(pixels - pixels[0, 0]).sum(2) > 0).astype(np.uint8) * 255
        Image.fromarray(figure).save(path.with_name(f"{path.stem}-masklabel.png"))


def arguments(text: str) -> argparse.ArgumentParser:
    """What all the scripts take."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("demo/trials"), help="where trials are kept")
    parser.add_argument("--pictures", type=int, default=5, help="of each prompt (default: 5)")
    parser.add_argument("--at-once", type=int, default=1, help="runs that are trained together (`stacked`, default: 1)")
    take_device(parser)
    parser.add_argument("--concepts", nargs="*", choices=list(CONCEPTS), default=list(CONCEPTS), metavar="SHAPE")
    return parser


def percent(values: Iterable[float]) -> str:
    """The mean of shares, and their range where there are several."""
    found = list(values)
    spread = f" ({min(found):.0%}–{max(found):.0%})" if len(found) > 1 else ""
    return f"{np.mean(found):.0%}{spread}"
