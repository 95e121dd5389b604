"""The miniatures of other families in the real WebUI: it loads them by their .yaml and draws what the prompt says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.webui.agreement import SDXL, drawn_alike, exported
from tests.webui.server import Picture, Webui

ASKED = (("red circle", "circle"), ("blue star, white background", "star"), ("cyan triangle", "triangle"))
SEEDS = range(1, 7)


def drawn(server: Webui, words: str, seed: int = 7, **changes: Any) -> Picture:
    return server.txt2img(words, steps=20, sampler_name="Euler a", cfg_scale=4, seed=seed, **changes)


def right(server: Webui, words: str, shape: str, **changes: Any) -> int:
    """How many of SEEDS draw the shape; 93 of 100 do where all is well."""
    return sum(shape_in(drawn(server, words, seed, **changes)) == shape for seed in SEEDS)


def shape_in(picture: Picture) -> str:
    from miniature.judge import Judge
    from miniature.shapes import ALL_SHAPES

    judge = Judge()
    return judge.best(judge.scores([Image.fromarray(picture)])[0], ALL_SHAPES)[0]


@pytest.mark.parametrize(("words", "shape"), ASKED)
def test_the_sdxl_miniature_draws_what_it_is_told(sdxl: Webui, words: str, shape: str) -> None:
    texts = ["FrozenCLIPEmbedderForSDXLWithCustomWords", "FrozenOpenCLIPEmbedder2WithCustomWords"]
    embedders = [*texts, *["ConcatTimestepEmbedderND"] * 3]
    assert sdxl.probe("family") == {"kind": "SDXL", "predicts": "eps", "embedders": embedders}
    assert right(sdxl, words, shape) > len(SEEDS) // 2
    assert np.array_equal(drawn(sdxl, words), drawn(sdxl, words))


def test_both_hosts_draw_the_same(sdxl: Webui, tmp_path: Path) -> None:
    """The emptied negative prompt is zeros in both, the sizes are the picture's."""
    assert drawn_alike(sdxl, tmp_path, "red circle", SDXL).std() > 5, "an empty picture shows nothing"


def test_the_v_predicting_miniature_draws_with_its_yaml(sdxl: Webui) -> None:
    """With the WebUI's own schedule of zero terminal SNR, which it does not choose by itself."""
    sdxl.load(exported(sdxl, "sdxl-v").name)
    try:
        assert sdxl.probe("family")["predicts"] == "v"
        zero = {"sd_noise_schedule": "Zero Terminal SNR"}
        words, shape = ASKED[0]
        assert right(sdxl, words, shape, override_settings=zero) > len(SEEDS) // 2
    finally:
        sdxl.load(SDXL)
