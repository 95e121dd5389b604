"""Grids of pictures: each cell where its row and column say, whatever the labels."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from PIL import Image

from lib_trainer import grids, lettering
from lib_trainer.refusals import Sentence, speak


def colours(sheet: Image.Image) -> list[str]:
    """The plain colours of a sheet's rows of cells, from the top left on, each once."""
    found: list[str] = []
    names = {(255, 0, 0): "red", (0, 255, 0): "green", (0, 0, 255): "blue", (229, 231, 235): "empty"}
    for y in range(0, sheet.height, 4):
        for x in range(0, sheet.width, 4):
            name = names.get(sheet.getpixel((x, y)))
            if name and name not in found:
                found.append(name)
    return found


def plain(colour: str, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_cells_are_where_their_labels_say() -> None:
    red, green, blue = plain("#ff0000"), plain("#00ff00"), plain("#0000ff")
    sheet = grids.painted(["0", "一" * 50], ["a row with a long name " * 20, ""], [[red, green], [None, blue]])
    assert colours(sheet) == ["red", "green", "empty", "blue"]
    assert sheet.width > 100 + 2 * 70, "the row's label has its room"
    bare = grids.painted(["", ""], ["", ""], [[red, green], [None, blue]])
    assert bare.size == (2 * 70 + grids.GAP, 2 * 54 + grids.GAP)


def test_pictures_of_another_size_and_large_grids_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [[plain("#ff0000"), plain("#00ff00", (200, 10))]]
    assert colours(grids.painted(["a", "b"], [""], cells)) == ["red", "green"]
    monkeypatch.setattr(grids, "MOST_PIXELS", 2 * 32 * 24)
    small = grids.painted(["", ""], [""], cells)
    across, down = (round(side * (2 * 32 * 24 / (264 * 48)) ** 0.5) for side in (64, 48))
    wide = round(200 * (2 * 32 * 24 / (264 * 48)) ** 0.5)
    assert small.size == (across + wide + 3 * grids.GAP, down + 2 * grids.GAP), "each column has its own width"


def test_a_font_is_found_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that fails within matplotlib's import keeps the frames of who asked for it: a whole run, for good."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    lettering._plain.cache_clear()
    assert lettering.length("n" * 20) > 100
    assert "matplotlib" not in sys.modules


@pytest.fixture
def chinese() -> Iterator[None]:
    speak("zh")
    yield
    speak("en")


@pytest.mark.usefixtures("chinese")
def test_labels_are_chinese_where_a_font_draws_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """No box stands for a letter, in a prompt of the user's neither."""
    label = Sentence("drawn.step", step=3)
    monkeypatch.setattr(lettering, "_chinese", lambda: None)
    assert lettering.said(label) == "step 3" and lettering.legible("a 红 é cat") == "a ? é cat"
    with_letters = grids.painted(["红 cat"], [""], [[plain("#ff0000")]])
    assert with_letters.tobytes() == grids.painted(["? cat"], [""], [[plain("#ff0000")]]).tobytes()
    monkeypatch.setattr(lettering, "_has", lambda font, letter: True)
    assert lettering.said(label) == "第 3 步" and lettering.legible("红") == "红"


@pytest.mark.skipif(lettering._chinese() is None, reason="this system has no font with Chinese letters")
@pytest.mark.usefixtures("chinese")
def test_chinese_labels_fit() -> None:
    assert lettering.said(Sentence("drawn.end")) == lettering.legible("结束时") == "结束时"
    sheet = grids.painted(["红" * 50], [""], [[plain("#ff0000", (200, 20))]])
    bare = grids.painted([""], [""], [[plain("#ff0000", (200, 20))]])
    assert sheet.width == bare.width and sheet.height > bare.height
    beyond = sheet.crop((sheet.width - grids.GAP, 0, sheet.width, sheet.height))
    assert beyond.getcolors() == [(beyond.width * beyond.height, (255, 255, 255))]
