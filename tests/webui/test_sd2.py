"""Training on SD 2.x in the real WebUI, loaded by the .yaml beside it: open_clip's text encoder, and v is predicted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.webui.agreement import MEAN_TOLERANCE, SDXL, begun, called_alike, drawn_alike, drawn_by, ours, take_along
from tests.webui.server import Picture, Values, Webui, take_pristine
from tests.webui.test_kinds import FAST

KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "lora": ({}, "lora", "red circle <lora:{}:1>"),
    "text encoder": (
        {"optimizer__unet_lr": 0.0, "optimizer__text_encoder_lr": 0.05}, "lora", "red circle <lora:{}:1>",
    ),
    "dora": ({"network__dora": True, "optimizer__text_encoder_lr": 0.0}, "lora", "red circle <lora:{}:1>"),
    "pivotal": ({"network__kind": "pivotal", "embedding__learning_rate": 0.1}, "lora", "red {0} circle <lora:{0}:1>"),
    "embedding": ({"network__kind": "embedding", "embedding__learning_rate": 0.3}, "embeddings", "{} circle"),
    "hypernetwork": (
        {"network__kind": "hypernetwork", "hypernetwork__learning_rate": 0.02}, "hypernetworks",
        "red circle <hypernet:{}:1>",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(sdxl: Webui, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its name, while it is loaded in the WebUI that other tests have SDXL in."""
    name = begun(sdxl, "sd2-v", tmp_path_factory.mktemp("sd2")).name
    sdxl.load(name)
    take_pristine(sdxl)
    yield name
    sdxl.load(SDXL)
    take_pristine(sdxl)


@pytest.fixture(scope="module")
def before(sdxl: Webui, checkpoint: str) -> Picture:
    return sdxl.txt2img(steps=20)


def as_before(server: Webui, before: Picture) -> None:
    different = server.probe("compare_snapshot", label="pristine")
    assert [one for one in different if not one.startswith("embeddings: ")] == []
    assert np.array_equal(server.txt2img(steps=20), before)


def test_both_hosts_draw_the_same(sdxl: Webui, checkpoint: str, before: Picture, tmp_path: Path) -> None:
    assert drawn_alike(sdxl, tmp_path, "red circle", checkpoint).std() > 5, "an empty picture shows nothing"


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_works_at_once_and_the_host_is_unharmed(
    sdxl: Webui, checkpoint: str, before: Picture, values: Values, tmp_path: Path, name: str
) -> None:
    changes, folder, prompt = KINDS[name]
    title = f"zrk-2-{name.replace(' ', '-')}"
    watched = {"preview__prompt": f"red {title} circle", "preview__every": 3}
    ended = sdxl.probe("run", values=values(**FAST | watched | changes, output__name=title))
    assert ended["state"] == "finished", ended
    assert len(set(ended["previews"])) == 2, "a preview shows what has been learned so far"
    as_before(sdxl, before)
    take_along(ended["output"], tmp_path / folder)
    called_alike(sdxl, tmp_path, prompt.format(title), checkpoint)
    sdxl.probe("remove_files", paths=[ended["output"]])


def test_a_whole_checkpoint_is_in_the_menu_and_draws_as_in_the_standalone_host(
    sdxl: Webui, checkpoint: str, before: Picture, values: Values, tmp_path: Path
) -> None:
    changes = {
        "network__kind": "checkpoint", "finetune__unet_lr": 3e-3, "finetune__text_encoder_lr": 1e-3,
        "training__max_steps": 4,
    }  # fmt: skip
    ended = sdxl.probe("run", values=values(**changes, output__name="tuned-2"))
    assert ended["state"] == "finished", ended
    as_before(sdxl, before)
    tuned = drawn_by(sdxl, "tuned-2.safetensors", checkpoint)
    mine = ours(sdxl, tmp_path, "red circle", "tuned-2.safetensors")
    print(f"hosts {np.abs(tuned - mine).mean():.3f}, learned {np.abs(tuned - before.astype(int)).mean():.1f}")
    assert np.abs(tuned - before.astype(int)).mean() > 3 * MEAN_TOLERANCE
    assert np.abs(tuned - mine).mean() < MEAN_TOLERANCE
    assert np.array_equal(sdxl.txt2img(steps=20), before)
    take_pristine(sdxl)  # the WebUI has read the first checkpoint anew, and its object is a new one
