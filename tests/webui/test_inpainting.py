"""Checkpoints that inpaint in the real WebUI: told, trained with every sort of file, drawn alike, the host unharmed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.webui.agreement import MEAN_TOLERANCE, called_alike, drawn_alike, drawn_by, ours, take_along, unchanged
from tests.webui.server import Values, Webui, take_pristine
from tests.webui.test_kinds import FAST

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
NAME = "nine.safetensors"


def write_nine(models: Path, family: str = "sd1") -> Path:
    """The miniature with a UNet that reads a hole and the rest of the picture too, and its .yaml as the published
    inpainting model's (`v1-inpainting-inference.yaml`; of SDXL's the channels alone are others)."""
    from safetensors.torch import load_file, save_file

    from miniature.export import export_webui

    checkpoint = export_webui(models, family)
    tensors = load_file(checkpoint)
    first = tensors[FIRST]
    more = torch.randn(first.shape[0], 5, *first.shape[2:], generator=torch.Generator().manual_seed(1))
    tensors[FIRST] = torch.cat([first, (more * 0.02).to(first.dtype)], dim=1)
    save_file(tensors, str(models / NAME))
    text = checkpoint.with_suffix(".yaml").read_text(encoding="utf-8")
    old_class = (
        ("LatentDiffusion", "LatentInpaintDiffusion"),
        ("conditioning_key: crossattn", "conditioning_key: hybrid\n    finetune_keys: null"),
    )
    for before, after in (("in_channels: 4", "in_channels: 9"), *(old_class if family == "sd1" else ())):
        assert before in text
        text = text.replace(before, after, 1)
    (models / NAME).with_suffix(".yaml").write_text(text, encoding="utf-8")
    return models / NAME


@pytest.fixture(scope="module")
def nine(started: Webui) -> Iterator[Webui]:
    yield from _with_nine(started, "sd1")


@pytest.fixture(scope="module")
def nine_xl(sdxl: Webui) -> Iterator[Webui]:
    yield from _with_nine(sdxl, "sdxl")


@pytest.fixture(params=["nine", "nine_xl"])
def server(request: pytest.FixtureRequest) -> Webui:
    found: Webui = request.getfixturevalue(request.param)
    return found


_outputs: dict[int, list[str]] = {}
"""Files that are gone afterwards, by their server's id."""


def _with_nine(started: Webui, family: str) -> Iterator[Webui]:
    write_nine(started.models, family)
    started.load(NAME)
    take_pristine(started)
    yield started
    started.load(f"mini-{family}.safetensors")
    # it lists checkpoints anew, and --ckpt is then the chosen one again
    started.probe("remove_files", paths=_outputs.pop(id(started), []))
    take_pristine(started)


def test_both_hosts_draw_the_same(server: Webui, tmp_path: Path) -> None:
    """All of the picture is hidden, and what lies beside it is a middle grey."""
    assert drawn_alike(server, tmp_path, "red circle", NAME).std() > 5, "an empty picture shows nothing"


KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "lora": ({}, "lora", "red circle <lora:{}:1>"),
    "hypernetwork": (
        {"network__kind": "hypernetwork", "hypernetwork__learning_rate": 0.02},
        "hypernetworks",
        "red circle <hypernet:{}:1>",
    ),
    "embedding": ({"network__kind": "embedding", "embedding__learning_rate": 0.3}, "embeddings", "{} circle"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_trained_on_it_is_called_and_the_host_is_unharmed(
    server: Webui, values: Values, tmp_path: Path, name: str
) -> None:
    changes, folder, prompt = KINDS[name]
    title = f"zrk-nine-{name}"
    watched = {"preview__prompt": "red circle" if name != "embedding" else f"{title} circle", "preview__every": 3}
    ended = server.probe("run", values=values(**FAST | watched | changes, output__name=title))
    if name == "hypernetwork" and (server.models / "mini-sdxl.safetensors").is_file():
        assert "SDXL" in ended["refused"]
        return
    assert ended["state"] == "finished", ended
    assert ended["previews"], "a preview is drawn"
    _outputs.setdefault(id(server), []).append(ended["output"])
    unchanged(server)
    take_along(ended["output"], tmp_path / folder)
    called_alike(server, tmp_path, prompt.format(title), NAME, least=0)


def test_a_whole_checkpoint_inpaints_and_is_loaded_by_its_yaml(server: Webui, values: Values, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    changes = {"network__kind": "checkpoint", "finetune__unet_lr": 3e-3, "preview__prompt": "red circle"}
    ended = server.probe("run", values=values(**changes, preview__every=3, output__name="tuned-nine"))
    assert ended["state"] == "finished", ended
    unchanged(server)
    written = Path(ended["output"])
    assert load_file(written)[FIRST].shape[1] == 9
    shutil.copyfile(server.models / "nine.yaml", written.with_suffix(".yaml"))
    plain = server.txt2img(steps=20).astype(int)
    try:
        tuned = drawn_by(server, "tuned-nine.safetensors", NAME)
    finally:
        take_pristine(server)
    assert np.abs(tuned - plain).mean() > MEAN_TOLERANCE
    assert np.abs(tuned - ours(server, tmp_path, "red circle", "tuned-nine.safetensors")).mean() < MEAN_TOLERANCE
