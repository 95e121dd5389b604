"""The tab Models in the real WebUI: a merge tried in the loaded model, saved, loaded and drawn; all comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.webui.server import Picture, Values, Webui, take_pristine, wait_until_ended

MERGE: dict[str, Any] = {"b": "other.safetensors", "weight": 0.5}


@pytest.fixture(autouse=True)
def own_weights(webui: Webui, unharmed: None) -> Iterator[str]:
    """The name of the loaded checkpoint, which is loaded again and has its own weights after the test."""
    name = webui.probe("facts")["checkpoint"]
    yield name
    if webui.probe("tried"):
        webui.probe("put_back")
    if webui.probe("facts")["checkpoint"] != name:
        webui.load(name)
    take_pristine(webui)  # loading and unloading leave traces of their own


def of(webui: Webui) -> dict[str, Any]:
    return MERGE | {"a": webui.probe("facts")["checkpoint"].split(" [")[0]}


def test_a_tried_merge_is_drawn_saved_loaded_and_put_back(
    webui: Webui, pristine: Picture, lora: str, own_weights: str
) -> None:
    assert "draws as a merge of" in webui.probe("try_merge", values=of(webui))
    tried = webui.txt2img()
    assert not np.array_equal(tried, pristine)
    with_lora = webui.txt2img(f"a disc <lora:{lora}:1>")
    assert np.array_equal(webui.txt2img(), tried), "a LoRA in between comes out of the merge again"
    assert webui.probe("tool", name="merge", values=of(webui) | {"output": "mixed"}).startswith("finished")
    assert "own weights again" in webui.probe("put_back") and webui.probe("tried") == ""
    assert np.array_equal(webui.txt2img(), pristine)
    assert webui.probe("compare_snapshot", label="pristine") == []
    assert not np.array_equal(webui.txt2img(f"a disc <lora:{lora}:1>"), with_lora), "backups are of the own weights"
    assert np.array_equal(webui.txt2img(), pristine)
    webui.load("mixed.safetensors")
    assert np.array_equal(webui.txt2img(), tried), "the file draws what was tried"


def test_the_menu_puts_back_before_it_loads(webui: Webui, pristine: Picture, own_weights: str) -> None:
    webui.load("other.safetensors")
    other = webui.txt2img()
    webui.load(own_weights)
    webui.probe("try_merge", values=of(webui) | {"weight": 0.25})
    assert webui.probe("tried")
    webui.load("other.safetensors")
    assert webui.probe("tried") == "" and np.array_equal(webui.txt2img(), other)
    webui.load(own_weights)
    assert np.array_equal(webui.txt2img(), pristine)


def test_unloading_and_training_meanwhile(webui: Webui, pristine: Picture, values: Values) -> None:
    webui.probe("try_merge", values=of(webui))
    tried = webui.txt2img()
    webui.post("/sdapi/v1/unload-checkpoint", {})
    webui.post("/sdapi/v1/reload-checkpoint", {})
    assert np.array_equal(webui.txt2img(), tried), "what comes back from RAM is what was tried"
    assert webui.probe("start", values=values(output__name="after_a_trial", training__max_steps=2)) == ""
    assert wait_until_ended(webui)["state"] == "finished"
    assert webui.probe("tried") == "" and np.array_equal(webui.txt2img(), pristine)
