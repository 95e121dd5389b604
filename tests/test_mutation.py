"""Mutation testing's own parts: which mutants are drawn, and which function a call reaches."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from bench import mutant_switch
from bench.mutation import sample


def switch_of(folder: Path, *watched: str) -> ModuleType:
    """The switch as it lies in a mutated copy."""
    shutil.copy2(mutant_switch.__file__, folder / "trampoline.py")
    (folder / "watched.json").write_text(json.dumps(watched), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("trampoline", folder / "trampoline.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_mutant_stands_in_for_its_function_and_no_other(tmp_path: Path) -> None:
    switch = switch_of(tmp_path, "some.x_twice", "some.xǁOneǁname")

    def made(name: str, result: str) -> Any:
        def function(*args: Any) -> str:
            return result

        function.__module__, function.__qualname__ = "some", name
        return function

    mutants: dict[str, Any] = {"x_twice__mutmut_1": made("x_twice__mutmut_1", "mutant 1")}
    mutants["x_twice__mutmut_12"] = made("x_twice__mutmut_12", "mutant 12")
    twice = switch.wrap_in_trampoline(mutants)(made("twice", "twice"))
    method = switch.wrap_in_trampoline({"xǁOneǁname__mutmut_1": made("x", "mutant")})(made("One.name", "name"))
    plain = made("plain", "plain")
    assert switch.wrap_in_trampoline({})(plain) is plain
    told = []
    for active in ("", "some.x_twice__mutmut_1", "some.x_twice__mutmut_12", "some.xǁOneǁname__mutmut_1"):
        switch.active = active  # type: ignore[attr-defined]
        told.append((twice(), method(None)))
    assert told == [("twice", "name"), ("mutant 1", "name"), ("mutant 12", "name"), ("twice", "mutant")]
    assert switch.hits == {"some.x_twice", "some.xǁOneǁname"}


def test_a_sample_has_each_parts_share_and_hangs_on_its_seed() -> None:
    found = {"a": [f"a{number}" for number in range(300)], "b": [f"b{number}" for number in range(100)]}
    drawn = sample(found, 40, 1)
    assert sorted(drawn) == sorted(set(drawn)) and sample(found, 40, 1) == drawn != sample(found, 40, 2)
    assert [sum(part == one for part, _ in drawn) for one in "ab"] == [30, 10]
    assert [part for part, _ in drawn] != sorted(part for part, _ in drawn)
