"""The Tagger's buttons and polls over the real desk and the miniature tagger."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from lib_trainer.captions.edits import make_edit
from lib_trainer.dataset.editor import Editor
from lib_trainer.refusals import ConfigError, TaggerError
from lib_trainer.tagging.desk import TaggerDesk
from lib_trainer.tagging.scores.known import known_tags
from lib_trainer.tagging.settings import TaggerSettings
from lib_trainer.tagging.views import Places
from lib_trainer.toolbox.desk import ToolDesk
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.ui.models.page import build_models_page
from lib_trainer.ui.tagger import form
from lib_trainer.ui.tagger.actions import TaggerActions, TaggerOptions
from lib_trainer.ui.tagger.extras import build_extras_step, caption_picture
from lib_trainer.ui.tagger.page import build_tagger_page
from lib_trainer.ui.train.page import build_train_page
from lib_trainer.ui.train.page_options import PageOptions
from miniature.world import Scene, draw
from tests.tagging.conftest import MINI, draw_scenes
from tests.ui.fakes import FakeHost

SKIP = gr.update()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[TaggerDesk]:
    shutil.copytree(MINI, tmp_path / "models" / "wd" / "wd-mini")
    desk = TaggerDesk(Places(lambda: [tmp_path / "models"], lambda: tmp_path / "models" / "new"))
    yield desk
    desk.stop()
    desk.wait(20)


@pytest.fixture
def actions(desk: TaggerDesk) -> TaggerActions:
    return TaggerActions(desk, TaggerOptions("(text) => {}"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw_scenes(tmp_path / "pictures", 10)
    (tmp_path / "pictures" / "003.txt").write_text("my own <words>", encoding="utf-8")
    return tmp_path / "pictures"


def settings(folder: Path | str = "", **changes: Any) -> TaggerSettings:
    """What the page gives of its own first values, with changes as its components hold them."""
    with gr.Blocks(analytics_enabled=False):
        make = form.SettingMaker("t")
        form.lay_out_models(make, ["wd-mini"])
        form.lay_out_thresholds(make, 0.35)
        form.lay_out_captions(make)
        form.lay_out_folder(make)
    values = {name: part.value for name, part in make.settings.items()}
    values |= {"folder": str(folder), "recursive": True, "device": "Processor"} | changes
    return form.TaggerForm(make.settings).values(list(values.values()))


def tagged(actions: TaggerActions, given: TaggerSettings) -> None:
    assert actions.tag(given) == ""
    view = actions.desk.wait(60)
    assert view is not None and view.state == "finished", view


def test_from_the_folder_to_captions(actions: TaggerActions, folder: Path) -> None:
    given = settings(folder, trigger="zork", exclude="simple_background")
    tagged(actions, given)
    notice, summary, table, captions, complained = actions.look(given, "")
    assert (notice, complained) == (SKIP, "") and "<dd>10</dd>" in summary
    assert 'data-tag="zork"' in table and "simple background" not in table
    assert "my own &lt;words&gt;" in captions and "<ins>zork</ins>, my own &lt;words&gt;, <ins>" in captions
    assert not (folder / "000.txt").exists()
    assert actions.write(given) == ""
    view = actions.desk.wait(60)
    assert view is not None and str(view.told).startswith("10 captions written, 0 were right already. Undo")
    assert (folder / "003.txt").read_text("utf-8").startswith("zork, my own <words>, ")
    assert "No caption changes." in actions.look(given, "")[3], "after a job the folder is read anew"


def test_moving_the_line_runs_no_model(actions: TaggerActions, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tagged(actions, settings(folder))
    monkeypatch.setattr(actions.desk, "tagger", None)
    low, high = (actions.look(settings(folder, general=line), "")[2] for line in (0.05, 0.999))
    assert low != high and low.count("<tr") > high.count("<tr") > 3


def test_a_tags_pictures_and_the_border(actions: TaggerActions, folder: Path) -> None:
    given = settings(folder)
    tagged(actions, given)
    examples, border = actions.details(given, "LARGE")
    assert "“LARGE” goes into " in examples and "data:image/jpeg;base64," in examples
    opened = actions.desk.opened(given.selection, given.style)
    row = next(r for r in range(10) if 0.06 < opened.table.scores_of(r).get("large", 0) < 0.94 or r == 9)
    score = opened.table.scores_of(row)["large"]
    near = settings(folder, general=round(min(0.99, max(0.02, score - 0.02)), 2))
    border = actions.details(near, "large")[1]
    content = opened.contents[row]
    assert f'data-content="{content}"' in border
    assert actions.judge(near, [content, "large", "reject"]) == ""
    assert "tagger-rejected" in actions.details(near, "large")[1]
    assert opened.store.verdicts() == {(content, "large"): False}
    assert actions.judge(near, [content, "large", "undo"]) == ""
    assert opened.store.verdicts() == {}


def test_what_is_wrong_is_a_sentence(actions: TaggerActions, folder: Path, tmp_path: Path) -> None:
    cases = [
        (actions.tag(settings("")), "No folder of pictures is given"),
        (actions.tag(settings(tmp_path / "<no>")), "&lt;no&gt;&#x27; does not exist"),
        (actions.tag(settings(folder, models=[])), "No tagger is chosen"),
        (actions.tag(settings(folder, models=["other"])), "no tagger called &#x27;other&#x27;"),
        (actions.write(settings(folder)), "has not been scored"),
        (actions.look(settings(folder, overrides="hat"), "")[0], "write &#x27;long hair: 0.5&#x27;"),
        (actions.look(settings(folder, exclude="/(/"), "")[0], "Tags to leave out: /(/ is not a regular expression"),
        (actions.look(settings(folder, template="x"), "")[0], "is the same for every picture"),
        (actions.download("nonsense"), "is not a model that can be downloaded"),
    ]
    for notice, sentence in cases:
        assert "trainer-notice-error" in notice and sentence in notice, sentence
    notice, summary, *_ = actions.look(settings(folder), "")
    assert notice == SKIP and "has not been scored by the chosen tagger yet: press Tag." in summary
    assert not (folder / ".trainer").exists(), "looking makes nothing"
    assert actions.look(settings(""), "") == [SKIP, "", "", "", ""], "an empty page has nothing to complain of"


def test_a_complaint_goes_with_its_reason_and_an_answer_stays(actions: TaggerActions, folder: Path) -> None:
    notice, *_, complained = actions.look(settings(folder, overrides="hat"), "")
    assert "write" in notice and complained == "1"
    assert actions.look(settings(folder), "", complained)[0] == "", "it was mended"
    assert actions.look(settings(folder), "")[0] == SKIP, "what stands there answers a button"


def test_no_button_is_silent(actions: TaggerActions, folder: Path) -> None:
    for nothing in (settings(""), settings("   ")):
        for notice in (actions.tag(nothing), actions.write(nothing), actions.reread(nothing, "")[0]):
            assert "No folder of pictures is given" in notice
    assert "drop a picture first" in actions.send(" ") and actions.send("red") == ""
    assert "Taggers found: 1." in actions.refresh_models(settings())[0]
    assert "General tags: 0.35, for wd-mini." in actions.preset(settings())[0]


def test_an_edit_of_the_set_is_seen_at_once_and_the_other_way_round(actions: TaggerActions, folder: Path) -> None:
    given = settings(folder, exclude="simple_background")
    tagged(actions, given)
    actions.write(given), actions.desk.wait(60)
    mark, summary = actions.poll("", [])[-2], actions.look(given, "")[1]
    assert "<dt>Captions changed</dt><dd>0</dd>" in summary
    editor = Editor(folder, known_tags(folder))
    assert [entry.label for entry in editor.history.entries()] == ["Captions by wd-mini"]
    most = next(key for key, count in editor.counts().most_common() if count < 10)
    editor.apply(editor.preview(make_edit("remove", {"tags": most})))
    assert actions.poll("", [])[-2] != mark, "the page is told to look"
    summary = actions.look(given, "")[1]
    assert "<dt>Captions changed</dt><dd>0</dd>" in summary and "Removed by hand, kept out" in summary
    back = settings(folder, exclude="simple_background", restore=True)
    assert "Removed by hand" not in actions.look(back, "")[1]
    actions.write(back), actions.desk.wait(60)
    assert editor.follow() and editor.counts()[most] > 0


def test_one_picture(actions: TaggerActions) -> None:
    image = draw(Scene("circle", "yellow", "white"), (90, 70)).convert("RGBA")
    key, notice, scores, prompt, caption = actions.single(image, settings(character=0.3, trigger="x (y)"))
    assert notice == "" and "Characters" in scores
    assert caption.startswith("x (y), ") and "sol (sky)" in caption and "white background" in caption
    assert prompt.startswith("x \\(y\\), ") and "sol \\(sky\\)" in prompt
    again = actions.describe(key, settings(general=0.99, character=0.999))
    assert len(again[3]) < len(caption)
    assert actions.single(None, settings()) == [""] * 5
    assert "drop it again" in actions.describe("forgotten", settings())[0]


def test_transparency_of_a_dropped_picture_is_white(actions: TaggerActions) -> None:
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    white = Image.new("RGBA", (64, 64), (255, 255, 255, 255))
    assert actions.single(clear, settings())[2:] == actions.single(white, settings())[2:]


def test_polls_send_what_has_changed(actions: TaggerActions, folder: Path) -> None:
    panel, tag, stop, write, models, _, seen = actions.poll("", [])
    assert models["value"] == ["wd-mini"]
    assert "Nothing is written before" in panel and 'data-active="0"' in panel
    assert tag["interactive"] is True and stop["interactive"] is False and write["interactive"] is True
    assert all(part == SKIP for part in actions.poll(seen, ["wd-mini"])[:-2])
    tagged(actions, settings(folder))
    panel, *_, after = actions.poll(seen, ["wd-mini"])
    assert "10 pictures scored" in panel and "wd-mini runs on CPU" in panel and after != seen


def test_a_second_job_is_refused_and_stop_keeps_what_is_done(
    actions: TaggerActions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, gate = tmp_path / "many", threading.Event()
    draw_scenes(folder, 24)
    tagger = actions.desk.tagger("wd-mini", "cpu")
    real: Any = tagger.scores

    def held(batch: Any) -> Any:
        gate.wait(30)
        return real(batch)

    monkeypatch.setattr(tagger, "scores", held)
    assert actions.tag(settings(folder)) == ""
    assert "The tagger is busy" in actions.tag(settings(folder))
    assert actions.poll("", ["wd-mini"])[2]["interactive"] is True
    assert actions.stop() == "" and "Stopping; what is done is kept" in actions.poll("", ["wd-mini"])[0]
    gate.set()
    view = actions.desk.wait(30)
    assert view is not None and view.state == "stopped" and "press Tag to go on" in str(view.told)
    assert "Stopping" not in actions.poll("", ["wd-mini"])[0]
    assert "Nothing is under way" in actions.stop()


def test_a_model_that_fails_is_told_in_the_panel(actions: TaggerActions, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "wd" / "wd-mini" / "model.onnx").write_bytes(b"torn")
    actions.tag(settings(folder))
    actions.desk.wait(30)
    assert (
        "tagger-failed" in (panel := actions.poll("", ["wd-mini"])[0])
        and "is not an ONNX model or is cut short" in panel
    )


def test_two_taggers_together(actions: TaggerActions, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(MINI, tmp_path / "models" / "wd" / "wd-twin")
    (tmp_path / "models" / "wd" / "wd-twin" / "selected_tags.csv").write_text(
        (MINI / "selected_tags.csv").read_text("utf-8").replace("large", "big"), "utf-8"
    )
    update = actions.refresh_models(settings())[1]
    assert update["choices"] == ["wd-mini", "wd-twin"] and "value" not in update, "another may be chosen meanwhile"
    assert actions.refresh_models(settings(models=["gone", "wd-twin"]))[1]["value"] == ["wd-twin"]
    both = settings(folder, models=["wd-mini", "wd-twin"], how="Union (one is enough)")
    tagged(actions, both)
    table = actions.look(both, "")[2]
    assert 'data-tag="large"' in table and 'data-tag="big"' in table


def test_the_preset_is_the_models(actions: TaggerActions) -> None:
    assert actions.preset(settings(models=["wd-swinv2-tagger-v3"]))[1] == 0.2653
    assert actions.preset(settings(models=["wd-swinv2-tagger-v3", "wd-eva02-large-tagger-v3"]))[1] == 0.3974
    assert actions.preset(settings(models=[]))[1] == 0.35


def test_the_extras_step_captions_a_picture(desk: TaggerDesk) -> None:
    with gr.Blocks(analytics_enabled=False):
        parts = build_extras_step(desk)
    values = {name: part.value for name, part in parts.items()}
    assert values["models"] == ["wd-mini"]
    image = draw(Scene("star", "red", "grey"))
    assert "star" in caption_picture(desk, image, **{**values, "trigger": "zork"}).split(", ")
    with pytest.raises(TaggerError, match="No tagger is chosen"):
        caption_picture(desk, image, **{**values, "models": None})
    with pytest.raises(ConfigError, match="Tags to leave out"):
        caption_picture(desk, image, **{**values, "exclude": "/(/"})


def test_nothing_stands_beside_the_two_columns(desk: TaggerDesk, tmp_path: Path) -> None:
    """Not even what nobody sees: it would have its share of a wide page."""
    with gr.Blocks(analytics_enabled=False) as app:
        build_tagger_page(desk, TaggerOptions("(text) => {}"))
        build_train_page(TrainingDesk(FakeHost(tmp_path)), PageOptions(tmp_path, "(text) => {}"))
        build_models_page(ToolDesk(), FakeHost(tmp_path))
    rows = [one for one in app.blocks.values() if "trainer-columns" in (getattr(one, "elem_classes", None) or ())]
    assert [[type(child) for child in row.children] for row in rows] == [[gr.Column, gr.Column]] * 3


def test_no_event_waits_in_the_hosts_queue_and_nothing_goes_to_ui_config(desk: TaggerDesk) -> None:
    with gr.Blocks(analytics_enabled=False) as app:
        build_tagger_page(desk, TaggerOptions("(text) => {}"))
    assert [d for d in app.dependencies if d["backend_fn"] and d["queue"] is not False] == []
    kept = [
        block for block in app.blocks.values()
        if isinstance(block, gr.components.IOComponent) and not getattr(block, "do_not_save_to_config", False)
    ]  # fmt: skip
    assert [block for block in kept if not isinstance(block, gr.HTML)] == []
