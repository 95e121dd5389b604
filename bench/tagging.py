"""Tagging against the bare onnxruntime session, against a serial loop, and the thresholds over cached scores.

    python -m bench.tagging --count 1000 --threads 1
    python -m bench.tagging --thresholds

The model is wd-vit-tagger-v3's network (ViT-B/16, 448×448×3 in, 10,861 outputs, free batch dimension) with random
weights; --blocks 2 is a far cheaper one, beside which everything around the model weighs more. Contenders, in turn
within each round, so that a machine that slows down slows all of them:
  bare    session.run on batches that are ready in memory: what no tagger can beat
  ours    `score_pictures`: reading, hashing, decoding, fitting, the session, and the scores into SQLite
  serial  one picture after the other, padded at full size, batch 1: what the taggers of the WebUI do
With --threads 1 the session leaves the other cores to the decoders, as a graphics card does. --card MS goes further:
in place of the session stands a wait of so many milliseconds a picture, which shows how well the rest overlaps with a
device that needs no processor, also on a machine whose cores others use.
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

from lib_trainer.captions.document import Caption
from lib_trainer.tagging.captions.effect import Opened
from lib_trainer.tagging.captions.existing import Captioned
from lib_trainer.tagging.captions.style import Existing, Style
from lib_trainer.tagging.models.folders import at
from lib_trainer.tagging.models.labels import Labels
from lib_trainer.tagging.models.registry import Tagger
from lib_trainer.tagging.pictures import list_pictures
from lib_trainer.tagging.scores.pipeline import score_pictures
from lib_trainer.tagging.scores.store import ScoreStore
from lib_trainer.tagging.scores.table import ScoreTable, Thresholds


class Cost(NamedTuple):
    clock: float
    worked: float


SIDE, OUTPUTS = 448, 10_861
SIZES = ((512, 768), (1024, 1024), (832, 1216), (1600, 1200), (640, 480), (1920, 1080), (2480, 3508), (4000, 3000))
"""0.3 to 12 megapixels."""


class Graph:
    """Nodes and random weights of a network on the way to a file."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._rng = np.random.default_rng(0)

    def constant(self, values: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weight(self, *shape: int) -> str:
        fan = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
        return self.constant(self._rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(fan)))

    def add(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        from onnx import helper

        out = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def linear(self, x: str, *shape: int) -> str:
        bias = self.constant(np.zeros(shape[1], np.float32))
        return self.add("Add", self.add("MatMul", x, self.weight(*shape)), bias)

    def norm(self, x: str, width: int) -> str:
        scale, shift = self.constant(np.ones(width, np.float32)), self.constant(np.zeros(width, np.float32))
        return self.add("LayerNormalization", x, scale, shift, axis=-1)

    def gelu(self, x: str) -> str:
        half, one, root = (self.constant(np.float32(value)) for value in (0.5, 1.0, np.sqrt(2.0)))
        inner = self.add("Add", self.add("Erf", self.add("Div", x, root)), one)
        return self.add("Mul", self.add("Mul", x, inner), half)

    def block(self, x: str, width: int, heads: int) -> str:
        """A block of a vision transformer: attention, then a network of four times the width."""
        split, joined = self.constant(np.array([0, 0, heads, width // heads])), self.constant(np.array([0, 0, width]))
        given = self.norm(x, width)
        parts = [self.add("Reshape", self.linear(given, width, width), split) for _ in range(3)]
        query = self.add("Transpose", parts[0], perm=[0, 2, 1, 3])
        key = self.add("Transpose", parts[1], perm=[0, 2, 3, 1])
        value = self.add("Transpose", parts[2], perm=[0, 2, 1, 3])
        scale = self.constant(np.float32((width // heads) ** -0.5))
        seen = self.add("Softmax", self.add("Mul", self.add("MatMul", query, key), scale), axis=-1)
        mixed = self.add("Transpose", self.add("MatMul", seen, value), perm=[0, 2, 1, 3])
        x = self.add("Add", x, self.linear(self.add("Reshape", mixed, joined), width, width))
        inner = self.gelu(self.linear(self.norm(x, width), width, 4 * width))
        return self.add("Add", x, self.linear(inner, 4 * width, width))


def build_model(folder: Path, blocks: int) -> None:
    """wd-vit-tagger-v3's network, ViT-B/16 at 448²: 784 patches, `blocks` of width 768, 12 heads; random weights."""
    from onnx import TensorProto, helper

    width, heads, graph = 768, 12, Graph()
    scaled = graph.add("Mul", "input", graph.constant(np.float32(1 / 127.5)))
    patches = graph.add(
        "Conv", graph.add("Transpose", scaled, perm=[0, 3, 1, 2]), graph.weight(width, 3, 16, 16), strides=[16, 16]
    )
    flat = graph.add("Reshape", patches, graph.constant(np.array([0, width, (SIDE // 16) ** 2])))
    x = graph.add("Transpose", flat, perm=[0, 2, 1])
    for _ in range(blocks):
        x = graph.block(x, width, heads)
    pooled = graph.add("ReduceMean", graph.norm(x, width), axes=[1], keepdims=0)
    logits = graph.add("Sub", graph.linear(pooled, width, OUTPUTS), graph.constant(np.float32(3)))
    graph.add("Sigmoid", logits, out="output")
    pixels = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", SIDE, SIDE, 3])
    scores = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", OUTPUTS])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "shape", [pixels], [scores], graph.weights),
        opset_imports=[helper.make_opsetid("", 17)],
    )
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


class Waiting:
    """A tagger whose scores cost time and no processor, as on a card. The scores mean nothing."""

    def __init__(self, tagger: Any, milliseconds: float) -> None:
        self._tagger, self._seconds = tagger, milliseconds / 1000
        self._row = np.random.default_rng(3).random(OUTPUTS, dtype=np.float32) ** 6

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tagger, name)

    def scores(self, batch: Any) -> Any:
        time.sleep(self._seconds * len(batch))
        return np.tile(self._row, (len(batch), 1))


def measure_batches(count: int, rounds: int, threads: int, blocks: int, card: float) -> None:
    """Ours sees every picture; bare is timed before and after it, serial on a share, which is enough for a rate."""
    costs: dict[str, list[Cost]] = {"bare": [], "ours": [], "serial": []}
    memory: list[list[float]] = []
    with tempfile.TemporaryDirectory() as place:
        build_model(Path(place) / "model", blocks)
        tagger: Any = at(Path(place) / "model").open(device="cpu", threads=threads)
        if card:
            tagger = Waiting(tagger, card)
        each = count // rounds
        draw_pictures(Path(place) / "pictures", each)
        bare(tagger, 8)
        for number in range(rounds):
            memory.append([])
            before = bare(tagger, each // 10)
            costs["ours"].append(ours(tagger, Path(place) / "pictures", memory[-1]))
            after = bare(tagger, each // 10)
            costs["bare"].append(Cost((before.clock + after.clock) / 2, (before.worked + after.worked) / 2))
            costs["serial"].append(serial(tagger, Path(place) / "pictures", each // 10))
            told = ", ".join(f"{name} {own[-1].clock:.3f} s" for name, own in costs.items())
            print(f"round {number + 1}: {told} a picture", file=sys.stderr, flush=True)
    device = f"a wait of {card:g} ms a picture" if card else f"{threads or 'all'} threads in the session"
    tell_batches(f"{count} pictures in {rounds} rounds, {device}", costs, memory)


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
        found.append(Captioned(Path(f"{number}.png"), str(number), Existing(Caption.parse(text))))
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
    parser.add_argument("--blocks", type=int, default=12, help="the network's depth: 12 as the real one's")
    parser.add_argument("--card", type=float, default=0, metavar="MS", help="a wait in place of the model")
    parser.add_argument("--thresholds", action="store_true", help="only the thresholds over cached scores")
    options = parser.parse_args()
    if not options.thresholds:
        measure_batches(options.count, options.rounds, options.threads, options.blocks, options.card)
    measure_thresholds(10_000)


if __name__ == "__main__":
    main()
