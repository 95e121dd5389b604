"""What a job says that the model predicts: the WebUI's sampler draws previews so, and the log says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.webui.server import Picture, Values, Webui
from tests.webui.test_agreement import MEAN_TOLERANCE

PROMPT = "red circle"
STILL = {"optimizer__unet_lr": 1e-12, "optimizer__text_encoder_lr": 0.0, "training__max_steps": 1}
"""What is drawn after such a run is the model as it was."""


@pytest.mark.parametrize("sampler", ["DDIM", "Euler"])
def test_previews_are_drawn_as_the_job_says(
    webui: Webui, pristine: Picture, unharmed: None, values: Values, tmp_path: Path, sampler: str
) -> None:
    """The miniature predicts the noise: taken for a v model it draws something else, on both hosts the same."""
    from lib_trainer.host.standalone.host import StandaloneHost
    from lib_trainer.ports import PreviewRequest

    drawn = {}
    for prediction in ("auto", "v"):
        changes = {"model__prediction": prediction, "preview__prompt": PROMPT, "preview__every": 1}
        changes |= {"preview__steps": 20, "preview__sampler": sampler, "preview__seed": 7}
        ended: dict[str, Any] = webui.probe("run", values=values(**STILL | changes))
        assert ended["state"] == "finished", ended
        assert np.array_equal(webui.txt2img(), pristine), "the user's own pictures are what they were"
        told = any("predicts v" in line for line in ended["log"])
        assert told is (prediction == "v"), "the log says that the WebUI's own pictures come out as noise"
        with Image.open(Path(ended["output"]).with_suffix(".preview.png")) as image:
            drawn[prediction] = np.asarray(image.convert("RGB")).astype(int)
    host = StandaloneHost(webui.models / "mini-sd1.safetensors", tmp_path)
    request = PreviewRequest(
        PROMPT, width=64, height=64, steps=20, cfg_scale=7, sampler=sampler, seed=7, prediction="v"
    )
    ours = np.asarray(host.preview(request)).astype(int)
    difference = np.abs(ours - drawn["v"])
    print(
        f"mean {difference.mean():.3f}, largest {difference.max()}, apart {np.abs(drawn['v'] - drawn['auto']).mean()}"
    )
    assert np.abs(drawn["v"] - drawn["auto"]).mean() > 5 * MEAN_TOLERANCE
    assert difference.mean() < MEAN_TOLERANCE
