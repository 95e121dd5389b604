"""Tiled VAE's settings where a script runs one generation within another, on stand-ins for the WebUI's modules."""

from __future__ import annotations

import importlib
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

NAME = "lib_trainer.host.webui.tiled_vae"
SCRIPT = Path(__file__).parents[2] / "scripts" / "trainer_tiled_vae.py"


class Generation:
    """`StableDiffusionProcessing` is held weakly."""

    def __init__(self) -> None:
        self.extra_generation_params: dict[str, str] = {}


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    package, shared = ModuleType("modules"), ModuleType("modules.shared")
    shared.state = SimpleNamespace(time_start=1.0)  # type: ignore[attr-defined]
    package.shared = shared  # type: ignore[attr-defined]
    for module in (package, shared):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


def test_the_outer_generation_has_its_settings_again(ours: Any) -> None:
    outer, inner, switch = Generation(), Generation(), ours.Switch()
    wanted, other = ours.Settings(always=True), ours.Settings(budget=1)
    switch.begin(outer, wanted)
    for settings in (other, None):
        switch.begin(inner, settings)
        assert (switch.current() and switch.current().settings) == settings
        switch.end(inner)
        assert switch.current().settings == wanted
    switch.end(outer)
    assert switch.current() is None


def test_an_inner_generation_that_fails_ends_with_the_next_batch(ours: Any) -> None:
    """It calls nobody. The same object may be processed within itself, too."""
    outer, inner, switch = Generation(), Generation(), ours.Switch()
    switch.begin(outer, ours.Settings(always=True))
    switch.begin(outer, ours.Settings(budget=1))
    switch.begin(inner, None)
    switch.back_to(outer)
    assert switch.current().settings.budget == 1
    switch.end(inner)
    assert switch.current().settings.budget == 1
    switch.end(outer)
    switch.begin(inner, None)
    switch.end(outer)
    assert switch.current() is None


def test_the_next_job_begins_with_nothing(ours: Any) -> None:
    outer, switch = Generation(), ours.Switch()
    switch.begin(outer, ours.Settings(always=True))
    ours.shared.state.time_start = 2.0
    assert switch.current() is None
    switch.begin(outer, None)
    switch.end(outer)
    assert switch.job is None


@pytest.fixture
def script(ours: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as the WebUI loads it: one object for all generations."""
    package = sys.modules["modules"]
    used = {"script_callbacks": ("on_ui_settings", "on_script_unloaded"), "ui_components": ("InputAccordion",)}
    for name, names in {**used, "scripts": ()}.items():
        module = ModuleType(f"modules.{name}")
        for attribute in names:
            setattr(module, attribute, lambda *_: None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        setattr(package, name, module)
    sys.modules["modules.scripts"].Script = object  # type: ignore[attr-defined]
    monkeypatch.setattr(ours, "HOMES", ())
    with warnings.catch_warnings():  # gradio 3 and what it imports warn of their own age
        warnings.simplefilter("ignore")
        return runpy.run_path(str(SCRIPT))["TiledVae"]()


def test_the_script_goes_back_to_a_generation_with_each_of_its_batches(ours: Any, script: Any) -> None:
    """A detailer's generation within the first batch that fails, as with an error of the sampler, says so to nobody."""
    outer, inner = Generation(), Generation()
    script.before_process(outer, True, "Always")
    script.before_process_batch(outer, True, "Always")
    for values in ((False,), (True, "Automatic", 3.0)):
        script.before_process(inner, *values)
        script.before_process_batch(inner, *values)
        assert (ours.switch.current() is None) is (values == (False,))
        script.before_process_batch(outer, True, "Always")
        assert ours.switch.current().settings.always
    script.postprocess(outer, None)
    assert ours.switch.job is None
