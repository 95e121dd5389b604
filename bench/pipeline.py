"""What pictures cost: a step with the real loader against one whose tensors are ready, and a second run's start.

    python -m bench.pipeline --pictures 1000 --rounds 10
    python -m bench.pipeline --pictures 100 --full --batch 1 --rounds 6 --steps 1

A thousand pictures in ten buckets, captions of thirty tags that are shuffled and left out by chance, and
moments kept on disk; the text encoder is trained, so that every step encodes its captions. Real and ready
steps alternate in rounds of a few steps on the same model, and the ratio is taken round by round, so that a machine
that slows down slows both. A start is the time from the job to its first step, on a host that has its model; the
second one finds all moments on the disk.

Ready steps are those of the loader, made before the clock runs, with captions whose tags were met before. Three clocks
are told: the wall's; the processor time of the thread that trains, which is what the loader costs a step where another
core (or the device) does the rest; and that of the thread that loads, which a machine of one busy core pays as well.
`--full`: the UNet and the text encoder of SD 1.x in their published size, with random weights, beside the miniature's
VAE.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.random_models import build_model
from lib_trainer.config import JobConfig, from_values
from lib_trainer.dataset.buckets import bucket_sizes
from lib_trainer.dataset.encoding import encode_pictures
from lib_trainer.dataset.latent_store import DiskStore
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.ports import TrainingState
from lib_trainer.training.ahead import ahead
from lib_trainer.training.captions import LiveCaptions
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.loop import LoopOptions, StepBatches, train
from lib_trainer.training.objective import Objective
from lib_trainer.training.optimizers import make_optimizer
from lib_trainer.training.order import Order, Shown
from lib_trainer.training.pictures import PictureSource
from lib_trainer.training.plan import Plan, prepare
from lib_trainer.training.scaling import loss_scaler
from lib_trainer.training.schedules import LearningRates
from lib_trainer.training.session import Session
from lib_trainer.training.sizes import variations_of
from lib_trainer.training.state import TrainState
from lib_trainer.work import events as ev

ROOT = Path(__file__).parents[1]
BUCKETS = 10
STEP = 64
AREA = 768 * 768
"""Pixels of a picture: as a photograph's that was scaled down for training."""


def shapes_of(side: int) -> list[tuple[int, int]]:
    """(width, height) in pixels of the buckets nearest to a square; small sizes of training have fewer than ten."""
    found = sorted(bucket_sizes((side, side), STEP, STEP, 2048), key=lambda size: (max(size) / min(size), size))
    scales = [math.sqrt(AREA / (width * height)) for width, height in found]
    return [(round(w * scale), round(h * scale)) for (w, h), scale in zip(found, scales)][:BUCKETS]


def draw(folder: Path, count: int, side: int) -> None:
    """Pictures that take as long to decode as photographs do."""
    shapes = shapes_of(side)
    random = np.random.default_rng(1)
    for index in range(count):
        width, height = shapes[index % len(shapes)]
        rough = random.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
        Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC).save(
            folder / f"{index}.jpg", quality=92
        )
        tags = [f"kind {index % len(shapes)}", *(f"tag {random.integers(500)}" for _ in range(29))]
        (folder / f"{index}.txt").write_text(", ".join(tags), encoding="utf-8")


def job_of(folder: Path, side: int, batch: int) -> JobConfig:
    values: dict[str, Any] = {
        "dataset.folder": str(folder), "dataset.trigger_word": "zork", "dataset.repeats": 1,
        "dataset.width": side, "dataset.height": side, "dataset.cache": "disk", "captions.shuffle": True,
        "captions.tag_dropout": 0.1, "captions.dropout": 0.1, "buckets.enabled": True, "buckets.step": STEP,
        "buckets.low": STEP, "training.batch_size": batch,
        "training.max_steps": 1, "training.precision": "fp32", "output.name": "bench", "output.existing": "number",
    }  # fmt: skip
    return from_values(values)


def start_seconds(host: StandaloneHost, job: JobConfig) -> float:
    """From the job to its first step."""
    desk, begun, started = TrainingDesk(host), time.perf_counter(), list[float]()

    def note(event: ev.Event) -> None:
        if isinstance(event, ev.Started):
            started.append(time.perf_counter() - begun)

    desk.start(job, note)
    view = desk.wait()
    assert view is not None and view.state == "finished", view
    return started[0]


def source_of(plan: Plan, model: Any, store: DiskStore) -> PictureSource:
    encoded = encode_pictures(
        plan.scan.samples, plan.sizes, model.encode_images, model.vae_fingerprint(), store,
        lambda done, total: None, lambda: False, variations_of(plan.job),
    )  # fmt: skip
    shown = zip(encoded.samples, encoded.targets, strict=True)
    order = Order(plan.job, plan.kind, tuple(Shown(one.role, one.repeats, target) for one, target in shown))
    return PictureSource(order, encoded, plan.captions, model.latent_scale)


@dataclass
class Loader:
    """The steps of a source, and the processor time of the thread that makes them, by step."""

    steps: Iterator[StepBatches]
    seconds: list[float] = field(default_factory=list)

    def __iter__(self) -> Iterator[StepBatches]:
        return self

    def __next__(self) -> StepBatches:
        begun = time.thread_time()
        made = next(self.steps)
        self.seconds.append(time.thread_time() - begun)
        return made


@dataclass(frozen=True)
class Clocks:
    """Seconds of a round: the wall's, and of the processor in the thread that trains."""

    wall: float
    thread: float


def rounds_of(
    plan: Plan, model: Any, source: PictureSource, loader: Loader, rounds: int, steps: int
) -> Iterator[tuple[Clocks, Clocks]]:
    """What a round's steps take from the real loader and from ready tensors, which are those of the same steps."""
    recipe = plan.kind.recipe(plan.job, model, plan.outputs)
    optimizer = make_optimizer(recipe.groups(), plan.job.optimizer)
    noise = torch.Generator().manual_seed(1)
    state = TrainState(recipe, optimizer, loss_scaler(model.device, torch.float32), noise, Objective(model.schedule))
    rates = LearningRates(optimizer, plan.job.optimizer, 1, 0)
    held = TrainingState(torch.float32, False, True, frozenset(recipe.replaces))
    total = rounds * steps + steps

    def timed(given: Iterator[StepBatches]) -> Clocks:
        begun, own, state.step = time.perf_counter(), time.thread_time(), 0
        options = LoopOptions(steps, torch.float32, 1.0)
        train(model, LiveCaptions(model, 1, 75), given, state, rates, options, lambda done: None, lambda: False)
        return Clocks(time.perf_counter() - begun, time.thread_time() - own)

    ready = list(itertools.islice(source.steps(), total))
    with Session(model, recipe, held) as session, torch.random.fork_rng([]), ahead(loader) as real:
        session.train(text_encoder=True)
        timed(iter(ready[:steps])), [next(real) for _ in range(steps)]
        for number in range(1, rounds + 1):
            own = ready[number * steps : (number + 1) * steps]
            if number % 2:
                loaded, at_hand = timed(real), timed(iter(own))
            else:
                at_hand, loaded = timed(iter(own)), timed(real)
            yield loaded, at_hand


def told(found: list[tuple[Clocks, Clocks]], loader: Loader, steps: int) -> str:
    """The medians, with the lowest and the highest round."""
    parts = []
    for name, clock in (("wall", "wall"), ("training thread", "thread")):
        shares = sorted(getattr(real, clock) / getattr(ready, clock) for real, ready in found)
        step = statistics.median(getattr(ready, clock) for _, ready in found) / steps
        spread = f"{shares[0]:.3f} to {shares[-1]:.3f}"
        parts.append(f"{name} {step * 1000:.1f} ms ready, real loader {statistics.median(shares):.3f}x ({spread})")
    loading = statistics.median(loader.seconds)
    own = loading / (statistics.median(ready.thread for _, ready in found) / steps)
    return "\n".join([*parts, f"loading thread {loading * 1000:.2f} ms, {own:.1%} of a step's processor time"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10, help="in a round")
    parser.add_argument("--side", type=int, default=256, help="of the training size, in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--full", action="store_true", help="a UNet and a text encoder as large as SD 1.x's")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "miniature" / "data" / "mini-sd1.safetensors")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "pictures"
        folder.mkdir()
        draw(folder, options.pictures, options.side)
        host = StandaloneHost(options.checkpoint, Path(root), torch.device("cpu"))
        job, model = job_of(folder, options.side, options.batch), host.model()
        first, second = (start_seconds(host, job) for _ in range(2))
        print(f"start: {first:.2f} s, with a warm cache {second:.2f} s: {second / first:.1%}")
        plan = prepare(job, host)
        source = source_of(plan, model, DiskStore(host.cache_folder()))
        buckets = len(set(source.encoded.targets))
        trained, loader = build_model("full") if options.full else model, Loader(source.steps())
        found = list(rounds_of(plan, trained, source, loader, options.rounds, options.steps))
        print(f"step of {options.batch} from {buckets} buckets:\n{told(found, loader, options.steps)}")


if __name__ == "__main__":
    main()
