"""Layers that other extensions have changed: honoured, or the module's own way is taken and said so."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from lib_trainer.host.holding import fingerprint
from lib_trainer.refusals import Sentence
from lib_trainer.tiling import attach
from lib_trainer.tiling.attach import banded, decide_and_run
from lib_trainer.tiling.changed import changed_layers
from lib_trainer.tiling.engine import Options
from tests.tiling.conftest import MODULES, build_diffusers, error, given

Change = Callable[[nn.Module], contextlib.AbstractContextManager[object]]


def asymmetric(layer: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x wraps round, y has zeros: what the Asymmetric Tiling extension puts in the place of `_conv_forward`."""
    across, down = layer.padding[1], layer.padding[0]
    assert isinstance(across, int) and isinstance(down, int)
    x = F.pad(F.pad(x, (across, across, 0, 0), "circular"), (0, 0, down, down))
    return F.conv2d(x, weight, bias, layer.stride, 0, layer.dilation, layer.groups)


@contextlib.contextmanager
def bound(module: nn.Module, forward: Callable[[nn.Conv2d], Callable[..., torch.Tensor]]) -> Iterator[None]:
    """Each convolution has a `_conv_forward` of its own."""
    layers = [one for one in module.modules() if isinstance(one, nn.Conv2d)]
    for layer in layers:
        layer._conv_forward = forward(layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer._conv_forward


def other_padding(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    return bound(module, lambda layer: functools.partial(asymmetric, layer))


def turned_off(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """What that extension leaves when it is off: torch's own method, bound anew."""
    return bound(module, lambda layer: nn.Conv2d._conv_forward.__get__(layer, nn.Conv2d))


@contextlib.contextmanager
def louder(module: nn.Module) -> Iterator[None]:
    """A `forward` of one instance."""
    layer = norm_of(module)
    own = layer.forward
    layer.forward = lambda x: own(x) * 1.5
    try:
        yield
    finally:
        del layer.forward


@contextlib.contextmanager
def hooked(module: nn.Module) -> Iterator[None]:
    handle = norm_of(module).register_forward_hook(lambda _, __, out: out * 1.5)
    try:
        yield
    finally:
        handle.remove()


class Scaled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 1.5


@contextlib.contextmanager
def parametrized(module: nn.Module) -> Iterator[None]:
    parametrize.register_parametrization(module.conv_out, "weight", Scaled())
    try:
        yield
    finally:
        parametrize.remove_parametrizations(module.conv_out, "weight", leave_parametrized=False)


@contextlib.contextmanager
def weight_normed(module: nn.Module) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = nn.utils.weight_norm(module.conv_out)
    layer.weight_g.data *= 1.5  # the old form computes `weight` by a hook: until then it is stale
    try:
        yield
    finally:
        nn.utils.remove_weight_norm(layer)


class Loud(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1.5


@contextlib.contextmanager
def subclassed(module: nn.Module) -> Iterator[None]:
    layer, kind = module.conv_out, type(module.conv_out)
    layer.__class__ = Loud
    try:
        yield
    finally:
        layer.__class__ = kind


def norm_of(module: nn.Module) -> Any:
    return next(one for one in module.modules() if isinstance(one, nn.GroupNorm))


LEFT: dict[str, Change] = {
    "another padding": other_padding, "a forward": louder, "a hook": hooked, "weight_norm": weight_normed,
    "a subclass": subclassed,
}  # fmt: skip
HONOURED: dict[str, Change] = {"a parametrization": parametrized, "turned off again": turned_off}


@pytest.mark.parametrize("change", LEFT)
@pytest.mark.parametrize("name", MODULES[:3])
def test_a_changed_layer_is_left_to_the_module_with_a_sentence(
    modules: dict[str, Any], name: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x, told = copy.deepcopy(modules[name]), given(name, 1, 8, 8), list[Sentence]()
    monkeypatch.setattr(attach, "run", lambda *_: pytest.fail("it ran in bands"))
    with torch.no_grad():
        own = module(x)
        with LEFT[change](module):
            expected = module(x)
            assert error(expected, own)[0] > 0.05, "the change does nothing"
            found = decide_and_run(module, x, module, Options(), always=True, say=told.append)
    assert torch.equal(found, expected)
    assert len(told) == 1 and "another extension has changed the VAE" in str(told[0])
    assert list(changed_layers(module)) == []


@pytest.mark.parametrize("change", HONOURED)
@pytest.mark.parametrize("name", MODULES)
def test_what_the_weights_say_is_honoured(modules: dict[str, Any], name: str, change: str) -> None:
    module, x = copy.deepcopy(modules[name]), given(name, 1, 8, 8)
    with torch.no_grad(), HONOURED[change](module):
        expected = module(x)
        found = decide_and_run(module, x, lambda _: pytest.fail("plain"), Options(), always=True, say=pytest.fail)
    assert error(found, expected)[0] <= 1e-4


def test_nothing_is_said_of_a_picture_that_fits_anyway(modules: dict[str, Any]) -> None:
    """Automatic: the untiled way would have been taken without the change too."""
    module, x = modules["ldm decoder"], given("ldm decoder", 1, 8, 8)
    with torch.no_grad(), other_padding(module):
        assert torch.equal(decide_and_run(module, x, module, Options(), say=pytest.fail), module(x))


def test_memory_that_runs_out_in_a_changed_module_is_its_own_error(modules: dict[str, Any]) -> None:
    module, x = modules["ldm decoder"], given("ldm decoder", 1, 8, 8)

    def plain(_: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("out of memory")

    with other_padding(module), pytest.raises(torch.cuda.OutOfMemoryError):
        decide_and_run(module, x, plain, Options(), say=pytest.fail)


def test_a_defect_in_the_engine_is_not_called_left_out(
    modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(attach, "run", broken)
    module, x = modules["ldm decoder"], given("ldm decoder", 1, 8, 8)
    with pytest.raises(ValueError, match="a defect"):
        decide_and_run(module, x, module, Options(), always=True, say=pytest.fail)


def test_a_budget_that_is_too_small_is_said_and_left(modules: dict[str, Any]) -> None:
    module, x, told = modules["ldm decoder"], given("ldm decoder", 1, 8, 8), list[Sentence]()
    with torch.no_grad():
        found = decide_and_run(module, x, module, Options(budget=1), say=told.append)
        assert torch.equal(found, module(x))
    assert "budget of less than 0.01 GiB is too small" in str(told[0])


def test_a_forward_of_the_whole_module_is_left_alone(modules: dict[str, Any]) -> None:
    module, x = modules["ldm decoder"], given("ldm decoder", 1, 4, 4)
    own = module.forward
    module.forward = lambda x: own(x) * 2
    try:
        with torch.no_grad(), banded(module, Options(budget=1)):
            assert torch.equal(module(x), own(x) * 2)
    finally:
        del module.forward


def test_a_changed_vae_has_no_fingerprint_and_another_padding_another() -> None:
    vae = build_diffusers()
    own = fingerprint(vae)
    assert own and fingerprint(vae) == own
    with other_padding(vae.encoder):
        assert fingerprint(vae) == ""
    with turned_off(vae.encoder):
        assert fingerprint(vae) == own
    vae.encoder.conv_in.padding_mode = "circular"
    assert fingerprint(vae) not in ("", own)
