"""The engine in a module's place: only where it is needed, and gone afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lib_trainer import memory
from lib_trainer.host.holding import encode_moments
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.tiling import attach
from lib_trainer.tiling.adapters import describe
from lib_trainer.tiling.attach import banded, coarse, worth_it
from lib_trainer.tiling.choose import untiled_bytes
from lib_trainer.tiling.engine import Options
from tests.tiling.conftest import MODULES, build_diffusers, error, given


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of network that were run in bands."""
    own, seen = attach.run, list[str]()

    def run(network: Any, *rest: Any) -> torch.Tensor:
        seen.append(network.kind)
        return own(network, *rest)

    monkeypatch.setattr(attach, "run", run)
    return seen


def scarce(monkeypatch: pytest.MonkeyPatch, share: float, network: Any, shape: tuple[int, ...]) -> None:
    """Free memory is that share of what the untiled module needs."""
    monkeypatch.setattr(attach, "SMALL_BYTES", 0)
    monkeypatch.setattr(attach, "free_bytes", lambda device: int(share * untiled_bytes(network, shape, 4)))


@pytest.mark.parametrize("name", MODULES)
def test_a_picture_that_fits_goes_the_plain_way(modules: dict[str, Any], name: str, runs: list[str]) -> None:
    module, x, calls = modules[name], given(name, 1, 8, 8), []
    handle = module.conv_in.register_forward_hook(lambda *_: calls.append(1))
    try:
        with torch.no_grad(), banded(module):
            module(x)
    finally:
        handle.remove()
    assert calls == [1], "the module's own layers were not called"
    assert runs == []
    assert "forward" not in vars(module)


@pytest.mark.parametrize("name", MODULES)
def test_a_picture_that_does_not_fit_goes_in_bands(
    modules: dict[str, Any], name: str, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = modules[name], given(name, 1, 8, 8)
    with torch.no_grad():
        expected = module(x)
        scarce(monkeypatch, 1.05, describe(module), tuple(x.shape))
        with banded(module):
            found = module(x)
    assert runs == [name.split()[1]]
    assert error(found, expected)[0] <= 1e-4
    assert "forward" not in vars(module)


def test_free_memory_decides(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = describe(modules["ldm decoder"]), given("ldm decoder", 1, 32, 32)
    scarce(monkeypatch, 1 / memory.SHARE + 0.01, network, tuple(x.shape))
    assert not worth_it(network, x)
    scarce(monkeypatch, 1 / memory.SHARE - 0.01, network, tuple(x.shape))
    assert worth_it(network, x)
    assert worth_it(network, x, budget=1000)


def test_a_module_that_runs_out_of_memory_is_helped(
    modules: dict[str, Any], runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = modules["ldm decoder"], given("ldm decoder", 1, 8, 8)
    with torch.no_grad():
        expected = module(x)

        def too_much(*_: Any) -> None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

        with monkeypatch.context() as patch:
            patch.setattr(type(module), "forward", too_much)
            with banded(module):
                found = module(x)
    assert runs == ["decoder"]
    assert error(found, expected)[0] <= 1e-4


def test_other_modules_and_inputs_are_left_alone(modules: dict[str, Any], runs: list[str]) -> None:
    approximate = nn.Conv2d(4, 3, 3, padding=1)
    with banded(approximate, Options(budget=1)):
        assert approximate(torch.zeros(1, 4, 8, 8)).shape == (1, 3, 8, 8)
    decoder = modules["ldm decoder"]
    with banded(decoder, Options(budget=1)), pytest.raises(RuntimeError, match="channels"):
        decoder(torch.zeros(1, 7, 8, 8))
    x = given("ldm decoder", 1, 4, 4).requires_grad_()
    with banded(decoder, Options(budget=1)):
        decoder(x).sum().backward()
    assert x.grad is not None
    assert runs == []


@pytest.mark.parametrize("name", MODULES[:2])
def test_a_coarse_picture_has_the_size_and_the_colours(
    modules: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "COARSE_SIDE", 8)
    small, shapes = given(name, 1, 2, 2), list[torch.Size]()
    module, x = modules[name], torch.nn.functional.interpolate(small, scale_factor=8.0, mode="bilinear")

    def forward(given: torch.Tensor) -> torch.Tensor:
        shapes.append(given.shape)
        made: torch.Tensor = module(given)
        return made

    with torch.no_grad():
        expected = module(x)
        found = coarse(forward, describe(module), x)
    assert shapes[0][2:] == torch.Size([x.shape[2] // 2, x.shape[3] // 2])
    assert found.shape == expected.shape
    assert float((found.mean() - expected.mean()).abs() / expected.std()) < 0.5


@pytest.mark.parametrize("side", [64, 72])
def test_both_hosts_encode_and_decode_through_it(
    side: int, runs: list[str], monkeypatch: pytest.MonkeyPatch, diffusers_model: DiffusersModel
) -> None:
    """`encode_moments` is what both hosts call; the preview's decoding is the standalone host's."""
    pixels = given("encoder", 1, side // 8, side // 8)
    vae = diffusers_model.vae
    plain = diffusers_model.encode_images(pixels)
    assert runs == []
    scarce(monkeypatch, 1.05, describe(vae.encoder), tuple(pixels.shape))
    assert error(diffusers_model.encode_images(pixels), plain)[0] <= 1e-4
    assert runs == ["encoder"]
    latents = plain[:, :4]
    scarce(monkeypatch, 1.05, describe(vae.decoder), tuple(latents.shape))
    found = diffusers_model.decode_latents(latents)
    assert runs == ["encoder", "decoder"]
    monkeypatch.undo()
    assert error(found, diffusers_model.decode_latents(latents))[0] <= 1e-4


def test_half_precision_that_overflows_is_computed_again_in_bands(
    runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 11 on the way through the engine."""
    vae = build_diffusers().to(torch.float16)
    vae.encoder.conv_in.weight.mul_(6e4)
    x = given("encoder", 1, 8, 8)
    scarce(monkeypatch, 0.5, describe(vae.encoder), tuple(x.shape))
    moments, _ = encode_moments(vae, lambda pixels: vae.encode(pixels).latent_dist.parameters, x)
    assert runs == ["encoder", "encoder"]
    assert bool(torch.isfinite(moments).all())
    assert vae.dtype is torch.float16
