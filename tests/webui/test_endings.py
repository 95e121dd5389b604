"""However a run ends, the host is what it was, and the same seed gives the same picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.webui.server import PRECISION, PROMPT, Picture, Values, Webui

HARD: dict[str, Any] = {
    "training__max_steps": 4,
    "training__precision": "bf16",
    "training__gradient_checkpointing": True,
    "preview__prompt": "red circle <lora:probe:1>",
    "preview__every": 1,
}
"""Weights are held in another precision, and every preview leaves the training state and merges a LoRA."""


@pytest.fixture
def run_and_compare(webui: Webui, pristine: Picture, unharmed: None) -> Callable[..., dict[str, Any]]:
    """Run a job and see that nothing has changed, before anything else could put it right."""

    def run(values: dict[str, Any], **how: Any) -> dict[str, Any]:
        model = webui.probe("facts")["model"]
        webui.txt2img()  # takes out the LoRA that an earlier test's picture may have merged
        webui.probe("take_snapshot", label="before")
        ended: dict[str, Any] = webui.probe("run", values=values, **how)
        assert webui.probe("compare_snapshot", label="before") == []
        assert webui.probe("facts")["model"] == model, "the model is another object"
        assert np.array_equal(webui.txt2img(), pristine)
        assert ended["reads"] == [], "the checkpoint was read from its file"
        return ended

    return run


Run = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"][: 2 if PRECISION == "full" else 3])
def test_finished(run_and_compare: Run, values: Values, precision: str) -> None:
    ended = run_and_compare(values(**HARD | {"training__precision": precision}))
    assert ended["state"] == "finished", ended
    assert len(ended["previews"]) == 4
    assert Path(ended["output"]).exists()
    # trap 1: the host asks for gradients of its whole UNet, and nothing of it gets one
    assert (ended["facts"]["asking for gradients"], ended["facts"]["with gradients"]) == (0, 0)


def test_without_text_encoder_and_previews(run_and_compare: Run, values: Values) -> None:
    ended = run_and_compare(values(optimizer__text_encoder_lr=0.0))
    assert ended["state"] == "finished", ended


@pytest.mark.parametrize("command", ["stop", "interrupt"])
def test_stopped(run_and_compare: Run, values: Values, command: str) -> None:
    ended = run_and_compare(values(**HARD), at_step={"2": command})
    assert (ended["state"], ended["step"]) == ("stopped", 2)
    assert Path(ended["output"]).exists()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("nan", "The loss is nan at step 2, so the run was ended with the weights of step 1: lower the learning rate"),
        ("memory", " ran out of memory at step 2: lower dataset.width"),
        ("backward", "the backward pass raised"),
        ("listener", "the listener raised"),
    ],
)
def test_failed_in_a_step(run_and_compare: Run, values: Values, fault: str, sentence: str) -> None:
    ended = run_and_compare(values(**HARD), fault=fault)
    assert ended["state"] == "failed", ended
    assert sentence in ended["error"]
    assert Path(ended["output"]).exists(), "the last good weights are kept"


def test_failing_previews_do_not_end_a_run(run_and_compare: Run, values: Values) -> None:
    ended = run_and_compare(values(**HARD), fault="preview")
    assert (ended["state"], ended["previews"]) == ("finished", [])
    assert any("The preview of step 1 failed: the decoder raised" in line for line in ended["log"])


def test_a_full_disk(run_and_compare: Run, values: Values) -> None:
    ended = run_and_compare(values(**HARD), fault="save")
    assert ended["state"] == "failed"
    assert "could not be written (No space left on device)" in ended["error"]
    assert ended["output"] is None


def test_the_watch_for_reads_sees_one(webui: Webui) -> None:
    assert sorted(webui.probe("control_read")) == ["open", "safe_open"]


def test_a_preview_leaves_the_users_last_parameters(webui: Webui, values: Values, unharmed: None) -> None:
    webui.txt2img("the user's own prompt")
    webui.probe("run", values=values(preview__prompt="of the run", preview__every=2, training__max_steps=2))
    assert webui.probe("last_prompt") == "the user's own prompt"
    assert webui.probe("facts")["latent"] is False, "the progress bar would decode the preview at every look"


def test_a_preview_encodes_its_prompt_for_itself(
    webui: Webui, values: Values, pristine: Picture, unharmed: None
) -> None:
    """The WebUI keeps the last prompt's encoding; here the text encoder alone learns, so it is all that changes."""
    webui.txt2img("blue star")
    rates = {"optimizer__unet_lr": 0, "optimizer__text_encoder_lr": 0.02, "training__max_steps": 4}
    drawn = {"preview__prompt": PROMPT, "preview__every": 2, "preview__steps": 4, "preview__sampler": "DDIM"}
    ended = webui.probe("run", values=values(**rates, **drawn))
    assert len(set(ended["previews"])) == 2, "the second preview shows the first one's words"
    assert np.array_equal(webui.txt2img(), pristine), "the user's picture shows the preview's words"
