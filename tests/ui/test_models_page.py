"""The tab Models over the real desk and tiny files: what its buttons say and do."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from PIL import EpsImagePlugin, Image
from safetensors.torch import load_file

from lib_trainer.refusals import ConfigError, Sentence
from lib_trainer.toolbox.desk import ON_THE_MODEL, TRIAL, Done, Prepared, ToolDesk
from lib_trainer.toolbox.shares import block_weights
from lib_trainer.toolbox.tools import TOOLS
from lib_trainer.ui.kit.form import build_form, from_widget, to_widget
from lib_trainer.ui.models.actions import CURVES, ModelsActions
from lib_trainer.ui.models.page import TITLES, build_models_page
from lib_trainer.work.control import Control
from lib_trainer.work.events import Finished, Listener
from lib_trainer.work.job import Job
from lib_trainer.work.runner import Runner
from tests.toolbox.models import SD1, SDXL, save, some
from tests.ui.fakes import FakeHost


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    for number, name in enumerate(("one", "two", "sub/three")):
        path = tmp_path / "checkpoints" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, some(SD1, number), format="pt")
    return FakeHost(tmp_path)


@pytest.fixture
def actions(host: FakeHost) -> Iterator[ModelsActions]:
    actions = ModelsActions(ToolDesk(), host)
    actions.offers()
    yield actions
    actions.desk.stop()
    actions.desk.wait(20)


def shown(name: str, **changes: Any) -> dict[str, Any]:
    """What a form gives of its own first values, with changes as its components hold them."""
    with gr.Blocks(analytics_enabled=False):
        form = build_form(TOOLS[name].specs, prefix="m", offers={})
    raw = {path: one.value for path, one in form.components.items()} | changes
    return form.values(list(raw.values()))


def test_every_tool_has_its_form_and_title(host: FakeHost) -> None:
    assert set(TITLES) == set(TOOLS)
    with gr.Blocks(analytics_enabled=False) as page:
        build_models_page(ToolDesk(), host)
    told = [one.elem_id for one in page.blocks.values() if getattr(one, "elem_id", None)]
    ids = set(told)
    assert len(told) == len(ids), "an id is one component's"
    folds = [one for one in page.blocks.values() if isinstance(one, gr.Accordion) and "_section_" in str(one.elem_id)]
    assert len(folds) >= len(TOOLS) and all(one.open for one in folds), "a form of one section is seen"
    for form in [one.removesuffix("_finder") for one in ids if one.endswith("_finder")]:
        assert {f"{form}_put_back", f"{form}_before"} <= ids, "its marks put back"
    for name, tool in TOOLS.items():
        missing = {f"models_{name}_{path}" for path, spec in tool.specs.items() if not spec.headless} - ids
        assert not missing and f"models_{name}_start" in ids
        made = ModelsActions(ToolDesk(), host).settings(tool, shown(name))
        assert made == tool.settings(), "an untouched form is the defaults"


def test_a_merge_by_the_names_of_installed_files(actions: ModelsActions, host: FakeHost) -> None:
    """Names become paths, a bare result goes to the host's folder, and the host hears of it."""
    heard: list[Path] = []
    host.added = heard.append  # type: ignore[method-assign]
    values = shown("merge", a="one.safetensors", b="sub/three.safetensors", weight=1.0, output="mixed")
    said = actions.look("merge", values)
    assert "This would be done" in said and "mixed.safetensors" in said and not list(host.root.glob("**/mixed*"))
    assert actions.start("merge", values) == ""
    view = actions.desk.wait(30)
    assert view is not None and view.state == "finished", view
    path = host.checkpoint_folder() / "mixed.safetensors"
    assert heard == [path] == [view.output]
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert load_file(path)[name].equal(load_file(host.checkpoint_folder() / "sub/three.safetensors")[name])
    panel, stop, _, _, seen = actions.poll("")
    assert 'data-active="0"' in panel and "Merged into" in panel and stop == gr.update(interactive=False)
    assert actions.poll(seen)[:2] == (gr.update(), gr.update()), "what was seen is not sent again"
    assert "mixed.safetensors" in actions.offers()["checkpoints"]


def test_what_the_model_holds_is_told_with_the_end_of_its_job(actions: ModelsActions, host: FakeHost) -> None:
    """It holds the merge a moment before."""
    held, let = threading.Event(), threading.Event()

    def work(progress: object) -> Done:
        host.exchanged = Sentence("toolbox.stopped")
        held.set()
        let.wait(30)
        return Done(Sentence("toolbox.stopped"))

    seen = actions.poll("")[-1]
    actions.desk.work("merge", lambda: Prepared((), work), TRIAL)
    assert held.wait(30)
    panel, _, tried, _, seen = actions.poll(seen)
    assert 'data-active="1"' in panel and tried == gr.update()
    assert "models-tried" in actions.poll("")[2], "a page that is opened meanwhile"
    let.set()
    actions.desk.wait(30)
    panel, _, tried, _, _ = actions.poll(seen)
    assert 'data-active="0"' in panel and "models-tried" in tried


@pytest.mark.parametrize(
    "changes,field,words",
    [
        ({"b": ""}, "b", "needs a model B"),
        ({"output": ""}, "output", "fill in “Result”"),
        ({"output": "two.safetensors"}, "output", "is one of the files that are read"),
        ({"blocks": "1, 2"}, "blocks", "Weights by block has 2 numbers"),
        ({"weight": 11.0}, "weight", "Weight = 11.0 is not allowed"),
        ({"parts": "te9=1"}, "parts", "Weights by part: &#x27;te9=1&#x27; names no part"),
    ],
)
def test_a_refusal_names_its_field(actions: ModelsActions, changes: dict[str, Any], field: str, words: str) -> None:
    values = shown("merge", a="one.safetensors", b="two.safetensors", output="mixed") | changes
    for action in (actions.look, actions.start):
        said = action("merge", values)
        assert f'data-field="models_merge_{field}"' in said and words in said
    assert not actions.desk.running and actions.desk.view() is None


def test_the_picture_that_a_file_carries_is_shown(actions: ModelsActions, host: FakeHost) -> None:
    buffer = BytesIO()
    Image.new("RGB", (600, 30), "red").save(buffer, "PNG")
    covers = {
        "good": json.dumps([base64.b64encode(buffer.getvalue()).decode()]),
        "evil": json.dumps([base64.b64encode(b'"><script>').decode()]),
    }
    panels = {}
    for name, told in covers.items():
        path = save(host.checkpoint_folder() / f"{name}.safetensors", some(SD1, 0), ssmd_cover_images=told)
        assert actions.start("inspect", shown("inspect", file=str(path))) == ""
        actions.desk.wait(30)
        panels[name] = actions.poll("")[0]
        assert "brings a picture" in panels[name] and "<script" not in panels[name]
    [data] = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="good.safetensors">', panels["good"])
    with Image.open(BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == (256, 13) and picture.getpixel((9, 9))[0] > 240  # type: ignore[index]
    assert "<img" not in panels["evil"]


def test_no_program_is_started_for_a_picture_that_a_file_carries(
    actions: ModelsActions, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow draws EPS with Ghostscript, raises SyntaxError on a damaged PNG, and decodes whatever its size."""
    started: list[str] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: started.append("gs") or Image.new("RGB", (1, 1)))
    good, large = BytesIO(), BytesIO()
    Image.effect_noise((64, 64), 50).save(good, "PNG")
    Image.new("1", (5000, 5000)).save(large, "PNG")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    damaged = good.getvalue()[:33] + (40).to_bytes(4, "big") + good.getvalue()[37:85] + b"\0\0\0\1\1\2\3\4abcde"
    with pytest.raises(SyntaxError):
        Image.open(BytesIO(damaged)).load()
    for name, data in {"damaged": damaged, "eps": eps, "large": large.getvalue()}.items():
        told = "data:image/png;base64," + base64.b64encode(data).decode()
        path = save(
            host.checkpoint_folder() / f"{name}.safetensors", {"a": torch.ones(1)}, **{"modelspec.thumbnail": told}
        )
        assert actions.start("inspect", shown("inspect", file=str(path))) == ""
        actions.desk.wait(30)
        panel = actions.poll("")[0]
        assert "brings a picture" in panel and "<img" not in panel, name
    assert started == []


def test_the_hosts_folder_of_vaes_may_be_gone(actions: ModelsActions, host: FakeHost, tmp_path: Path) -> None:
    """The form shows it from the start; only where a VAE would be compared it has to be there."""
    lora = save(tmp_path / "lora.safetensors", {"anything": torch.ones(1)})
    asked = {"vaes": str(tmp_path / "gone")}
    assert actions.start("inspect", shown("inspect", file=str(lora), **asked)) == ""
    actions.desk.wait(30)
    checkpoint = str(host.checkpoint_folder() / "one.safetensors")
    assert actions.start("inspect", shown("inspect", file=checkpoint, whole=False, **asked)) == ""
    actions.desk.wait(30)
    said = actions.start("inspect", shown("inspect", file=checkpoint, **asked))
    assert 'data-field="models_inspect_vaes"' in said and "to compare the VAE with" in said


def test_duplicates_are_ticked_and_go_to_the_trash(actions: ModelsActions, host: FakeHost) -> None:
    folder = host.checkpoint_folder()
    (folder / "copy.safetensors").write_bytes((folder / "one.safetensors").read_bytes())
    values = shown("duplicates", folders=str(folder))
    assert actions.start("duplicates", values) == ""
    actions.desk.wait(30)
    panel = actions.poll("")[0]
    assert panel.count("data-trash=") == 2 and f'data-trash="{folder / "copy.safetensors"}"' in panel
    assert actions.start("duplicates", {**values, "trash": (str(folder / "copy.safetensors"),)}) == ""
    actions.desk.wait(30)
    assert not (folder / "copy.safetensors").exists() and (folder / "one.safetensors").exists()
    assert [one for one in (folder / ".trainer-trash").rglob("*") if "copy" in one.name]


def test_a_slider_keeps_its_number_exactly(actions: ModelsActions) -> None:
    blocks = CURVES[0]
    told = actions.curve(blocks, {"blocks": "GRAD_V", "weight": 0.3})
    exact = re.findall('data-exact="([^"]+)"', told)
    unet = actions.host.family().unet
    assert block_weights(",".join(exact), "blocks", unet) == block_weights("GRAD_V", "blocks", unet)
    told = actions.curve(blocks, {"blocks": ",".join(["1.5", "-1", *["0.3"] * 24]), "weight": 0.3})
    assert told.count('min="-1" max="2"') == 26 and 'data-exact="1.5"' in told and 'data-exact="-1"' in told


@pytest.mark.parametrize("kind", ON_THE_MODEL)
def test_the_model_is_left_to_a_training(kind: str, actions: ModelsActions, host: FakeHost) -> None:
    runner, over = Runner(), threading.Event()

    def trains(control: Control, emit: Listener) -> None:
        over.wait(60)
        emit(Finished())

    actions.desk = ToolDesk(runner)
    training = runner.queue(kind, lambda: ConfigError("training.busy"))
    training.start(lambda: Job(kind, "a run", trains, None))
    try:
        merge = shown("merge", a="one.safetensors", b="two.safetensors")
        said = "A training run, a search for a rate or a grid of saved steps has the loaded model"
        assert said in actions.try_merge(merge) and said in actions.grid("merge", merge, {"prompt": "a"})
    finally:
        over.set()
        training.wait(20)
    assert "no prompt" in actions.grid("merge", merge, {})


def test_what_a_grid_lacks_is_said_beside_the_grids_own_field(actions: ModelsActions) -> None:
    merge = shown("merge", a="one.safetensors", b="two.safetensors")
    assert 'data-field="models_merge_trial_prompt"' in actions.grid("merge", merge, {})
    assert 'data-field="models_merge_b"' in actions.grid("merge", merge | {"b": ""}, {"prompt": "a"})


def test_a_report_lies_beside_its_result(actions: ModelsActions, host: FakeHost) -> None:
    made = actions.settings(TOOLS["resize"], shown("resize", lora="x.safetensors", output="small", report="r.csv"))
    assert Path(made.report) == Path(made.output).with_name("r.csv") == host.lora_folder() / "r.csv"


def test_sliders_show_the_list_of_the_models_family(actions: ModelsActions, host: FakeHost, tmp_path: Path) -> None:
    blocks, _, repair = CURVES
    drawn = actions.curve(blocks, {"blocks": "GRAD_V", "a": "one.safetensors", "weight": 0.3})
    assert drawn.count('type="range"') == 26 and 'aria-label="OUT11"' in drawn and "<option>GRAD_V" in drawn
    assert drawn.count('value="0.3"') == 0 and actions.curve(blocks, {"weight": 0.3}).count('value="0.3"') == 26
    save(host.checkpoint_folder() / "xl.safetensors", some(SDXL, 0), format="pt")
    actions.offers()
    assert actions.curve(blocks, {"a": "xl.safetensors", "weight": 0.3}).count('type="range"') == 20
    assert "<select" not in actions.curve(repair, {"lora": "xl.safetensors"}), "LoRA Block Weight has none for SDXL"
    assert "<option>MIDD" in actions.curve(repair, {"lora": "one.safetensors"})
    assert actions.curve(blocks, {"blocks": "nonsense <b>", "weight": 0.3}).count('value="0.3"') == 26
    assert actions.curve(repair, {"blocks": "MIDD"}).count('value="1"') == 9


def test_lists_of_files_are_written_one_a_line() -> None:
    spec = TOOLS["combine"].specs["loras"]
    assert from_widget(spec, ' a.safetensors:0.5 \n\n"b c.safetensors"\n') == ("a.safetensors:0.5", "b c.safetensors")
    assert from_widget(spec, to_widget(spec, ("x", "y"))) == ("x", "y") and from_widget(spec, None) == ()


def test_names_with_strengths_are_resolved(actions: ModelsActions, host: FakeHost) -> None:
    path = host.checkpoint_folder() / "one.safetensors"
    assert actions.installed.path("one.safetensors:te=0.5:unet=1") == f"{path}:te=0.5:unet=1"
    assert actions.installed.path("one.safetensors") == str(path)
    assert actions.installed.path("one.safetensorsx") == "one.safetensorsx"
    assert actions.installed.path("/elsewhere/one.safetensors") == "/elsewhere/one.safetensors"


def test_a_busy_desk_and_a_failure_are_told(actions: ModelsActions, host: FakeHost) -> None:
    assert "Nothing is under way" in actions.stop()
    broken = host.checkpoint_folder() / "broken.safetensors"
    broken.write_bytes((host.checkpoint_folder() / "one.safetensors").read_bytes()[:-100])
    said = actions.start("inspect", shown("inspect", file=str(broken)))
    assert "trainer-notice-error" in said and "broken.safetensors" in said
