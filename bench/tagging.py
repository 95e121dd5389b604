"""Tagging against the bare onnxruntime session, against a serial loop, and the thresholds over cached scores.

    python -m bench.tagging --count 1000 --threads 1
    python -m bench.tagging --thresholds

The model has a WD tagger's shape (448×448×3 in, 10,861 outputs, free batch dimension) and random weights; it costs far
less than a real one, which makes the overhead of everything around it look larger than it is. Contenders, in turn
within each round, so that a machine that slows down slows all of them:
  bare    session.run on batches that are ready in memory: what no tagger can beat
  ours    `score_pictures`: reading, hashing, decoding, fitting, the session, and the scores into SQLite
  serial  one picture after the other, padded at full size, batch 1: what the taggers of the WebUI do
With --threads 1 the session leaves the other cores to the decoders, as a graphics card does.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from PIL import Image

from lib_trainer.tagging.existing import Captioned
from lib_trainer.tagging.folders import at
from lib_trainer.tagging.labels import Labels
from lib_trainer.tagging.pictures import list_pictures
from lib_trainer.tagging.pipeline import score_pictures
from lib_trainer.tagging.plan import Opened
from lib_trainer.tagging.registry import Tagger
from lib_trainer.tagging.store import ScoreStore
from lib_trainer.tagging.style import Existing, Style
from lib_trainer.tagging.table import ScoreTable, Thresholds


class Cost(NamedTuple):
    clock: float
    worked: float


SIDE, OUTPUTS = 448, 10_861
SIZES = ((512, 768), (1024, 1024), (832, 1216), (1600, 1200), (640, 480), (1920, 1080), (2480, 3508), (4000, 3000))
"""0.3 to 12 megapixels."""


def build_model(folder: Path, blocks: int) -> None:
    """Patches of 16, then `blocks` of 3×3 convolutions at 28×28×384, pooled; every activation bounded."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    width = 384
    nodes, weights = [], []

    def constant(name: str, *shape: int) -> str:
        values = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    weights.append(numpy_helper.from_array(np.array(1 / 127.5, np.float32), "scale"))
    nodes.append(helper.make_node("Mul", ["input", "scale"], ["scaled"]))
    nodes.append(helper.make_node("Transpose", ["scaled"], ["nchw"], perm=[0, 3, 1, 2]))
    nodes.append(helper.make_node("Conv", ["nchw", constant("patch", width, 3, 16, 16)], ["x0"], strides=[16, 16]))
    for block in range(blocks):
        kernel = constant(f"w{block}", width, width, 3, 3)
        nodes.append(helper.make_node("Conv", [f"x{block}", kernel], [f"y{block}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"y{block}"], [f"x{block + 1}"]))
    nodes.append(helper.make_node("GlobalAveragePool", [f"x{blocks}"], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", constant("head", OUTPUTS, width)], ["logits"], transB=1))
    weights.append(numpy_helper.from_array(np.array(-3, np.float32), "shift"))
    nodes.append(helper.make_node("Add", ["logits", "shift"], ["shifted"]))
    nodes.append(helper.make_node("Sigmoid", ["shifted"], ["output"]))
    pixels = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", SIDE, SIDE, 3])
    scores = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", OUTPUTS])
    graph = helper.make_graph(nodes, "shape", [pixels], [scores], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    rows = [f"{n},{name},{category},9" for n, (name, category) in enumerate(label_rows())]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]) + "\n", "utf-8")


def label_rows() -> Iterator[tuple[str, int]]:
    yield from ((name, 9) for name in ("general", "sensitive", "questionable", "explicit"))
    yield from ((f"tag_{n}", 0 if n < 8_106 else 4) for n in range(OUTPUTS - 4))


def draw_pictures(folder: Path, count: int) -> None:
    """Photographs (scikit-image's) at mixed sizes as JPEG, PNG and WebP; no two files are the same."""
    from skimage import data

    photographs = [Image.fromarray(data.astronaut()), Image.fromarray(data.chelsea()), Image.fromarray(data.coffee())]
    bases = []
    with tempfile.TemporaryDirectory() as place:
        for number in range(4 * len(SIZES)):
            size = SIZES[number % len(SIZES)]
            large = size[0] * size[1] > 4_000_000
            name = "jpg" if large or number % 4 < 2 else ("png", "webp")[number % 4 - 2]
            path = Path(place) / f"{number}.{name}"
            photographs[number % 3].resize(size, Image.LANCZOS).save(path, quality=90)
            bases.append((name, path.read_bytes()))
    folder.mkdir()
    for number in range(count):
        name, content = bases[number % len(bases)]
        (folder / f"{number:05}.{name}").write_bytes(content + number.to_bytes(4, "little"))


class Stopwatch:
    """Seconds by the clock and of the processor, for each of `count` pictures."""

    def __init__(self) -> None:
        self._clock, self._worked = time.perf_counter(), time.process_time()

    def per(self, count: int) -> Cost:
        return Cost((time.perf_counter() - self._clock) / count, (time.process_time() - self._worked) / count)


def bare(tagger: Tagger, count: int) -> Cost:
    rng = np.random.default_rng(1)
    ready = [rng.random((tagger.max_batch, SIDE, SIDE, 3), dtype=np.float32) * 255 for _ in range(4)]
    watch = Stopwatch()
    for number in range(count // tagger.max_batch):
        tagger.scores(ready[number % 4])
    return watch.per(count // tagger.max_batch * tagger.max_batch)


def ours(tagger: Tagger, folder: Path, memory: list[float]) -> Cost:
    pictures = list_pictures(folder).pictures
    shutil.rmtree(folder / ".trainer", ignore_errors=True)
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(memory, stop))
    watcher.start()
    watch = Stopwatch()
    with ScoreStore(folder) as store:
        report = score_pictures(tagger, store, pictures)
    cost = watch.per(len(pictures))
    stop.set()
    watcher.join()
    assert report.scored == len(pictures)
    return cost


def _watch(memory: list[float], stop: threading.Event) -> None:
    process = psutil.Process()
    while not stop.wait(0.1):
        memory.append(process.memory_info().rss / 2**20)


def serial(tagger: Tagger, folder: Path, count: int) -> Cost:
    pictures = list_pictures(folder).pictures[:count]
    watch = Stopwatch()
    for path in pictures:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        longest = max(rgb.size)
        square = Image.new("RGB", (longest, longest), "white")
        square.paste(rgb, ((longest - rgb.width) // 2, (longest - rgb.height) // 2))
        pixels = np.asarray(square.resize((SIDE, SIDE), Image.BICUBIC), np.float32)[None, :, :, ::-1]
        tagger.scores(np.ascontiguousarray(pixels))
    return watch.per(len(pictures))


def measure_batches(count: int, rounds: int, threads: int, blocks: int) -> None:
    """Ours sees every picture; bare is timed before and after it, serial on a share, which is enough for a rate."""
    costs: dict[str, list[Cost]] = {"bare": [], "ours": [], "serial": []}
    memory: list[list[float]] = []
    with tempfile.TemporaryDirectory() as place:
        build_model(Path(place) / "model", blocks)
        tagger: Any = at(Path(place) / "model").open(device="cpu", threads=threads)
        each = count // rounds
        draw_pictures(Path(place) / "pictures", each)
        bare(tagger, 8)
        for number in range(rounds):
            memory.append([])
            before = bare(tagger, each // 5)
            costs["ours"].append(ours(tagger, Path(place) / "pictures", memory[-1]))
            after = bare(tagger, each // 5)
            costs["bare"].append(Cost((before.clock + after.clock) / 2, (before.worked + after.worked) / 2))
            costs["serial"].append(serial(tagger, Path(place) / "pictures", each // 5))
            told = ", ".join(f"{name} {own[-1].clock:.3f} s" for name, own in costs.items())
            print(f"round {number + 1}: {told} a picture", file=sys.stderr, flush=True)
    tell_batches(f"{count} pictures in {rounds} rounds, {threads or 'all'} threads in the session", costs, memory)


def tell_batches(what: str, costs: dict[str, list[Cost]], memory: list[list[float]]) -> None:
    print(f"\n{what}")
    print(
        "| contender | pictures/s (median) | throughput to bare (median of rounds) | min | max | processor s/picture |"
    )
    print("|---|---|---|---|---|---|")
    for name, own in costs.items():
        ratios = [b.clock / a.clock for a, b in zip(own, costs["bare"])]
        speed, worked = 1 / statistics.median(c.clock for c in own), statistics.median(c.worked for c in own)
        ratio = f"{statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f}"
        print(f"| {name} | {speed:.2f} | {ratio} | {worked:.3f} |")
    gain = statistics.median([a.clock / b.clock for a, b in zip(costs["serial"], costs["ours"])])
    peaks = ", ".join(f"{max(samples):.0f}" for samples in memory)
    print(f"ours is {gain:.2f} times as fast as serial; peak memory of each round, MiB: {peaks}")
    whole = memory[-1]
    quarters = [max(whole[len(whole) * q // 4 : max(1, len(whole) * (q + 1) // 4)]) for q in range(4)]
    print("peak memory of the last round's quarters, MiB: " + ", ".join(f"{value:.0f}" for value in quarters))


def measure_thresholds(pictures: int, kept: int = 150, tags: int = 30) -> None:
    """The preview over scores and captions in memory: what one movement of the slider computes."""
    rng = np.random.default_rng(2)
    names, categories = zip(*label_rows())
    labels = Labels(names, categories)

    rows = []
    for _ in range(pictures):
        chosen = np.sort(rng.choice(OUTPUTS, kept, replace=False))
        rows.append((chosen.astype(np.uint16), (rng.random(kept) ** 3 * 0.98 + 0.011).astype(np.float32)))
    table = ScoreTable.of(labels, rows)
    found = []
    for number in range(pictures):
        text = ", ".join(labels.spaced[int(column)] for column in rng.choice(OUTPUTS, tags, replace=False))
        found.append(Captioned(Path(f"{number}.png"), str(number), Existing.parse(text, {})))
    with tempfile.TemporaryDirectory() as place, ScoreStore(Path(place)) as store:
        opened = Opened(store, table, found, "model", Style())
        print(f"\n{pictures:,} pictures with {kept} kept scores and {tags} tags each, {len(labels):,} labels")
        print("| thresholds | seconds of compute, median | worst | by the clock, median |\n|---|---|---|---|")
        _time_previews("fixed", opened, [Thresholds(0.3 + 0.01 * step) for step in range(12)])
        _time_previews("MCut", opened, [Thresholds(mcut_general=True, mcut_character=True)] * 6)


def _time_previews(name: str, opened: Opened, steps: Sequence[Thresholds]) -> None:
    """The processor's time, and the clock's, which on a machine in use tells of the others, too."""
    compute, clock = [], []
    for thresholds in steps:
        started, worked = time.perf_counter(), time.process_time()
        opened.preview(thresholds, Style(trigger="zork"))
        compute.append(time.process_time() - worked)
        clock.append(time.perf_counter() - started)
    print(f"| {name} | {statistics.median(compute):.3f} | {max(compute):.3f} | {statistics.median(clock):.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=12, help="how costly the model is (12: about 13 GFLOP a picture)")
    parser.add_argument("--thresholds", action="store_true", help="only the thresholds over cached scores")
    options = parser.parse_args()
    if not options.thresholds:
        measure_batches(options.count, options.rounds, options.threads, options.blocks)
    measure_thresholds(10_000)


if __name__ == "__main__":
    main()
