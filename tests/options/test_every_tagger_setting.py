"""Every setting of the Tagger: a value, and what it changes in the captions that would be written."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_trainer.captions.edits import make_edit
from lib_trainer.dataset.editor import Editor
from lib_trainer.refusals import TrainerError
from lib_trainer.tagging.captions.writing import planned
from lib_trainer.tagging.desk import TaggerDesk
from lib_trainer.tagging.scores.known import known_tags
from lib_trainer.tagging.settings import TaggerSettings, tagger_specs
from lib_trainer.tagging.views import Places
from miniature.world import Scene, draw
from tests.tagging.conftest import MINI, draw_scenes

NEW, MINE, OLD = "000", "001", "002"
"""A picture without a caption; with tags that nobody knows; with the tagger's own, and others."""


@dataclass
class Bench:
    """A folder that two taggers have scored, and the captions that settings would give it."""

    desk: TaggerDesk
    folder: Path

    def captions(self, **values: Any) -> dict[str, str]:
        """{picture below the folder → file: caption} of those that would change; what is refused is told."""
        settings = TaggerSettings(**{"folder": str(self.folder), "models": ("wd-mini",), "general": 0.3, **values})
        try:
            style, thresholds = settings.style, settings.thresholds
            opened = self.desk.opened(settings.selection, style)
            preview = opened.preview(thresholds, style)
            changes = planned(opened, range(len(opened.paths)), preview.chosen, style)
            root = Path(settings.folder)
            return {one.picture.relative_to(root).as_posix(): one.composed.text for one in changes}
        except TrainerError as error:
            return {"refused": str(error)}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("bench")
    shutil.copytree(MINI, root / "models" / "wd-mini")
    shutil.copytree(MINI, root / "models" / "wd-odd")
    _swap_names(root / "models" / "wd-odd" / "selected_tags.csv")
    folder = root / "set"
    draw_scenes(folder, 4)
    draw(Scene("circle", "yellow", "white")).save(folder / "sol.png")
    (folder / "below").mkdir()
    shutil.copy(folder / "003.png", folder / "below" / "004.png")
    draw_scenes(root / "other", 1, seed=8)
    (folder / f"{MINE}.txt").write_text("typed by hand, of nobody", encoding="utf-8")
    desk = TaggerDesk(Places(lambda: [root / "models"], lambda: root / "models"))
    made = Bench(desk, folder)
    for place in (folder, root / "other"):
        settings = TaggerSettings(folder=str(place), models=("wd-mini", "wd-odd"))
        desk.start_scoring(settings.selection, "cpu")
        desk.wait(60)
    (folder / f"{OLD}.txt").write_text("the first, then", encoding="utf-8")
    yield made
    desk.stop()
    desk.wait(20)


def _swap_names(path: Path) -> None:
    """The same network with other names for its outputs: another tagger."""
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    general = [row for row in rows if row[2] == "0"]
    for row, name in zip(general, [row[1] for row in general[1:] + general[:1]], strict=True):
        row[1] = name
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])


ROWS: list[tuple[str, Any, dict[str, Any]]] = [
    ("recursive", False, {}),
    ("models", ("wd-odd",), {}),
    ("how", "agreement", {"models": ("wd-mini", "wd-odd")}),
    ("how", "union", {"models": ("wd-mini", "wd-odd")}),
    ("general", 0.999, {}),
    ("character", 1.0, {"character": 0.3}),
    ("mcut_general", True, {"general": 0.999}),
    ("mcut_character", True, {"character": 1.0}),
    ("ratings", True, {}),
    ("overrides", "simple background: 1", {}),
    ("trigger", "zork", {}),
    ("exclude", "simple background", {}),
    ("policy", "skip", {}),
    ("policy", "prepend", {}),
    ("foreign", True, {"policy": "replace"}),
    ("always", "film grain", {}),
    ("sort", "alphabet", {}),
    ("underscores", True, {}),
    ("escaped", True, {"trigger": "x (y)"}),
]
ELSEWHERE = {
    "folder": "test_the_folder_is_the_one_that_is_named",
    "template": "test_a_caption_has_the_name_of_the_template",
    "restore": "test_what_was_removed_by_hand_comes_back_where_it_may",
}
WITHOUT_EFFECT = {"device": "says where the scores are computed, and not what they are"}


def test_every_setting_is_in_the_table() -> None:
    named = {name for name, *_ in ROWS} | ELSEWHERE.keys() | WITHOUT_EFFECT.keys()
    assert named == set(tagger_specs())
    assert all(test in globals() for test in ELSEWHERE.values())


@pytest.mark.parametrize(("name", "value", "others"), ROWS, ids=lambda one: str(one)[:24])
def test_a_setting_changes_the_captions(bench: Bench, name: str, value: Any, others: dict[str, Any]) -> None:
    before, now = bench.captions(**others), bench.captions(**{**others, name: value})
    assert "refused" not in before and "refused" not in now
    assert now != before


def test_the_folder_is_the_one_that_is_named(bench: Bench) -> None:
    other = bench.folder.parent / "other"
    assert bench.captions(folder=str(other)).keys() == {"000.png"}
    assert bench.captions().keys() > {"000.png", "below/004.png"}


def test_a_caption_has_the_name_of_the_template(bench: Bench) -> None:
    """Where captions are called otherwise, those that lie there are not the pictures'."""
    before, now = (bench.captions(template=name)[f"{MINE}.png"] for name in ("{name}.txt", "{name}.caption"))
    assert before.startswith("typed by hand") and "typed by hand" not in now


def test_what_was_removed_by_hand_comes_back_where_it_may(bench: Bench, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bench.folder, tmp_path / "set"))
    own = Bench(bench.desk, folder)
    settings = TaggerSettings(folder=str(folder), models=("wd-mini",), general=0.3)
    bench.desk.start_writing(settings.selection, settings.thresholds, settings.style)
    bench.desk.wait(60)
    editor = Editor(folder, known_tags(folder))
    editor.apply(editor.preview(make_edit("remove", {"tags": "simple background"})))
    assert own.captions() == {}
    assert any("simple background" in text for text in own.captions(restore=True).values())


def test_the_device_is_the_one_that_is_asked_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    known = bench.desk.tagger

    def tagger(name: str, device: str = "auto", *rest: Any, **more: Any) -> Any:
        asked.append(device)
        return known(name, device, *rest, **more)

    monkeypatch.setattr(bench.desk, "tagger", tagger)
    picture = Image.fromarray(np.full((40, 40, 3), len(asked) + 90, np.uint8))
    picture.save(bench.folder.parent / "one.png")
    key = bench.desk.remember((bench.folder.parent / "one.png").read_bytes())
    bench.desk.single(key, ("wd-mini",), "mean", "cpu")
    assert asked == ["cpu"]
