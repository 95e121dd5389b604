"""The desk: whose turn it is on the graphics card, downloads in the background, and the command line's download."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_trainer.cli.main import main
from lib_trainer.refusals import TaggerError
from lib_trainer.tagging import desk as desk_module
from lib_trainer.tagging.captions.style import Style
from lib_trainer.tagging.desk import TaggerDesk
from lib_trainer.tagging.models import registry
from lib_trainer.tagging.models.folders import at, find_taggers
from lib_trainer.tagging.models.registry import Found, Kind
from lib_trainer.tagging.scores.table import Thresholds
from lib_trainer.tagging.views import Places, Selection
from tests.tagging.conftest import MINI, MakeModel, draw_scenes
from tests.tagging.hub import Hub
from tests.tagging.hub import hub as hub


class Turns:
    """A host's queue that notes who waited, and cannot be entered twice, like the WebUI's."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.held = False

    @contextlib.contextmanager
    def lease(self, title: str) -> Iterator[None]:
        assert not self.held, "it would wait for itself"
        self.held = True
        self.taken.append(title)
        try:
            yield
        finally:
            self.held = False


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
def desk(tmp_path: Path, turns: Turns) -> TaggerDesk:
    return TaggerDesk(Places(lambda: [MINI.parent, tmp_path / "new"], lambda: tmp_path / "new", turns.lease))


def on_a_card(desk: TaggerDesk) -> Any:
    """The miniature, as if it ran on a graphics card."""
    tagger: Any = desk.tagger("wd-mini")
    tagger.device = "CUDA"
    return tagger


def test_a_graphics_card_is_waited_for_and_given_back(desk: TaggerDesk, turns: Turns, tmp_path: Path) -> None:
    draw_scenes(tmp_path / "pictures", 5)
    on_a_card(desk)
    desk.start_scoring(Selection(str(tmp_path / "pictures"), True, ("wd-mini",)))
    view = desk.wait(60)
    assert view is not None and view.state == "finished" and "runs on CUDA" in str(view.notes[0])
    assert turns.taken == ["Tagging"] and not turns.held
    assert desk.device() is None, "its memory is free for the next generation"


def test_the_processor_waits_for_nobody(desk: TaggerDesk, turns: Turns, tmp_path: Path) -> None:
    draw_scenes(tmp_path / "pictures", 5)
    desk.start_scoring(Selection(str(tmp_path / "pictures"), True, ("wd-mini",)), "cpu")
    desk.wait(60)
    assert turns.taken == [] and "wd-mini runs on CPU" in str(desk.device())
    desk.unload()
    assert desk.device() is None


def test_who_has_the_turn_does_not_wait_for_itself(desk: TaggerDesk, turns: Turns, tmp_path: Path) -> None:
    draw_scenes(tmp_path / "pictures", 1)
    on_a_card(desk)
    key = desk.remember((tmp_path / "pictures" / "000.png").read_bytes())
    with turns.lease("Extras"):
        assert len(desk.single(key, ["wd-mini"], waits=False)) == 1
    assert turns.taken == ["Extras"] and desk.device(), "and the model stays for the next picture"


@pytest.fixture
def mini_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    known = registry.known_model("wd-vit-tagger-v3")
    assert known is not None
    hub.revision = known.revision
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in MINI.iterdir()}
    monkeypatch.setattr(registry, "KNOWN_MODELS", (replace(known, hashes=hashes), *registry.KNOWN_MODELS[1:]))
    hub.files = {path.name: path.read_bytes() for path in MINI.iterdir()}
    return hub


def test_a_download_in_the_background_is_found_at_once(desk: TaggerDesk, mini_hub: Hub) -> None:
    assert [item.name for item in desk.found()] == ["wd-mini"]
    desk.start_download("wd-vit-tagger-v3")
    view = desk.wait(60)
    assert view is not None and view.state == "finished" and "wd-vit-tagger-v3 is in" in str(view.told)
    assert [item.name for item in desk.found()] == ["wd-mini", "wd-vit-tagger-v3"]
    assert desk.tagger("wd-vit-tagger-v3", "cpu").side == 64


def test_a_download_that_fails_is_told(desk: TaggerDesk, mini_hub: Hub) -> None:
    del mini_hub.files["model.onnx"]
    desk.start_download("wd-vit-tagger-v3")
    view = desk.wait(60)
    assert view is not None and view.state == "failed" and "does not exist (404)" in view.error


def test_the_command_line_fetches_only_when_told_to(
    mini_hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_scenes(tmp_path / "pictures", 3)
    command = ["tag", str(tmp_path / "pictures"), "--models", str(tmp_path / "models"), "--device", "cpu"]
    assert main(command) == 2 and mini_hub.asked == []
    told = capsys.readouterr().err
    assert f"no tagger below '{tmp_path / 'models'}': --download fetches wd-swinv2-tagger-v3, and --model" in told
    assert main([*command, "--download"]) == 2, "this hub has another one alone"
    assert {path.split("/")[2] for _, path, _ in mini_hub.asked} == {"wd-swinv2-tagger-v3"}
    mini_hub.asked.clear()
    command += ["--model", "wd-vit-tagger-v3"]
    assert main(command) == 2 and mini_hub.asked == []
    assert "There is no tagger called 'wd-vit-tagger-v3'" in capsys.readouterr().err
    assert main([*command, "--download"]) == 0
    assert (tmp_path / "models" / "wd-tagger" / "wd-vit-tagger-v3" / "model.onnx").is_file()
    assert len(list((tmp_path / "pictures").glob("*.txt"))) == 3
    mini_hub.asked.clear()
    assert main([*command, "--download"]) == 0 and mini_hub.asked == []


def held_up(monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[threading.Event, threading.Event]:
    """A function of the desk's that waits; set when it is entered, and what lets it go on."""
    entered, go_on = threading.Event(), threading.Event()
    real: Callable[..., Any] = getattr(desk_module, name)

    def waiting(*given: Any, **options: Any) -> Any:
        if "slow" in str(given[0]):
            entered.set()
            assert go_on.wait(30)
        return real(*given, **options)

    monkeypatch.setattr(desk_module, name, waiting)
    return entered, go_on


def test_a_folder_that_is_read_slowly_keeps_nobody_waiting(
    desk: TaggerDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pages on one desk: one has given a folder on a slow drive."""
    for name in ("quick", "slow"):
        draw_scenes(tmp_path / name, 3)
        desk.start_scoring(Selection(str(tmp_path / name), True, ("wd-mini",)), "cpu")
        desk.wait(60)
    entered, go_on = held_up(monkeypatch, "list_pictures")
    found: list[Any] = []
    slow = threading.Thread(
        target=lambda: found.append(desk.opened(Selection(str(tmp_path / "slow"), True, ("wd-mini",)), Style()))
    )
    slow.start()
    assert entered.wait(10)
    quick = Selection(str(tmp_path / "quick"), True, ("wd-mini",))
    assert len(desk.opened(quick, Style()).paths) == 3
    desk.stop(), desk.device(), desk.mark()
    desk.start_scoring(quick, "cpu")
    desk.wait(60)
    go_on.set()
    slow.join()
    assert len(found[0].paths) == 3
    assert desk.opened(quick, Style()) is desk.opened(quick, Style()), "both are kept"


def test_a_model_that_is_being_opened_does_not_hold_the_slider(
    desk: TaggerDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_scenes(tmp_path / "pictures", 3)
    chosen = Selection(str(tmp_path / "pictures"), True, ("wd-mini",))
    desk.start_scoring(chosen, "cpu")
    desk.wait(60)
    desk.unload()
    entered, go_on = threading.Event(), threading.Event()
    real = Found.open

    def opening(self: Found, **options: Any) -> Any:
        entered.set()
        assert go_on.wait(30)
        return real(self, **options)

    monkeypatch.setattr(Found, "open", opening)
    thread = threading.Thread(target=lambda: desk.tagger("wd-mini", "cpu"))
    thread.start()
    assert entered.wait(10)
    assert len(desk.opened(chosen, Style()).preview(Thresholds(), Style()).tags) > 0
    assert desk.device() is None
    go_on.set()
    thread.join()
    assert "wd-mini runs on CPU" in str(desk.device())


def test_looking_at_a_path_makes_nothing_in_it(desk: TaggerDesk, tmp_path: Path) -> None:
    """Nor in the folders above, which the path names while it is typed."""
    draw_scenes(tmp_path / "a" / "b" / "c", 3)
    draw_scenes(tmp_path / "a", 1)
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        with pytest.raises(TaggerError, match="press Tag"):
            desk.opened(Selection(str(folder), True, ("wd-mini",)), Style())
    assert list(tmp_path.rglob(".trainer")) == []


def test_another_kind_of_tagger_is_asked_for_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry knows the format, and nobody else."""
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "odd.bin").write_bytes(b"x")
    odd = Kind("odd", ("odd.bin",), lambda folder, **options: None, lambda folder: "odd mark")  # type: ignore[arg-type, return-value]
    monkeypatch.setitem(registry.KINDS, "odd", odd)  # type: ignore[arg-type]
    found = find_taggers([tmp_path])
    assert [(item.name, item.kind, item.problem) for item in found] == [("odd", "odd", None)]
    assert at(tmp_path / "odd").fingerprint() == "odd mark"


def test_a_model_that_was_replaced_on_the_disk_is_opened_anew(tmp_path: Path, make_model: MakeModel) -> None:
    """What the old one says would be kept under its name, and never be found by the new one's."""
    folder, other = make_model("models/odd"), make_model("other", labels=[("b", 0), ("c", 0), ("d", 0)])
    desk = TaggerDesk(Places(lambda: [tmp_path / "models"], lambda: tmp_path / "models"))
    draw_scenes(tmp_path / "set", 2)
    key = desk.remember((tmp_path / "set" / "000.png").read_bytes())
    assert desk.single(key, ["odd"]).labels.names[1] == "long_hair"
    held = desk.tagger("odd")
    assert desk.tagger("odd") is held
    for name in ("model.onnx", "selected_tags.csv"):
        shutil.copy(other / name, folder / name)
    assert desk.single(key, ["odd"]).labels.names == ("b", "c", "d")
    chosen = Selection(str(tmp_path / "set"), True, ("odd",))
    desk.start_scoring(chosen)
    assert (view := desk.wait(60)) is not None and view.state == "finished"
    assert desk.opened(chosen, Style()).table.labels.names == ("b", "c", "d")
