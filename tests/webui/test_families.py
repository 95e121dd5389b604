"""The miniatures of other families in the real WebUI: it loads them by their .yaml and draws what the prompt says."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.webui.server import Picture, Webui

ASKED = (("red circle", "circle"), ("blue star, white background", "star"), ("cyan triangle", "triangle"))


def drawn(server: Webui, words: str) -> Picture:
    return server.txt2img(words, steps=20, sampler_name="Euler a", cfg_scale=4)


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
    picture = drawn(sdxl, words)
    assert shape_in(picture) == shape
    assert np.array_equal(drawn(sdxl, words), picture)
