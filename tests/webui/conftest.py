"""One real WebUI for all tests of this folder, with the miniature and this repository as an extension."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():  # gradio 3 and what it imports warn of their own age
    warnings.simplefilter("ignore")
    import gradio as gradio

from tests.webui.server import PRECISION, Picture, Values, Webui, take_pristine, wait_until_ended

HOME = Path(os.environ.get("WEBUI_DIR") or Path.home() / "stable-diffusion-webui")
MISSING = "no WebUI with a venv in WEBUI_DIR or ~/stable-diffusion-webui"
HERE = Path(__file__).parent
_server: list[Webui] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.webui)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the WebUI printed meanwhile."""
    report = yield
    if report.failed and _server and HERE in item.path.parents:
        report.sections.append(("WebUI log", _server[-1].tail(item.stash.get(_LOG_START, 0))))
    return report


_LOG_START = pytest.StashKey[int]()


@pytest.fixture(scope="session", autouse=True)
def patient() -> None:
    """The pages of a busy computer take longer than the five seconds that playwright waits of itself."""
    with contextlib.suppress(ImportError):
        from playwright.sync_api import expect

        expect.set_options(timeout=60_000)


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webui]:
    with serving(tmp_path_factory.mktemp("webui")) as server:
        yield server


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webui]:
    """Another WebUI, with the SDXL miniature; `load` changes to others that lie in its menu."""
    with serving(tmp_path_factory.mktemp("sdxl"), "sdxl") as server:
        yield server


@contextlib.contextmanager
def serving(data: Path, family: str = "sd1") -> Iterator[Webui]:
    """A WebUI with `data` as its folder and the family's miniature loaded, as long as the context lasts."""
    if not (HOME / "venv" / "bin" / "python").exists():
        pytest.skip(MISSING)
    from miniature.export import export_webui, write_arch
    from miniature.recipes import RECIPES

    server = Webui(HOME, data)
    server.prepare()
    checkpoint = export_webui(server.models, family)
    for encoder in (one for recipe in RECIPES.values() for one in recipe.encoders if one.open_clip):
        write_arch(server.models, encoder)  # the probe tells open_clip of them when the WebUI starts
    write_other_checkpoint(checkpoint)
    _server.append(server)
    try:
        server.start(checkpoint)
        yield server
    finally:
        _server.remove(server)
        server.stop()


def write_other_checkpoint(checkpoint: Path) -> None:
    """A second checkpoint in the menu: the same with a UNet that has lost its way."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint)
    for name, tensor in tensors.items():
        if name.startswith("model.diffusion_model.out.2."):
            tensors[name] = tensor * 0.5
    save_file(tensors, str(checkpoint.with_name("other.safetensors")))
    shutil.copyfile(checkpoint.with_suffix(".yaml"), checkpoint.with_name("other.yaml"))


@pytest.fixture
def webui(started: Webui, request: pytest.FixtureRequest) -> Webui:
    request.node.stash[_LOG_START] = started.log.stat().st_size
    return started


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four drawn pictures of 64×64 whose captions hold everything that a prompt would interpret."""
    from tests.support import draw_pictures

    folder = draw_pictures(tmp_path_factory.mktemp("pictures"), 4)
    (folder / "0.txt").write_text("saber_(fate), [disc], (blue:1.5) BREAK <lora:probe:1> saber", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def values(pictures: Path) -> Values:
    """A small job under a new name, as {path: value}; changes are `section__field=value`.

    In fp32 unless they say otherwise, and on a card in what is chosen for it."""
    from tests.support import job_values

    count = iter(range(1_000_000))

    def make(**changes: Any) -> dict[str, Any]:
        changes.setdefault("output__name", f"run{next(count)}")
        changes.setdefault("training__precision", "auto" if PRECISION == "card" else "fp32")
        return job_values(pictures, **{"training__max_steps": 3, "preview__steps": 2} | changes)

    return make


@pytest.fixture(scope="session")
def pristine(started: Webui) -> Picture:
    """The picture that every test must find again. It and the snapshot are taken before anything was trained."""
    picture = started.txt2img()
    assert np.array_equal(started.txt2img(), picture), "the WebUI itself draws differently each time"
    take_pristine(started)
    return picture


@pytest.fixture(scope="session")
def lora(started: Webui, pristine: Picture, values: Values) -> str:
    """The name of a trained LoRA that changes the picture."""
    job = values(output__name="probe", training__max_steps=8, optimizer__unet_lr=0.02, optimizer__text_encoder_lr=0.02)
    ended = started.probe("run", values=job)
    assert ended["state"] == "finished", ended
    assert started.probe("compare_snapshot", label="pristine") == []
    assert not np.array_equal(started.txt2img("red circle <lora:probe:1>"), pristine), "the LoRA changes nothing"
    assert np.array_equal(started.txt2img(), pristine)
    return "probe"


@pytest.fixture
def stopped(webui: Webui) -> Iterator[None]:
    """After the test nothing of ours runs."""
    yield
    webui.probe("command", name="stop")
    wait_until_ended(webui)


@pytest.fixture
def unharmed(webui: Webui, pristine: Picture, lora: str) -> Iterator[None]:
    """After the test the host draws the same picture as ever, and nothing of it has changed."""
    yield
    webui.probe("tidy")
    assert np.array_equal(webui.txt2img(), pristine)
    assert webui.probe("compare_snapshot", label="pristine") == []
