"""Flat adapters and the products written out by hand, against autograd on the plain formulas."""

from __future__ import annotations

import gc
import types
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.host.holding import checkpointed
from lib_trainer.networks import adapters, flat
from lib_trainer.networks.adapters import AdapterSpec, Dropouts
from lib_trainer.networks.functional import is_plain
from lib_trainer.networks.lora import LoraNetwork, make_adapter
from lib_trainer.networks.products import GatedGelu, LohaProduct, LoraPointwise, LoraProduct
from lib_trainer.patching import replaced_forward
from lib_trainer.ports import AdaptableModule
from tests.networks.layers import LAYERS as USUAL

LAYERS = USUAL | {"no bias": lambda: nn.Linear(12, 20, bias=False)}
SPECS = {
    "lora": AdapterSpec("lora", 4, 3.0),
    "loha": AdapterSpec("loha", 4, 3.0),
    "lokr": AdapterSpec("lokr", 2, 3.0, factor=2, both=True),
}


def network_on(layers: list[Any], spec: AdapterSpec, *, filled: bool = True) -> LoraNetwork:
    targets = [
        AdaptableModule(f"lora_unet_{i}", layer, "unet", "transformer", "middle") for i, layer in enumerate(layers)
    ]
    network = LoraNetwork([make_adapter(target, spec) for target in targets])
    generator = torch.Generator().manual_seed(3)
    for adapter in network:
        adapter.reset(generator)
        for parameter in adapter.parameters():
            if filled:
                parameter.data.normal_(0, 0.3, generator=generator)
    return network


def frozen(name: str, count: int = 1) -> list[Any]:
    torch.manual_seed(1)
    return [LAYERS[name]().requires_grad_(False) for _ in range(count)]


def picture(layer: Any) -> torch.Tensor:
    return torch.randn(2, 5, 12) if isinstance(layer, nn.Linear) else torch.randn(2, 12, 6, 6)


def plain(layer: Any, adapter: Any, x: torch.Tensor) -> torch.Tensor:
    """By the weight that the adapter stands for."""
    weight = layer.weight + adapter.delta()
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


def gradients_of(network: LoraNetwork, leaves: list[nn.Parameter]) -> torch.Tensor:
    assert all(leaf.grad is not None for leaf in leaves)
    return torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None])


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_with_an_adapter_has_its_gradients(scale: float, bias: bool) -> None:
    torch.manual_seed(0)
    x, down, up = (torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in ((2, 3, 6), (4, 6), (5, 4)))
    weight, b = torch.randn(5, 6, dtype=torch.double), torch.randn(5, dtype=torch.double) if bias else None

    def product(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> Any:
        return LoraProduct.apply(x, weight, b, down, up, scale, torch.double)

    torch.testing.assert_close(product(x, down, up), F.linear(x, weight + scale * up @ down, b))
    assert torch.autograd.gradcheck(product, (x, down, up))


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_the_product_with_pictures_has_its_gradients(scale: float, bias: bool, count: int) -> None:
    torch.manual_seed(0)
    shapes = ((count, 6, 2, 3), (4, 6), (5, 4))
    x, down, up = (torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes)
    weight, b = torch.randn(5, 6, dtype=torch.double), torch.randn(5, dtype=torch.double) if bias else None

    def product(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> Any:
        return LoraPointwise.apply(x, weight, b, down, up, scale, torch.double)

    merged = (weight + scale * up @ down)[:, :, None, None]
    torch.testing.assert_close(product(x, down, up), F.conv2d(x, merged, b))
    assert torch.autograd.gradcheck(product, (x, down, up))


def test_pictures_of_either_layout_are_left_in_it() -> None:
    (layer,) = frozen("1x1")
    network, x = network_on([layer], SPECS["lora"]), picture(layer)
    network.flatten(list(network), whole=True)
    with network.applied():
        one, other = layer(x), layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(one, other)
    assert one.is_contiguous() and other.is_contiguous(memory_format=torch.channels_last)


def test_the_gate_has_its_gradients() -> None:
    both = torch.randn(2, 3, 8, dtype=torch.double, requires_grad=True)
    x, gate = both.chunk(2, dim=-1)
    torch.testing.assert_close(GatedGelu.apply(both), x * F.gelu(gate))
    assert torch.autograd.gradcheck(GatedGelu.apply, (both,))


@pytest.mark.parametrize("name", LAYERS)
def test_lohas_product_has_its_gradients_and_keeps_thin_factors(name: str) -> None:
    layer = LAYERS[name]().double()
    x = picture(layer).double().requires_grad_()
    out, inner = layer.weight.flatten(1).shape
    shapes = ((out, 3), (3, inner), (out, 3), (3, inner))
    factors = [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes]
    kept: list[int] = []

    def product(*tensors: torch.Tensor) -> Any:
        return LohaProduct.apply(*tensors, 0.7, layer)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        product(x, *factors)
    assert sum(kept) == x.numel() + sum(factor.numel() for factor in factors)
    assert torch.autograd.gradcheck(product, (x, *factors), fast_mode=True)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "by tensor"])
@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_flat_network_has_the_output_and_gradients_of_the_merged_weights(kind: str, name: str, whole: bool) -> None:
    layers = frozen(name, 2)
    network, x = network_on(layers, SPECS[kind]), picture(layers[0]).requires_grad_()
    own = [parameter for adapter in network for parameter in (getattr(adapter, n) for n in adapter.names)]
    outs = [plain(layer, adapter, x) for layer, adapter in zip(layers, network)]
    loss = sum((out.square().mean() for out in outs), torch.zeros(()))
    wanted_x, *wanted = torch.autograd.grad(loss, [x, *own])

    before = network.tensors(torch.float32)
    leaves = network.flatten(list(network), whole=whole)
    assert len(leaves) == (1 if whole else len(own))
    after = network.tensors(torch.float32)
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)
    for repeat in (1, 2):  # gradients of a second pass are added
        with network.applied():
            mine = [layer(x) for layer in layers]
            sum((out.square().mean() for out in mine), torch.zeros(())).backward()
        for one, other in zip(mine, outs):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        told = torch.cat([gradient.flatten() for gradient in wanted])
        torch.testing.assert_close(gradients_of(network, leaves), repeat * told, rtol=1e-3, atol=1e-5)
        assert x.grad is not None
        torch.testing.assert_close(x.grad, repeat * wanted_x, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "1x1", "3x3"])
def test_in_half_precision_it_is_as_near_as_the_plain_way(name: str) -> None:
    layers = frozen(name)
    half = [layer.bfloat16() for layer in layers]
    network, x = network_on(half, SPECS["lora"]), picture(half[0])
    exact = [p for a in network for p in a.parameters()]
    weight = [layer.weight.float() for layer in half]
    adapter = next(iter(network))
    out = F.linear(x, weight[0] + adapter.delta(), half[0].bias.float()) if name == "linear" else F.conv2d(
        x, weight[0] + adapter.delta(), half[0].bias.float(), half[0].stride, half[0].padding
    )  # fmt: skip
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(out.square().mean(), exact)])

    def away() -> float:
        with network.applied(), torch.autocast("cpu", torch.bfloat16):
            half[0](x).float().square().mean().backward()
        leaves = network.flat_leaves or exact
        found = torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None])
        return float((found - wanted).norm() / wanted.norm())

    plainly = away()
    network.flatten(list(network), whole=True)
    flatly = away()
    assert 0 < flatly < 0.02 and flatly < 1.5 * plainly


def test_a_forward_that_is_not_torchs_own_is_called() -> None:
    for name in ("linear", "1x1", "3x3"):
        (layer,) = frozen(name)
        network, x, calls = network_on([layer], SPECS["lora"]), picture(layer), []
        network.flatten(list(network), whole=True)
        own = layer.forward
        assert is_plain(layer, own)
        with replaced_forward(layer, lambda x: calls.append(1) or own(x) + 1):  # noqa: B023
            assert not is_plain(layer, layer.forward)
            with network.applied():
                out = layer(x)
        assert calls
        torch.testing.assert_close(out, plain(layer, next(iter(network)), x) + 1, rtol=1e-4, atol=1e-5)


def test_a_convolution_that_an_extension_has_changed_is_called() -> None:
    (layer,) = frozen("1x1")
    assert is_plain(layer, layer.forward)
    layer._conv_forward = types.MethodType(nn.Conv2d._conv_forward, layer)  # an extension that has taken itself off
    assert is_plain(layer, layer.forward)
    layer._conv_forward = lambda x, weight, bias: F.conv2d(x, 2 * weight, bias)
    network, x = network_on([layer], SPECS["lora"], filled=False), picture(layer)
    network.flatten(list(network), whole=True)
    wanted = layer(x)
    with network.applied():
        torch.testing.assert_close(layer(x), wanted)


def test_a_weight_of_another_precision_is_left_to_its_layer() -> None:
    """8-bit storage, say: the layer's own forward knows what to do."""
    (layer,) = frozen("linear")
    network, x = network_on([layer], SPECS["lora"]), picture(layer)
    network.flatten(list(network), whole=True)
    with torch.autocast("cpu", torch.bfloat16), network.applied():  # the weight is fp32, autocast's dtype is not
        out = layer(x)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), plain(layer, next(iter(network)), x), rtol=0.1, atol=0.1)


def test_adapters_on_adapters_add_up_and_only_one_learns() -> None:
    layers = frozen("linear", 2)
    first, second, x = network_on(layers, SPECS["lora"]), network_on(layers, SPECS["lora"]), picture(layers[0])
    (held,), (learning,) = (network.flatten(list(network), whole=True) for network in (first, second))
    for on in (True, False):
        first.learn(on)
        second.learn(not on)
        held.grad = learning.grad = None
        with first.applied(), second.applied():
            out = [layer(x) for layer in layers]
            sum((one.square().mean() for one in out), torch.zeros(())).backward()
        assert (held.grad is not None) == on and (learning.grad is not None) == (not on)
    for layer, one, two, mine in zip(layers, first, second, out):
        weight = layer.weight + one.delta() + two.delta()
        torch.testing.assert_close(mine, F.linear(x, weight, layer.bias), rtol=1e-4, atol=1e-5)


def test_only_what_a_kind_allows_is_flat() -> None:
    for spec in (AdapterSpec("lora", 4, 3.0, dora=True), AdapterSpec("lora", 4, 3.0, dropouts=Dropouts(0.1))):
        network = network_on(frozen("linear", 2), spec)
        assert network.flatten(list(network), whole=True) == list(network.parameters())
        network.learn(False)
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_copies_are_made_once_a_pass_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = frozen("linear", 5)
    network, x, made = network_on(layers, SPECS["lora"]), picture(layers[0]), []
    (leaf,) = network.flatten(list(network), whole=True)
    real = flat.Flat.copies
    monkeypatch.setattr(flat.Flat, "copies", lambda self, dtype: made.append(dtype) or real(self, dtype))
    with network.applied():
        for _ in range(2):
            sum((layer(x).sum() for layer in layers), torch.zeros(())).backward()
        assert len(made) == 2
        with torch.no_grad():
            before = layers[0](x)
            assert torch.equal(layers[0](x), before) and len(made) == 3
            leaf.add_(0.1)
            assert not torch.equal(layers[0](x), before), "an update is seen"
    gc.collect()
    gc.disable()
    try:
        with network.applied():
            layers[0](x)  # a pass whose backward never comes
            working = network._flats[0]._working
            assert working is not None
            copy = weakref.ref(working.views[0])
            del working
        alive = weakref.ref(network)
        del network, leaf
        assert alive() is None and copy() is None, "freed without waiting for the collector"
    finally:
        gc.enable()


def test_layers_that_were_not_used_get_zeros() -> None:
    layers = frozen("linear", 3)
    network, x = network_on(layers, SPECS["lora"]), picture(layers[0])
    (leaf,) = network.flatten(list(network), whole=True)
    with network.applied():
        layers[1](x).sum().backward()
    assert leaf.grad is not None
    used = leaf.grad.view(3, -1).abs().sum(1) > 0
    assert used.tolist() == [False, True, False]


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    layers = frozen("linear", 2)
    block = nn.Sequential(layers[0], nn.GELU(), nn.Linear(20, 12).requires_grad_(False), layers[1])
    network, x = network_on(layers, SPECS["lora"]), picture(layers[0])
    (leaf,) = network.flatten(list(network), whole=True)
    found = []
    for blocks in ([], [block]):
        leaf.grad = None
        with network.applied(), checkpointed(blocks):
            block(x).square().mean().backward()
        assert leaf.grad is not None
        found.append(leaf.grad)
    torch.testing.assert_close(*found)


def test_dropouts_of_ranks_differ_between_samples() -> None:
    (layer,) = frozen("linear")
    network = network_on([layer], AdapterSpec("lora", 64, 64.0, dropouts=Dropouts(ranks=0.5)))
    x = torch.randn(1, 5, 12).expand(4, 5, 12)
    assert isinstance(next(iter(network)), adapters.LoraAdapter)
    with network.applied():
        out = layer(x)
    assert all(not torch.allclose(out[0], other) for other in out[1:])


def test_copies_are_given_also_where_another_thread_forgets_them_at_once() -> None:
    """A host may call the layers beside a run, as the WebUI's "Create embedding" does without waiting in its queue."""

    class Forgotten(flat.Flat):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, None if name == "_working" else value)

    own = Forgotten([nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.zeros(3, 2))], whole=True)
    assert [view.sum().item() for view in own.working(torch.float32)] == [6, 0]
