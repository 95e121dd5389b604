"""Autocast on every kind of device, with the functions that each version of torch has for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_trainer import autocasting
from lib_trainer.autocasting import autocast_dtype, autocasts, compute_dtype, switch, without_autocast


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    for known in (switch, autocasts):
        known.cache_clear()
    yield
    for known in (switch, autocasts):
        known.cache_clear()


def test_what_is_computed_in_follows_autocast() -> None:
    x = torch.zeros(1)
    assert compute_dtype(x) is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(x) is torch.bfloat16
        with without_autocast("cpu"):
            assert compute_dtype(x) is torch.float32
        assert compute_dtype(x) is torch.bfloat16


def test_the_bare_switch_turns_it_off_and_on() -> None:
    cpu, a = switch("cpu"), torch.ones(2, 2)
    assert cpu is not None
    with torch.autocast("cpu", torch.bfloat16):
        cpu.turn(False)
        assert (a @ a).dtype is torch.float32 and autocast_dtype("cpu") is None
        cpu.turn(True)
        assert (a @ a).dtype is torch.bfloat16 and autocast_dtype("cpu") is torch.bfloat16


class Older:
    """torch before 2.4: a name for each kind, of torch itself or of the device's plug-in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        self.on = True
        self.turned: list[bool] = []
        middle = {"cuda": ("", "_gpu"), "cpu": ("_cpu", "_cpu"), "xpu": ("_xpu", "_xpu")}.get(kind, ("", ""))
        functions = {
            f"is_autocast{middle[0]}_enabled": lambda: self.on,
            f"get_autocast{middle[1]}_dtype": lambda: torch.float16,
            f"set_autocast{middle[0]}_enabled": self.turned.append,
        }
        if kind in ("cuda", "cpu"):
            for name, function in functions.items():
                monkeypatch.setattr(torch, name, function)
        else:
            monkeypatch.setattr(torch, kind, SimpleNamespace(**functions), raising=False)
        monkeypatch.delattr(torch, "get_autocast_dtype", raising=False)


@pytest.mark.parametrize("kind", ["cuda", "cpu", "xpu", "privateuseone"])
def test_before_torch_2_4_each_kind_has_functions_of_its_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    older = Older(monkeypatch, kind)
    found = switch(kind)
    assert found is not None and autocast_dtype(kind) is torch.float16
    found.turn(False)
    assert older.turned == [False]
    older.on = False
    assert autocast_dtype(kind) is None


@pytest.mark.parametrize("kind", ["mps", "privateuseone", "xpu"])
def test_before_torch_2_4_what_is_not_known_is_never_on(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac with the WebUI's torch, and with DirectML: even to turn autocast off is refused there."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"User specified an unsupported autocast device_type '{kind}'")

    monkeypatch.delattr(torch, "get_autocast_dtype", raising=False)
    monkeypatch.setattr(torch, kind, SimpleNamespace(), raising=False)
    monkeypatch.setattr(torch, "autocast", refuse)
    assert switch(kind) is None and autocast_dtype(kind) is None
    assert not autocasts(kind) and not autocasts(kind, torch.bfloat16)
    assert isinstance(without_autocast(kind), nullcontext)


@pytest.mark.parametrize("kind", ["meta", "privateuseone", "a kind from tomorrow"])
def test_a_device_without_autocast_is_no_error(kind: str) -> None:
    assert not autocasts(kind, torch.bfloat16)
    assert autocast_dtype(kind) is None
    with without_autocast(kind):
        assert autocast_dtype(kind) is None


def test_nobody_turns_autocast_off_without_asking() -> None:
    """`torch.autocast(kind, enabled=False)` raises where the kind is not known."""
    from pathlib import Path

    package = Path(autocasting.__file__).parent
    found = [path.name for path in package.rglob("*.py") if "enabled=False)" in path.read_text("utf-8")]
    assert [name for name in found if name != "autocasting.py"] == []
