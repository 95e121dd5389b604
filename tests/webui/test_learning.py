"""What one looks at around a run, in the real WebUI: held-out pictures, masks, previews of several prompts with a grid,
saved steps at several weights, and a search for a rate. The host is as it was after each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.training.test_previews import contains
from tests.webui.server import PROMPT, Picture, Values, Webui

SEEN = {
    "preview__prompt": "red circle --s 3 --d 7\nblue square --h 128",
    "preview__every": 1,
    "preview__at_start": True,
    "preview__sampler": "DDIM",
}
LEARNS = {"optimizer__unet_lr": 0.02, "optimizer__text_encoder_lr": 0.02}


def pictures_in(folder: Path) -> dict[str, Image.Image]:
    found = {}
    for path in sorted(folder.glob("step*.png")):
        with Image.open(path) as picture:
            found[path.name] = picture.convert("RGB")
    return found


def test_held_out_pictures_masks_and_previews_of_several_prompts(
    webui: Webui, pictures: Path, values: Values, unharmed: None, tmp_path: Path
) -> None:
    masked = tmp_path / "masked"
    masked.mkdir()
    for path in pictures.iterdir():
        (masked / path.name).write_bytes(path.read_bytes())
        if path.suffix == ".png":
            mask = Image.new("L", (64, 64), 0)
            mask.paste(255, (0, 0, 32, 64))
            mask.save(masked / f"{path.stem}-masklabel.png")
    changes: dict[str, Any] = {
        "dataset__folder": str(masked), "masks__source": "file", "validation__pictures": "share",
        "validation__every": 1, "training__max_steps": 2,
    }  # fmt: skip
    ended = webui.probe("run", values=values(**changes | SEEN | LEARNS))
    assert ended["state"] == "finished", ended
    assert ended["held_out"] == 3 and len(ended["previews"]) == 6
    assert len(set(ended["previews"])) == 6, "what is learned is seen in each of them"
    drawn = pictures_in(Path(ended["grid"]).parent)
    assert list(drawn) == [f"step{step:08d}-{number}.png" for step in range(3) for number in (1, 2)]
    assert [one.size for one in drawn.values()] == [(64, 64), (64, 128)] * 3
    with Image.open(ended["grid"]) as grid:
        assert contains(grid, list(drawn.values()))
    start = np.asarray(drawn["step00000000-1.png"])
    plain = webui.txt2img("red circle", seed=7, steps=3, width=64, height=64)
    assert np.array_equal(start, plain), "before the first step it is what txt2img draws with these settings"


@pytest.mark.parametrize("kind", ["lora", "embedding", "hypernetwork"])
def test_saved_steps_at_several_weights(
    webui: Webui, values: Values, unharmed: None, pristine: Picture, kind: str
) -> None:
    own = {
        "lora": LEARNS,
        "embedding": {"embedding__learning_rate": 0.3},
        "hypernetwork": {"hypernetwork__learning_rate": 0.02},
    }[kind]
    name = f"zrk-grid-{kind}"
    job = values(network__kind=kind, output__name=name, output__save_every=1, training__max_steps=2,
                 preview__prompt="", preview__sampler="DDIM", preview__every=0, **own)  # fmt: skip
    ended = webui.probe("run", values=job)
    assert ended["state"] == "finished", ended
    prompt = "red circle" if kind != "embedding" else f"{name} circle"
    grid = webui.probe("steps_grid", values=job, settings={"weights": "0, 0.5, 1", "prompt": f"{prompt} --s 2"})
    assert grid["state"] == "finished", grid
    call = {"lora": "red circle <lora:{}:{}>", "embedding": "{} circle", "hypernetwork": "red circle <hypernet:{}:{}>"}
    weights = [""] if kind == "embedding" else ["0.5", "1"]
    seed, size = job.get("preview.seed", 1), {"width": 64, "height": 64}
    drawn = [
        webui.txt2img(call[kind].format(stem, weight), seed=seed, steps=2, **size)
        for stem in (f"{name}-step00000001", name) for weight in weights
    ]  # fmt: skip
    assert len({one.tobytes() for one in drawn}) == len(drawn), "the files and weights differ"
    with Image.open(grid["output"]) as sheet:
        assert contains(sheet, [Image.fromarray(one) for one in drawn]), "cells are what txt2img draws with these calls"
    webui.probe("remove_files", paths=[str(path) for path in Path(ended["output"]).parent.glob(f"{name}*")])


def test_the_last_pictures_lora_is_not_drawn_on_and_does_not_stay(
    webui: Webui, values: Values, unharmed: None, pristine: Picture
) -> None:
    """The Lora extension's weights are merged into the model when the grid begins, which trains nothing before."""
    job = values(output__name="zrk-after", training__max_steps=1, preview__sampler="DDIM", preview__steps=4)
    assert webui.probe("run", values=job)["state"] == "finished"
    changed = webui.txt2img(f"{PROMPT} <lora:probe:1>")
    assert not np.array_equal(changed, pristine) and webui.probe("facts")["merged"], "nothing is merged to be left"
    settings = {"weights": "0", "prompt": f"{PROMPT} --d 7 --l 7"}
    grid = webui.probe("steps_grid", values=job, settings=settings)
    assert grid["state"] == "finished", grid
    with Image.open(grid["output"]) as sheet:
        assert contains(sheet, [Image.fromarray(pristine)]), "at weight 0 the model alone draws"
    assert webui.probe("compare_snapshot", label="pristine") == []
    assert np.array_equal(webui.txt2img(), pristine)
    assert np.array_equal(webui.txt2img(f"{PROMPT} <lora:probe:1>"), changed), "asked for again, it is there again"


def test_a_grid_under_medvram_leaves_the_model_where_pictures_are_drawn(
    webui: Webui, values: Values, unharmed: None
) -> None:
    job = values(output__name="zrk-low", training__max_steps=1, preview__sampler="DDIM", preview__steps=1)
    assert webui.probe("run", values=job)["state"] == "finished"
    webui.probe("leave", kind="medvram")
    grid = webui.probe("moved_by_grid", values=job, settings={"weights": "0, 1", "prompt": PROMPT})
    assert grid["state"] == "finished" and grid["moves"] == [], "only a backward pass needs all of it on the device"


def test_a_rate_is_looked_for(webui: Webui, values: Values, unharmed: None) -> None:
    found = webui.probe("find_rate", values=values(training__max_steps=1))
    assert found["state"] == "finished" and not found["error"] and found["tried"] >= 3, found
