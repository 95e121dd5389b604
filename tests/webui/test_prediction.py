"""What the model predicts, found or said by the job: previews are drawn so, and the log says what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.webui.agreement import MEAN_TOLERANCE, SDXL, exported, ours
from tests.webui.server import PROMPT, Picture, Values, Webui

STILL = {"optimizer__unet_lr": 1e-12, "optimizer__text_encoder_lr": 0.0, "training__max_steps": 1}
"""What is drawn after such a run is the model as it was."""


@pytest.mark.parametrize("sampler", ["DDIM", "Euler"])
def test_previews_are_drawn_as_the_job_says(
    webui: Webui, pristine: Picture, unharmed: None, values: Values, tmp_path: Path, sampler: str
) -> None:
    """The miniature predicts the noise: taken for a v model it draws something else, on both hosts the same."""
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
    difference = np.abs(ours(webui, tmp_path, PROMPT, sampler=sampler, prediction="v") - drawn["v"])
    print(
        f"mean {difference.mean():.3f}, largest {difference.max()}, apart {np.abs(drawn['v'] - drawn['auto']).mean()}"
    )
    assert np.abs(drawn["v"] - drawn["auto"]).mean() > 5 * MEAN_TOLERANCE
    assert difference.mean() < MEAN_TOLERANCE


@pytest.mark.parametrize("sampler", ["DDIM", "Euler"])
def test_previews_of_a_v_model_are_what_the_webui_draws_with_its_yaml(
    sdxl: Webui, values: Values, sampler: str
) -> None:
    """On the schedule of zero terminal SNR, which the WebUI takes when it is told to; with a .yaml that says the noise,
    as without one, the preview is the same and the log says that the WebUI's own pictures come out wrong."""
    right = exported(sdxl, "sdxl-v")
    wrong = right.with_name("told-wrong.safetensors")
    shutil.copyfile(right, wrong)
    text = right.with_suffix(".yaml").read_text(encoding="utf-8")
    text = text.replace("VScaling", "EpsScaling").replace("VWeighting", "EpsWeighting")
    wrong.with_suffix(".yaml").write_text(text, encoding="utf-8")
    drawing = {"preview__prompt": PROMPT, "preview__every": 1, "preview__steps": 20, "preview__seed": 7}
    told, previews, own = {}, {}, {}
    try:
        for path in (right, wrong):
            sdxl.load(path.name)
            ended = sdxl.probe("run", values=values(**STILL | drawing, preview__sampler=sampler))
            assert ended["state"] == "finished", ended
            told[path] = any("predicts v" in line for line in ended["log"])
            with Image.open(Path(ended["output"]).with_suffix(".preview.png")) as image:
                previews[path] = np.asarray(image.convert("RGB")).astype(int)
            zero = {"override_settings": {"sd_noise_schedule": "Zero Terminal SNR"}} if path == right else {}
            own[path] = sdxl.txt2img(PROMPT, steps=20, sampler_name=sampler, **zero).astype(int)
            sdxl.probe("remove_files", paths=[ended["output"]])
    finally:
        sdxl.load(SDXL)
    apart = np.abs(previews[right] - own[right]).mean()
    print(f"apart {apart:.3f} of 255, with the wrong .yaml {np.abs(own[wrong] - own[right]).mean():.1f}")
    assert own[right].std() > 5, "an empty picture shows nothing"
    assert np.array_equal(previews[right], own[right])
    assert np.array_equal(previews[wrong], previews[right])
    assert (told[right], told[wrong]) == (False, True)
    assert np.abs(own[wrong] - own[right]).mean() > 5 * MEAN_TOLERANCE
