"""The drawn world: deterministic, true to its tags, the same at every size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from miniature.world import (
    ALL_SHAPES,
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    IMPLICATIONS,
    POSITIONS,
    SHAPES,
    Scene,
    caption,
    combos,
    draw,
    is_held_out,
    random_scene,
    tags_of,
    with_implied,
    write_concept,
)


def _inside(picture: Image.Image, scene: Scene) -> np.ndarray:
    """Mask (h, w) of pixels nearer to the figure's colour than to the ground's."""
    pixels = np.asarray(picture, dtype=float)
    figure = np.abs(pixels - COLOURS[scene.colour]).sum(-1)
    ground = np.abs(pixels - BACKGROUNDS[scene.background]).sum(-1)
    return figure < ground


def test_same_seed_same_picture_and_caption() -> None:
    def once(seed: int) -> tuple[bytes, str]:
        rng = np.random.default_rng(seed)
        scene = random_scene(rng, combos())
        return draw(scene).tobytes(), caption(scene, rng)

    assert once(7) == once(7)
    assert once(7) != once(8)


@pytest.mark.parametrize("shape", ALL_SHAPES)
def test_every_shape_is_drawn_differently(shape: str) -> None:
    pictures = {name: np.asarray(draw(Scene(name, "red", "white")), dtype=float) for name in ALL_SHAPES}
    gaps = [np.abs(pictures[shape] - other).mean() for name, other in pictures.items() if name != shape]
    assert min(gaps) > 2.0


@pytest.mark.parametrize("position", [name for name in POSITIONS if name != "centered"])
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (128, 192)])
def test_positions_mean_what_they_say(position: str, size: tuple[int, int]) -> None:
    scene = Scene("circle", "red", "white", size="small", position=position)
    rows, columns = np.nonzero(_inside(draw(scene, size), scene))
    offset = (columns.mean() / size[0] - 0.5, rows.mean() / size[1] - 0.5)
    sideways, down = POSITIONS[position]
    assert offset[0] * sideways + offset[1] * down > 0.1


def test_large_is_larger_than_small() -> None:
    scenes = [Scene("star", "blue", "black", "small", grow=1.0), Scene("star", "blue", "black", "large", grow=0.0)]
    areas = [_inside(draw(scene), scene).sum() for scene in scenes]
    assert areas[1] > 1.4 * areas[0]


def test_a_larger_drawing_scaled_down_is_the_small_drawing() -> None:
    scene = Scene("heart", "pink", "black", turn=4.0)
    small = np.asarray(draw(scene, (64, 64)), dtype=float)
    large = np.asarray(draw(scene, (256, 256)).resize((64, 64), Image.BOX), dtype=float)
    assert np.abs(small - large).mean() < 1.0


def test_edges_are_smooth() -> None:
    scene = Scene("circle", "red", "white")
    levels = np.unique(np.asarray(draw(scene))[..., 1])
    assert len(levels) > 8


def test_tags_carry_their_implications() -> None:
    tags = tags_of(Scene("star", "red", "white", "small", "left"))
    assert tags == ["star", "polygon", "red", "white background", "simple background", "small", "left"]
    assert with_implied(["ring", "circle"]) == ["ring", "round", "circle"]
    assert set(ALL_SHAPES) <= set(IMPLICATIONS)


def test_figures_always_differ_from_their_ground() -> None:
    assert all(colour != ground for _, colour, ground in combos(ALL_SHAPES))
    assert len(SHAPES) >= 8 and len(HELD_OUT) >= 2 and not set(SHAPES) & set(HELD_OUT)


def test_some_combos_are_held_out_but_no_single_word_is() -> None:
    seen = [combo for combo in combos() if not is_held_out(combo)]
    assert 0.05 < 1 - len(seen) / len(combos()) < 0.2
    assert {word for combo in seen for word in combo} == {word for combo in combos() for word in combo}


def test_captions_shuffle_drop_and_compound() -> None:
    rng = np.random.default_rng(0)
    scene = Scene("circle", "red", "white")
    texts = [caption(scene, rng) for _ in range(200)]
    assert any(text.startswith("red circle, ") for text in texts)
    assert any("red circle" not in text for text in texts)
    assert len(set(texts)) > 100
    allowed = {*tags_of(scene), "red circle", ""}
    assert {tag for text in texts for tag in text.split(", ")} <= allowed


def test_a_concept_folder_names_the_trigger_and_not_the_shape(tmp_path: Path) -> None:
    folder = write_concept(tmp_path, shape="heart", trigger="zorb", count=6, repeats=5)
    assert folder.name == "5_zorb"
    pictures, captions = sorted(folder.glob("*.png")), sorted(folder.glob("*.txt"))
    assert [p.stem for p in pictures] == [c.stem for c in captions] and len(pictures) == 6
    for number, path in enumerate(captions):
        tags = path.read_text(encoding="utf-8").split(", ")
        assert tags[0] == "zorb" and not {"heart", "round"} & set(tags)
        assert ("red", "blue")[number % 2] in tags
    again = write_concept(tmp_path / "again", shape="heart", trigger="zorb", count=6, repeats=5)
    assert [p.read_bytes() for p in pictures] == [p.read_bytes() for p in sorted(again.glob("*.png"))]
