"""Tiled VAE's settings where a script runs one generation within another, on stand-ins for the WebUI's modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

NAME = "lib_trainer.host.webui.tiled_vae"


class Generation:
    """`StableDiffusionProcessing` is held weakly."""


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
