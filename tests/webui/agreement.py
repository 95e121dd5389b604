"""The same prompt drawn by both hosts, from the same checkpoint, files and seed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.webui.server import Webui

SD1, SDXL = "mini-sd1.safetensors", "mini-sdxl.safetensors"
MEAN_TOLERANCE = 2.0
"""Of 255. Measured: 0.46 to 1.05. The WebUI cuts a pixel's fraction off where the standalone host rounds, a mean of
0.5; and its DDIM leaves out the last of its steps, which moves single pixels along the edges."""
Numbers = npt.NDArray[np.int_]


def ours(webui: Webui, root: Path, prompt: str, checkpoint: str = SD1, **changes: object) -> Numbers:
    """The standalone host's picture of the prompt. `root` holds its folders of files; `changes` are of the request."""
    from lib_trainer.host.standalone.host import StandaloneHost
    from lib_trainer.ports import PreviewRequest

    host = StandaloneHost(webui.models / checkpoint, root)
    asked = {"width": 64, "height": 64, "steps": 20, "cfg_scale": 7, "sampler": "DDIM", "seed": 7} | changes
    return np.asarray(host.preview(PreviewRequest(prompt, **asked))).astype(int)  # type: ignore[arg-type]


def drawn_alike(webui: Webui, root: Path, prompt: str, checkpoint: str = SD1) -> Numbers:
    """The WebUI's picture of the prompt, which is also the standalone host's."""
    theirs = webui.txt2img(prompt, steps=20).astype(int)
    difference = np.abs(ours(webui, root, prompt, checkpoint) - theirs)
    print(f"{prompt}: mean {difference.mean():.3f}, largest {difference.max()} of 255, spread {theirs.std():.1f}")
    assert difference.mean() < MEAN_TOLERANCE
    return theirs


def called_alike(
    webui: Webui, root: Path, prompt: str, checkpoint: str = SD1, least: float = 3 * MEAN_TOLERANCE
) -> None:
    """Both hosts draw the prompt alike, and what it calls changes the picture by more than `least` of 255."""
    change = np.abs(drawn_alike(webui, root, prompt, checkpoint) - webui.txt2img(steps=20)).mean()
    print(f"the file changes {change:.1f}")
    assert change > least, "the file changes nothing"


def drawn_by(server: Webui, checkpoint: str, back: str) -> Numbers:
    """The prompt's picture by another checkpoint of the menu; that of `back` is loaded afterwards."""
    server.load(checkpoint)
    try:
        return server.txt2img(steps=20).astype(int)
    finally:
        server.load(back)


def take_along(output: str | Path, folder: Path) -> None:
    """Copies a trained file to the standalone host's `folder`, which is a new one."""
    folder.mkdir()
    shutil.copyfile(output, folder / Path(output).name)


def exported(server: Webui, family: str) -> Path:
    """The family's miniature in the WebUI's menu, where `python -m miniature.build_family` has left it."""
    from miniature.export import export_webui

    try:
        return export_webui(server.models, family)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def begun(server: Webui, family: str, work: Path) -> Path:
    """As `exported`; where it was not built, as its training would begin, which draws too. `work` is a new folder."""
    from unittest import mock

    from miniature import export
    from miniature.build_family import assemble
    from miniature.recipes import RECIPES
    from miniature.train_family import make_models

    try:
        export.checkpoint_of(family)
    except FileNotFoundError:
        assemble(RECIPES[family], make_models(RECIPES[family])[0].state(), work / f"mini-{family}.safetensors")
        with mock.patch.object(export, "BUILT", work):
            return export.export_webui(server.models, family)
    return export.export_webui(server.models, family)


def unchanged(server: Webui) -> None:
    """But for embeddings, whose list is read anew when a file comes."""
    different = server.probe("compare_snapshot", label="pristine")
    assert [one for one in different if not one.startswith("embeddings: ")] == []
