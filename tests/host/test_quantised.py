"""Frozen weights in 8 bits: how near they are, that gradients go through them, and that nothing wide is kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.host import quantised
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.quantised import LARGEST, is_quantised, quantise, quantised_layers, quantised_parameters, widened
from lib_trainer.host.weights import Bus, Weights, held_parameters
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.ports import Conditioning, TrainingState
from tests.card import CPU, DEVICES
from tests.host.cards import Card
from tests.support import CONTEXT, differences, relative, roots_of, snapshot

RELATIVE_ERROR = 0.035
"""Of a weight in e4m3: three bits behind the point, so a number is at most 1/16 off; 0.026 in the mean of many."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(24, 40), (24, 16, 3, 3)], ids=str)
@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_codes_are_as_near_as_the_format_allows(shape: tuple[int, ...], size: float, device: torch.device) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * size
    weight[3] *= 1e-3  # a channel's own scale
    weight[4] = 0
    made, wanted = quantise(weight.to(device)), quantise(weight)
    assert all(torch.equal(one.cpu().float(), other.float()) for one, other in zip(made, wanted, strict=True))
    (codes, scale), weight = made, weight.to(device)
    assert codes.dtype is torch.float8_e4m3fn and codes.shape == weight.shape
    assert bool((torch.frexp(scale)[0] == 0.5).all()), "powers of two"
    assert float(codes.float().abs().max()) <= LARGEST and bool(codes.float().isfinite().all())
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        if dtype is torch.float16 and size < 1e-3:
            continue  # below its smallest number
        back = widened(codes, scale, dtype)
        assert back.dtype is dtype
        assert relative(back, weight) < RELATIVE_ERROR and relative(back[3], weight[3]) < RELATIVE_ERROR
        assert not back[4].any()
        assert torch.equal(back.float(), widened(codes, scale, torch.float32)), "widened without rounding"


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(24, 32), (2, 5, 24)),
    "linear without bias": (nn.Linear(24, 32, bias=False), (3, 24)),
    "convolution": (nn.Conv2d(16, 24, 3, stride=2, padding=1), (2, 16, 9, 8)),
    "convolution in groups": (nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=2), (1, 32, 8, 8)),
}


def in_eight_bits(layer: nn.Module, bus: Bus | None = None) -> tuple[Weights, dict[nn.Module, Any]]:
    bus = bus or Bus(CPU)
    layers, held = quantised_parameters(layer, bus, held_parameters(layer, bus, torch.float32))
    return Weights({"unet": held}, bus), layers


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_that_of_its_widened_weight(name: str, device: torch.device) -> None:
    layer, shape = copy.deepcopy(LAYERS[name][0]).to(device), LAYERS[name][1]
    layer.requires_grad_(False)
    x = torch.randn(shape, device=device, requires_grad=True)
    weights, layers = in_eight_bits(layer, Bus(device))
    plain = layer(x)
    with quantised_layers(layers):
        assert torch.equal(layer(x), plain), "before the weights are taken"
        weights.place("training")
        [held] = layers.values()
        wide = widened(held.codes, held.scale, torch.float32)
        if isinstance(layer, nn.Conv2d):
            geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
            expected = F.conv2d(x, wide, layer.bias, *geometry)  # type: ignore[arg-type]
        else:
            expected = F.linear(x, wide, layer.bias)  # type: ignore[arg-type]
        out = layer(x)
        torch.testing.assert_close(out, expected)
        mine, theirs = (torch.autograd.grad(one.square().sum(), x)[0] for one in (out, expected))
        torch.testing.assert_close(mine, theirs)
        assert not torch.equal(out, plain)
        with torch.autocast(device.type, torch.bfloat16):
            assert layer(x).dtype is torch.bfloat16
        weights.place("given back")
        assert torch.equal(layer(x), plain)


def test_nothing_wide_is_kept_for_the_backward_pass() -> None:
    layer, x = nn.Linear(64, 64), torch.randn(2, 64, requires_grad=True)
    layer.requires_grad_(False)
    weights, layers = in_eight_bits(layer)
    kept: list[int] = []
    with (
        quantised_layers(layers),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t),
    ):
        layer(x)
        assert sum(kept) == 64 * 64 * 4, "the frozen layer itself keeps its weight"
        weights.place("training")
        kept.clear()
        layer(x)
    assert sum(kept) == 64 * 64 + 64 * 4, "codes and scales"


def test_which_layers_are_held_in_eight_bits(ldm_model: LdmModel) -> None:
    layers = [module for module in ldm_model.unet.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    left = [layer for layer in layers if not is_quantised(layer)]
    assert len(left) == 2 and {layer.weight.shape[0] for layer in left} == {4, 32}, "the first and the last"
    assert not is_quantised(nn.Conv2d(32, 32, 3, padding="same"))
    assert not is_quantised(nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular"))


def test_the_wide_weights_leave_the_card(ldm_model: LdmModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """And adapters learn on top of what is left, near to what they learn on the wide ones."""
    cards: list[Card] = []

    def make(device: torch.device) -> Card:
        cards.append(Card(device))
        return cards[-1]

    targets = [target for target in ldm_model.adaptable_modules() if target.part == "unet"]
    network = LoraNetwork.create(targets, 4, 4, torch.Generator().manual_seed(0))
    drawn = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 16, 16, generator=drawn)
    told = Conditioning(torch.randn(1, 77, CONTEXT, generator=drawn))
    before, made = snapshot(*roots_of(ldm_model)), {}
    for eight_bits in (False, True):
        monkeypatch.setattr(LdmModel, "make_bus", staticmethod(make))
        state = TrainingState(torch.float32, False, False, eight_bits=eight_bits)
        with ldm_model.training(state), network.applied():
            out = ldm_model.predict(latents, torch.tensor([500]), told)
            gradients = torch.autograd.grad(out.square().mean(), list(network.parameters()))
            made[eight_bits] = out.detach(), torch.cat([one.flatten() for one in gradients])
            there = [p for p in ldm_model.unet.parameters() if cards[-1].has(p.data) and p.ndim > 1]
            assert len(there) == (2 if eight_bits else sum(p.ndim > 1 for p in ldm_model.unet.parameters()))
        assert differences(before, snapshot(*roots_of(ldm_model))) == []
    assert 1e-4 < relative(made[True][0], made[False][0]) < 0.1
    assert 1e-4 < relative(made[True][1], made[False][1]) < 0.3


@pytest.mark.parametrize("device", DEVICES)
def test_a_weight_that_waits_is_taken_to_the_device(device: torch.device) -> None:
    """As after a preview for whose weights there was no room: they have not come back."""
    layer = nn.Linear(24, 32).to(device)
    before = snapshot(layer)
    weights, layers = in_eight_bits(layer, Card(device) if device.type == "cpu" else Bus(device))
    [held] = layers.values()
    held.wait()
    weights.place("training")
    assert held.codes is not None and held.codes.device == device == held.scale.device
    assert layer.weight.device.type == "cpu"
    weights.place("given back")
    assert differences(before, snapshot(layer)) == []


def test_the_largest_number_of_the_format() -> None:
    assert torch.finfo(torch.float8_e4m3fn).max == quantised.LARGEST
