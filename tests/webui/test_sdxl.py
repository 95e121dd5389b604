"""Training on SDXL in the real WebUI: every kind, called by its normal syntax, and the host as it was before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.webui.agreement import (
    MEAN_TOLERANCE,
    SDXL,
    called_alike,
    drawn_by,
    ours,
    take_along,
    unchanged,
)
from tests.webui.server import Picture, Values, Webui, take_pristine
from tests.webui.test_kinds import FAST

KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "lora": ({}, "lora", "red circle <lora:{}:1>"),
    "second encoder": (
        {"optimizer__unet_lr": 0.0, "optimizer__text_encoder_lr": 0.0, "optimizer__text_encoder_2_lr": 0.1},
        "lora",
        "red circle <lora:{}:1>",
    ),
    "locon": ({"network__kind": "locon"}, "lora", "red circle <lora:{}:1>"),
    "loha": ({"network__kind": "loha"}, "lora", "red circle <lora:{}:1>"),
    "dora": ({"network__dora": True}, "lora", "red circle <lora:{}:1>"),
    "lokr": ({"network__kind": "lokr", "network__factor": 4}, "lora", "red circle <lora:{}:0.7>"),
    "difference": (
        {"network__kind": "difference", "optimizer__unet_lr": 0.05, "optimizer__text_encoder_lr": 0.05},
        "lora",
        "red circle <lora:{}:1>",
    ),
    "pivotal": ({"network__kind": "pivotal", "embedding__learning_rate": 0.1}, "lora", "red {0} circle <lora:{0}:1>"),
    "embedding": ({"network__kind": "embedding", "embedding__learning_rate": 0.3}, "embeddings", "{} circle"),
}


@pytest.fixture(scope="module")
def before(sdxl: Webui) -> Picture:
    """What the host draws before anything was trained, and a snapshot of it."""
    sdxl.load("other.safetensors")
    sdxl.load(SDXL)
    picture = sdxl.txt2img()
    assert np.array_equal(sdxl.txt2img(), picture), "the WebUI itself draws differently each time"
    take_pristine(sdxl)
    return picture


def as_before(server: Webui, before: Picture) -> None:
    unchanged(server)
    assert np.array_equal(server.txt2img(), before)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_works_at_once_and_the_host_is_unharmed(
    sdxl: Webui, before: Picture, values: Values, pictures: Path, tmp_path: Path, name: str
) -> None:
    changes, folder, prompt = KINDS[name]
    if name == "difference":
        changes = changes | {"difference__before": str(pictures / "0.png")}
    title = f"zrk-xl-{name.replace(' ', '-')}"
    watched = {"preview__prompt": f"red {title} circle --d 5\nblue square", "preview__every": 3}
    job = values(**FAST | watched | changes, output__name=title)
    ended = sdxl.probe("run", values=job)
    assert ended["state"] == "finished", ended
    assert len(set(ended["previews"][::2])) == 2, "a preview shows what has been learned so far"
    assert Path(ended["grid"]).is_file()
    drawn = sdxl.probe("steps_grid", values=job, settings={"weights": "0.7", "prompt": f"red {title} circle"})
    assert drawn["state"] == "finished" and Path(drawn["output"]).is_file(), drawn
    assert not set(ended["reads"]) - {"open", "safe_open"}, "the header alone, for what the model predicts"
    as_before(sdxl, before)
    take_along(ended["output"], tmp_path / folder)
    called_alike(sdxl, tmp_path, prompt.format(title), SDXL)
    sdxl.probe("remove_files", paths=[ended["output"]])
    as_before(sdxl, before)


def test_a_whole_checkpoint_is_in_the_menu_and_draws_as_in_the_standalone_host(
    sdxl: Webui, before: Picture, values: Values, tmp_path: Path
) -> None:
    changes = {
        "network__kind": "checkpoint", "finetune__unet_lr": 3e-3, "finetune__text_encoder_lr": 1e-3,
        "training__max_steps": 4, "preview__prompt": "red circle", "preview__every": 2,
    }  # fmt: skip
    ended = sdxl.probe("run", values=values(**changes, output__name="tuned-xl"))
    assert ended["state"] == "finished", ended
    as_before(sdxl, before)
    plain = sdxl.txt2img(steps=20).astype(int)
    tuned = drawn_by(sdxl, "tuned-xl.safetensors", SDXL)
    mine = ours(sdxl, tmp_path, "red circle", "tuned-xl.safetensors")
    assert np.abs(tuned - plain).mean() > 3 * MEAN_TOLERANCE
    assert np.abs(tuned - mine).mean() < MEAN_TOLERANCE
    assert np.array_equal(sdxl.txt2img(), before)
    take_pristine(sdxl)  # the WebUI has read the first checkpoint anew, and its object is a new one


@pytest.mark.parametrize("words", [3, 100, 200])
def test_captions_are_encoded_as_the_same_prompt(sdxl: Webui, before: Picture, words: int) -> None:
    """Context of both encoders in chunks of 75 tokens, and the pooled vector of the first chunk."""
    encoded = sdxl.probe("encoding", caption="circle red " * (words // 2) + "star", clip_skip=1)
    print(encoded)
    assert encoded["shape"][1:] == [77 * (1 + words // 75), 56] and encoded["pooled shape"] == [1, 24]
    for name in ("", "pooled "):
        assert encoded[f"{name}exact"] < 1e-4
        assert encoded[f"{name}difference"] < 1e-4 + 2 * encoded[f"{name}rounding"], "half precision rounds each once"


def test_a_hypernetwork_is_refused_by_name(sdxl: Webui, before: Picture, values: Values) -> None:
    assert "SDXL" in sdxl.probe("run", values=values(network__kind="hypernetwork"))["refused"]
    as_before(sdxl, before)


def test_previews_read_the_layer_that_is_trained_on(sdxl: Webui, before: Picture, values: Values) -> None:
    """Whatever the WebUI's setting makes of clip skip for SDXL: training reads one layer."""
    still = {"optimizer__unet_lr": 1e-12, "optimizer__text_encoder_lr": 0.0, "training__max_steps": 1}
    shown = {"preview__prompt": "red circle", "preview__every": 1}

    def previews(title: str, **others: Any) -> list[str]:
        ended = sdxl.probe("run", values=values(**still | shown, output__name=title), **others)
        assert ended["state"] == "finished", ended
        found: list[str] = ended["previews"]
        return found

    plain = previews("zrk-xl-plain")
    sdxl.post("/sdapi/v1/options", {"sdxl_clip_l_skip": True})
    try:
        heeded = previews("zrk-xl-heeded")
        assert sdxl.get("/sdapi/v1/options")["sdxl_clip_l_skip"] is True, "the user's setting stays"
        unguarded = previews("zrk-xl-unguarded", without=["lib_trainer.host.webui.host:_option"])
    finally:
        sdxl.post("/sdapi/v1/options", {"sdxl_clip_l_skip": False})
    assert heeded == plain and len(plain) == 1
    assert unguarded != plain, "the setting changes nothing: this test shows nothing"
