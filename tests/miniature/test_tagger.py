"""The tiny tagger: files shaped like a WD tagger's, and right about drawn scenes."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from miniature.judge import DATA, prepare
from miniature.tagger_model import truths
from miniature.world import ALL_SHAPES, HELD_OUT, combos, draw, random_scene

if TYPE_CHECKING:
    from miniature.judge import Judge


def test_files_are_shaped_like_wds(tagger: Judge) -> None:
    pixels, scores = tagger.session.get_inputs()[0], tagger.session.get_outputs()[0]
    assert pixels.type == "tensor(float)" and pixels.shape[1:] == [64, 64, 3]
    assert isinstance(pixels.shape[0], str), "the batch dimension is dynamic"
    with open(DATA / "wd-mini" / "selected_tags.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["tag_id", "name", "category", "count"]
    assert len(rows) == scores.shape[1] and {row["category"] for row in rows} == {"9", "0", "4"}
    ratings = [row["name"] for row in rows if row["category"] == "9"]
    assert ratings == ["general", "sensitive", "questionable", "explicit"]
    assert "white_background" in {row["name"] for row in rows} and not any(" " in row["name"] for row in rows)
    assert len({row["tag_id"] for row in rows}) == len(rows)


def test_preprocessing_is_wds() -> None:
    picture = Image.new("RGBA", (32, 16), (255, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    pixels = prepare(picture)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.float32
    assert pixels[2, 2].tolist() == [255, 255, 255], "padded with white"
    assert pixels[32, 32].tolist() == [0, 0, 255], "BGR, 0 to 255"


@pytest.mark.parametrize(("size", "least"), [((64, 64), 0.98), ((128, 128), 0.98), ((96, 64), 0.95), ((80, 64), 0.97)])
def test_precision_and_recall_on_drawn_scenes(tagger: Judge, size: tuple[int, int], least: float) -> None:
    rng = np.random.default_rng(77)
    scenes = [random_scene(rng, combos(ALL_SHAPES)) for _ in range(150)]
    scores = tagger.scores([draw(scene, size) for scene in scenes])
    wanted = np.array([[name.replace(" ", "_") in truths(scene) for name in tagger.names] for scene in scenes])
    found = scores > 0.5
    assert (found & wanted).sum() / found.sum() > least
    assert (found & wanted).sum() / wanted.sum() > least


@pytest.mark.parametrize("shape", HELD_OUT)
def test_held_out_shapes_are_known(tagger: Judge, shape: str) -> None:
    rng = np.random.default_rng(78)
    scores = tagger.scores([draw(random_scene(rng, combos((shape,)))) for _ in range(40)])
    right = [tagger.best(row, ALL_SHAPES)[0] == shape for row in scores]
    assert np.mean(right) > 0.94


def test_a_plain_ground_has_no_figure(tagger: Judge) -> None:
    scores = tagger.scores([Image.new("RGB", (64, 64), "white")])[0]
    assert tagger.best(scores, ALL_SHAPES)[1] < 0.5
    assert scores[tagger.names.index("white background")] > 0.5


def test_batches_and_singles_agree(tagger: Judge) -> None:
    rng = np.random.default_rng(79)
    pictures = [draw(random_scene(rng, combos())) for _ in range(5)]
    together = tagger.scores(pictures)
    alone = np.concatenate([tagger.scores([picture]) for picture in pictures])
    np.testing.assert_allclose(together, alone, atol=1e-5)
