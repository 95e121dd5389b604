"""Tiled VAE in the real WebUI: the same pictures with and without it, and no trace where it is off.

The budget of a few MiB, far below what the miniature's VAE takes, makes "Automatic" act on pictures of test size.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.webui.server import PRECISION, PROMPT, Picture, ProbeError, Webui, take_pristine

TITLE = "Tiled VAE (row bands)"
ON: dict[str, Any] = {"alwayson_scripts": {TITLE: {"args": [True, "Always"]}}}
BUDGET = 0.0095 / (2 if PRECISION != "full" else 1)
"""GiB that are too few for the untiled VAE and enough for bands."""
BASE: dict[str, Any] = {
    "prompt": PROMPT, "seed": 7, "steps": 4, "width": 96, "height": 136, "sampler_name": "DDIM",
    "scheduler": "Automatic", "cfg_scale": 7, "denoising_strength": 0.6,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def known_to_later_tests(started: Webui, pristine: Picture) -> Iterator[None]:
    """These tests switch checkpoints and reload the page: the WebUI has built its model anew."""
    yield
    assert np.array_equal(started.txt2img(), pristine)
    take_pristine(started)


@pytest.fixture(autouse=True)
def mended(webui: Webui) -> Iterator[None]:
    webui.probe("vae_api")
    webui.probe("vae_last")
    yield
    webui.probe("vae_mend")
    assert webui.probe("vae_trace")["job"] is False or webui.txt2img() is not None
    assert webui.probe("vae_trace")["job"] is False


def draw(webui: Webui, path: str = "txt2img", **changes: Any) -> tuple[Picture, dict[str, Any]]:
    """Pixels of the first picture and the answer."""
    answer = webui.post(f"/sdapi/v1/{path}", BASE | changes)
    with Image.open(BytesIO(base64.b64decode(answer["images"][0]))) as image:
        return np.asarray(image.convert("RGB")), answer


def png(picture: Picture) -> str:
    data = BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def jobs(given: Picture) -> dict[str, tuple[str, dict[str, Any], set[str]]]:
    """Name: address, request, and what runs in bands."""
    mask = np.zeros((136, 96, 3), np.uint8)
    mask[40:90, 20:70] = 255
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "hr_second_pass_steps": 2}
    source = {"init_images": [png(given)]}
    return {
        "txt2img": ("txt2img", {}, {"decoder"}),
        "a batch": ("txt2img", {"batch_size": 2}, {"decoder"}),
        "hires fix": ("txt2img", hires, {"decoder"}),
        "hires fix with an upscaler of pixels": ("txt2img", hires | {"hr_upscaler": "Lanczos"}, {"decoder", "encoder"}),
        "img2img": ("img2img", source, {"decoder", "encoder"}),
        "inpainting": ("img2img", source | {"mask": png(mask), "inpainting_fill": 1}, {"decoder", "encoder"}),
        "inpainting at full resolution": (
            "img2img", source | {"mask": png(mask), "inpaint_full_res": True}, {"decoder", "encoder"},
        ),
        "seamless": ("txt2img", {"tiling": True}, {"decoder"}),
        "SD upscale": (
            "img2img",
            source | {"script_name": "SD upscale", "script_args": ["", 16, "Lanczos", 2.0], "width": 64, "height": 64},
            {"decoder", "encoder"},
        ),
    }  # fmt: skip


NAMES = list(jobs(np.zeros((136, 96, 3), np.uint8)))


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_the_same(webui: Webui, name: str) -> None:
    given, _ = draw(webui)
    path, body, parts = jobs(given)[name]
    plain, _ = draw(webui, path, **body)
    assert webui.probe("vae_last") == []
    banded, answer = draw(webui, path, **body, **ON)
    assert set(webui.probe("vae_last")) == parts
    assert banded.shape == plain.shape
    again, _ = draw(webui, path, **body)
    own = int(np.abs(again.astype(int) - plain).max())
    assert own == 0 or name == "SD upscale", "only that script draws differently each time"
    rounding = rounded(webui, path, body, plain) if PRECISION != "full" and "encoder" in parts else 0
    difference = int(np.abs(banded.astype(int) - plain).max())
    print(f"{name}: bands change {difference} of 255, the VAE's own half precision {rounding}")
    assert difference <= 1 + 2 * own + rounding
    assert "VAE bands: Always" in answer["info"]
    other, _ = draw(webui, path, **body, seed=8)
    assert np.abs(other.astype(int) - plain).max() > 8, "any picture would have passed"


def rounded(webui: Webui, path: str, body: dict[str, Any], plain: Picture) -> int:
    """What half precision in the VAE changes of a picture, of 255, by a second way of computing it: in fp32.

    A picture that is encoded is rounded differently in bands, and the steps that follow carry it on. Measured, bands
    against rounding: img2img 2 and 2, inpainting 3 and 3, at full resolution 3 and 2.
    """
    webui.probe("vae_break", kind="fp32")
    whole, _ = draw(webui, path, **body)
    webui.probe("vae_mend")
    return int(np.abs(whole.astype(int) - plain).max())


def test_a_checkpoint_that_changes_in_the_middle(webui: Webui) -> None:
    """The refiner loads another checkpoint while the job runs."""
    change = {"refiner_checkpoint": "other.safetensors", "refiner_switch_at": 0.5}
    plain, _ = draw(webui, **change)
    banded, _ = draw(webui, **change, **ON)
    assert webui.probe("vae_last") == ["decoder"]
    assert np.abs(banded.astype(int) - plain).max() <= 1
    assert np.abs(draw(webui)[0].astype(int) - plain).max() > 1, "the refiner did nothing"


@pytest.mark.parametrize(
    ("arguments", "acts"),
    [
        ([True, "Always"], True),
        ([True], False),
        ([True, "Automatic", BUDGET], True),
        ([{"mode": "always"}], True),
        ([{"mode": "automatic", "budget_gib": BUDGET}], True),
        ([{"enabled": False, "mode": "always"}], False),
        ([False, "Always"], False),
        ([{"mode": "off"}], False),
    ],
)
def test_arguments_of_the_api(webui: Webui, arguments: list[Any], acts: bool) -> None:
    plain, _ = draw(webui)
    picture, _ = draw(webui, alwayson_scripts={TITLE: {"args": arguments}})
    assert (webui.probe("vae_last") == ["decoder"]) is acts
    assert np.abs(picture.astype(int) - plain).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "said"), [([{"tile_size": 96}], "no argument 'tile_size'"), ([True, "Sometimes"], "not known")]
)
def test_arguments_that_are_none(webui: Webui, arguments: list[Any], said: str) -> None:
    before = webui.log.stat().st_size
    _, answer = draw(webui, alwayson_scripts={TITLE: {"args": arguments}})
    assert said in webui.tail(before)
    assert webui.probe("vae_last") == []
    assert "VAE bands" not in answer["info"]


def test_a_budget_that_is_too_small_says_so(webui: Webui) -> None:
    plain, _ = draw(webui)
    before = webui.log.stat().st_size
    picture, answer = draw(webui, alwayson_scripts={TITLE: {"args": [True, "Always", 1e-6]}})
    assert "budget of less than 0.01 GiB is too small" in webui.tail(before)
    assert "VAE bands: left out" in answer["info"]
    assert np.array_equal(picture, plain)


def test_it_leaves_no_trace_when_off(webui: Webui) -> None:
    plain, _ = draw(webui)
    draw(webui, **ON)
    trace = webui.probe("vae_trace")
    assert not trace["job"] and not trace["instance"] and trace["textinfo"] is None
    assert trace["replaced"] == [True] * 4 and trace["nested"] == [False] * 4
    webui.probe("vae_last")
    picture, answer = draw(webui)
    assert np.array_equal(picture, plain)
    assert webui.probe("vae_last") == []
    assert "VAE bands" not in answer["info"]


def test_a_failed_job_and_then_a_plain_one(webui: Webui) -> None:
    """The WebUI calls nobody when a job fails; what it had asked for must not act on the next one."""
    plain, _ = draw(webui)
    webui.probe("vae_break", kind="error")
    with pytest.raises(ProbeError, match="a test broke this job"):
        draw(webui, **ON)
    webui.probe("vae_mend")
    webui.probe("vae_last")
    picture, _ = draw(webui)
    assert webui.probe("vae_last") == []
    assert np.array_equal(picture, plain)


@pytest.mark.parametrize("on", [False, True])
def test_a_vae_that_gives_nan_is_the_hosts_affair(webui: Webui, on: bool) -> None:
    webui.post("/sdapi/v1/options", {"auto_vae_precision": False})  # half precision would be tried again in fp32
    webui.probe("vae_break", kind="nan")
    try:
        with pytest.raises(ProbeError, match="NansException"):
            draw(webui, **(ON if on else {}))
    finally:
        webui.post("/sdapi/v1/options", {"auto_vae_precision": True})
    assert webui.probe("vae_last") == (["decoder"] if on else [])


def test_the_hosts_second_try_in_bf16(webui: Webui) -> None:
    """A VAE that gives NaN in the first precision: the WebUI converts it and decodes again, in bands both times."""
    webui.post("/sdapi/v1/options", {"auto_vae_precision_bfloat16": True})
    plain, _ = draw(webui)
    webui.probe("vae_break", kind="nan at first")
    try:
        picture, _ = draw(webui, **ON)
        assert webui.probe("vae_last") == ["decoder", "decoder"]
        assert webui.probe("vae_mend") == "torch.bfloat16"
    finally:
        webui.probe("vae_mend")
        webui.post("/sdapi/v1/options", {"auto_vae_precision_bfloat16": False})
    difference = np.abs(picture.astype(int) - plain)
    assert 0 < difference.mean() < 5, "bf16 is close to the first precision and not the same"
    assert np.array_equal(draw(webui)[0], plain)


def test_parameters_are_pasted_back(webui: Webui) -> None:
    """The API reads a picture's parameters as the page's paste button does."""
    _, answer = draw(webui, alwayson_scripts={TITLE: {"args": [True, "Always", 0.5, True]}})
    text = json.loads(answer["info"])["infotexts"][0]
    assert "VAE bands: Always, VAE bands budget: 0.5, VAE bands attention: windowed" in text
    webui.probe("vae_last")
    _, answer = draw(webui, infotext=text)
    assert webui.probe("vae_last") == ["decoder"]
    assert json.loads(answer["info"])["infotexts"][0] == text
    draw(webui, infotext=draw(webui)[1]["info"])
    assert webui.probe("vae_last") == []


def test_interrupt_gives_a_coarse_picture_at_once(webui: Webui) -> None:
    plain, _ = draw(webui)
    before = webui.log.stat().st_size
    webui.probe("vae_slow", interrupt=True)
    picture, answer = draw(webui, **ON)
    assert "VAE bands: interrupted" in answer["info"]
    assert "coarse" in webui.tail(before)
    assert webui.probe("vae_last") == [], "it went on to the end"
    assert picture.shape == plain.shape
    assert np.abs(picture.astype(int) - plain).mean() < 25, "it is not of this picture's colours"


def test_an_interrupt_from_before_the_vae_does_not_stop_it(webui: Webui) -> None:
    """What was drawn so far is decoded whole, as without Tiled VAE."""
    body = BASE | ON | {"steps": 60}
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(webui.post("/sdapi/v1/txt2img", body)))
    thread.start()
    webui.until(lambda: webui.get("/sdapi/v1/progress")["state"]["sampling_step"] > 2, "the third step")
    webui.post("/sdapi/v1/interrupt", {})
    thread.join(60)
    assert webui.probe("vae_last") == ["decoder"]
    assert "VAE bands: Always" in answers[0]["info"]


def test_the_progress_bar_says_how_far_the_vae_is(webui: Webui) -> None:
    webui.probe("vae_slow", interrupt=False)
    draw(webui, **ON)
    texts = webui.probe("vae_state_now")
    assert any(text and text.startswith("VAE decoding: ") for text in texts)
    assert webui.probe("vae_trace")["textinfo"] is None


def test_live_previews_decode_in_bands_too(webui: Webui) -> None:
    """The full decoder, from the thread that answers the progress bar."""
    setting = {"show_progress_type": "Full", "show_progress_every_n_steps": 1, "live_previews_enable": True}
    body = BASE | ON | {"steps": 40, "override_settings": setting}
    plain, _ = draw(webui, steps=40)
    webui.probe("vae_last")
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(webui.post("/sdapi/v1/txt2img", body)))
    thread.start()
    while thread.is_alive():
        webui.get("/sdapi/v1/progress")
    seen = webui.probe("vae_last")
    assert len(seen) > 1 and set(seen) == {"decoder"}
    with Image.open(BytesIO(base64.b64decode(answers[0]["images"][0]))) as image:
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - plain).max() <= 1


@pytest.mark.parametrize("circular", [False, True])
def test_the_classes_of_sdxl(webui: Webui, circular: bool) -> None:
    differences = webui.probe("vae_sgm", circular=circular)
    assert set(differences) == {"Encoder", "Decoder"}
    assert all(0 <= one <= 1e-4 for one in differences.values())


def test_beside_the_other_extension_of_that_name(webui: Webui) -> None:
    """The API finds each script by its own title."""
    titles = webui.probe("vae_api")
    assert {"Tiled VAE", TITLE} <= set(titles)
    _, answer = draw(webui, alwayson_scripts={"Tiled VAE": {"args": [True]}, **ON["alwayson_scripts"]})
    assert "The other one: on" in answer["info"] and "VAE bands: Always" in answer["info"]
    webui.probe("vae_last")
    _, answer = draw(webui, alwayson_scripts={"Tiled VAE": {"args": [True]}})
    assert "The other one: on" in answer["info"] and "VAE bands" not in answer["info"]
    assert webui.probe("vae_last") == []


def test_unloading_puts_the_classes_back(webui: Webui) -> None:
    assert webui.probe("vae_unload") == [[False] * 4, [True] * 4, [True] * 4]
    assert webui.probe("vae_trace")["nested"] == [False] * 4


def test_the_setting_is_the_pages_default(webui: Webui) -> None:
    assert webui.get("/sdapi/v1/options")["trainer_tiled_vae_default"] == "Off"
    assert webui.probe("vae_default", setting="Off") == [False, "Automatic", 0, False]
    assert webui.probe("vae_default", setting="Automatic") == [True, "Automatic", 0, False]
    assert webui.probe("vae_default", setting="Always") == [True, "Always", 0, False]


def test_reload_ui_replaces_nothing_twice(webui: Webui) -> None:
    webui.reload()
    trace = webui.probe("vae_trace")
    assert trace["replaced"] == [True] * 4 and trace["nested"] == [False] * 4
    plain, _ = draw(webui)
    webui.probe("vae_api")
    banded, _ = draw(webui, **ON)
    assert np.abs(banded.astype(int) - plain).max() <= 1
