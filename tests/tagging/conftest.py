"""The miniature tagger through our own session, and folders of drawn pictures with their truth."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib_trainer.tagging.models.folders import at
from lib_trainer.tagging.models.registry import Tagger
from lib_trainer.tagging.scores.store import ScoreStore
from miniature.world import ALL_SHAPES, Scene, combos, draw, random_scene

MINI = Path(__file__).parents[2] / "miniature" / "data" / "wd-mini"


@pytest.fixture(scope="session")
def mini() -> Tagger:
    return at(MINI).open(threads=1, device="cpu")


def draw_scenes(folder: Path, count: int, seed: int = 3, side: int = 64) -> list[Scene]:
    """Pictures 000.png… in mixed sizes, and what is on them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, combos(ALL_SHAPES)) for _ in range(count)]
    for number, scene in enumerate(scenes):
        size = [(side, side), (2 * side, 2 * side), (side * 5 // 4, side)][number % 3]
        draw(scene, size).save(folder / f"{number:03}.png")
    return scenes


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Scene]]:
    """24 pictures; tests copy what they change."""
    folder = tmp_path_factory.mktemp("drawn")
    return folder, draw_scenes(folder, 24)


def record_origins(store: ScoreStore, rows: Iterable[tuple[Path, Mapping[str, str]]]) -> None:
    """Origins of tags as earlier versions kept them, in the store of scores."""
    with store._writing() as base:
        for path, origins in rows:
            lines = [(store.key(path), tag, origin) for tag, origin in origins.items()]
            base.executemany("INSERT OR REPLACE INTO origins VALUES (?, ?, ?)", lines)


MakeModel = Callable[..., Path]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Build a folder with a tiny ONNX model: scores are the means of the channels, repeated for each label."""

    def make(
        name: str = "odd",
        side: int = 8,
        labels: Sequence[tuple[str, int]] = (("general", 9), ("long_hair", 0), ("rin", 4)),
        outputs: int | None = None,
        batch: int | str = "batch",
        shape: Sequence[Any] | None = None,
        half: bool = False,
    ) -> Path:
        from onnx import TensorProto, helper, numpy_helper

        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        count = len(labels) if outputs is None else outputs
        rows = np.eye(3) if shape is None else np.ones((1, 3))
        weights = np.tile(rows, (1, count // 3 + 1))[:, :count].astype(np.float16 if half else np.float32) / 255
        nodes = [
            helper.make_node(
                "ReduceMean", ["input"], ["means"], axes=[1, 2] if shape is None else [1, 2, 3], keepdims=0
            ),
            helper.make_node("MatMul", ["means" if shape is None else "column", "weights"], ["output"]),
        ]
        if shape is not None:  # another layout of pixels, which only its shape tells
            nodes.insert(1, helper.make_node("Unsqueeze", ["means", "axis"], ["column"]))
        pixels = helper.make_tensor_value_info("input", kind, shape or [batch, side, side, 3])
        scores = helper.make_tensor_value_info("output", kind, [batch, count])
        constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1]), "axis")]
        graph = helper.make_graph(nodes, name, [pixels], [scores], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        with (folder / "selected_tags.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["tag_id", "name", "category", "count"])
            writer.writerows([[number, *label, 5] for number, label in enumerate(labels)])
        return folder

    return make
