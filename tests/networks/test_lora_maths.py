"""LoRA's formula against W + (α/r)·B·A formed explicitly, and against LyCORIS."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.networks.functional import lora_conv2d, lora_linear
from lib_trainer.networks.lora import LoraAdapter, LoraNetwork
from lib_trainer.patching import replaced_forward
from lib_trainer.ports import AdaptableModule

RANK, ALPHA = 4, 3.0
CONVOLUTIONS = {
    "1x1": lambda: nn.Conv2d(6, 10, 1),
    "3x3": lambda: nn.Conv2d(6, 10, 3, padding=1),
    "stride": lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False),
    "dilated": lambda: nn.Conv2d(6, 10, 3, padding=2, dilation=2),
}


def target(layer: nn.Module, key: str = "lora_unet_layer") -> AdaptableModule:
    return AdaptableModule(key, layer, "unet", "transformer", "middle")


def adapter_on(layer: nn.Module, alpha: float = ALPHA, key: str = "lora_unet_layer") -> LoraAdapter:
    """An adapter with a random `up`, in the layer's own precision."""
    generator = torch.Generator().manual_seed(3)
    adapter = LoraAdapter(target(layer, key), RANK, alpha)
    adapter.reset(generator)
    with torch.no_grad():
        adapter.up.normal_(generator=generator)
    return adapter.to(next(layer.parameters()).dtype)


def merged(adapter: LoraAdapter, layer: Any, multiplier: float = 1.0) -> torch.Tensor:
    """W + (α/r)·B·A, from the paper."""
    product = adapter.up.flatten(1) @ adapter.down.flatten(1)
    return layer.weight + multiplier * adapter.alpha / adapter.rank * product.reshape(layer.weight.shape)


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 10).double()


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 5, 6)])
def test_linear_is_the_merged_weight(linear: nn.Linear, shape: tuple[int, ...]) -> None:
    adapter, x = adapter_on(linear), torch.randn(shape, dtype=torch.float64)
    with LoraNetwork([adapter]).applied():
        out = linear(x)
    torch.testing.assert_close(out, F.linear(x, merged(adapter, linear), linear.bias), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(out, linear(x))


@pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolution_is_the_merged_weight(make: Callable[[], nn.Conv2d]) -> None:
    torch.manual_seed(0)
    layer = make().double()
    adapter, x = adapter_on(layer), torch.randn(2, 6, 8, 8, dtype=torch.float64)
    with LoraNetwork([adapter]).applied(0.7):
        out = layer(x)
    weight = merged(adapter, layer, 0.7)
    told = F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation)
    torch.testing.assert_close(out, told, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("answer", [torch.bfloat16, torch.float32])
def test_fp32_factors_beside_a_layer_in_half_precision(answer: torch.dtype) -> None:
    """Without autocast: the products are computed in the input's precision, and the sum in the layer's own."""
    torch.manual_seed(0)
    weight, down, up = torch.randn(10, 6).bfloat16(), torch.randn(RANK, 6), torch.randn(10, RANK)
    x = torch.randn(5, 6).bfloat16()
    out = lora_linear(lambda x: F.linear(x, weight).to(answer), x, down, up, 0.5)
    assert out.dtype is answer
    wanted = F.linear(x.float(), weight.float() + 0.5 * up @ down)
    assert float((out.float() - wanted).norm() / wanted.norm()) < 0.02


def test_gradients_of_linear_are_those_of_the_merged_weight(linear: nn.Linear) -> None:
    linear.requires_grad_(False)
    adapter, x = adapter_on(linear), torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    wanted = [x, adapter.down, adapter.up]
    with LoraNetwork([adapter]).applied():
        mine = torch.autograd.grad(linear(x).square().sum(), wanted)
    plain = F.linear(x, merged(adapter, linear), linear.bias)
    for one, other in zip(mine, torch.autograd.grad(plain.square().sum(), wanted)):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_gradients_pass_gradcheck(linear: nn.Linear) -> None:
    linear.requires_grad_(False)
    down = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    up = torch.randn(10, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, d, u: lora_linear(linear, x, d, u, 0.5), (x, down, up))
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1).double().requires_grad_(False)
    image = torch.randn(1, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    down2 = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    up2 = torch.randn(4, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, d, u: lora_conv2d(layer, layer, x, d, u, 0.5), (image, down2, up2))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_bf16_autocast_stays_near_and_gradients_are_fp32(kind: str) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(64, 48) if kind == "linear" else nn.Conv2d(64, 48, 3, padding=1)
    layer.requires_grad_(False)
    x = torch.randn(4, 7, 64) if kind == "linear" else torch.randn(2, 64, 8, 8)
    adapter = adapter_on(layer)
    network = LoraNetwork([adapter])
    grads = {}
    for name in ("fp32", "bf16"):
        with network.applied(), torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
            out = layer(x)
        assert out.dtype is (torch.bfloat16 if name == "bf16" else torch.float32)
        grads[name] = [out.detach().float(), *torch.autograd.grad(out.float().square().mean(), adapter.parameters())]
    for one, other in zip(grads["bf16"], grads["fp32"]):
        assert one.dtype is torch.float32
        assert float((one - other).norm() / other.norm()) < 0.02


def test_held_in_bf16_under_autocast() -> None:
    """As in training: the frozen weight is bf16 already, x fp32, the adapter fp32."""
    torch.manual_seed(1)
    layer = nn.Linear(64, 48)
    adapter, x = adapter_on(layer), torch.randn(4, 7, 64)
    reference = F.linear(x, merged(adapter, layer), layer.bias)
    layer.bfloat16()
    with LoraNetwork([adapter]).applied(), torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype is torch.bfloat16
    assert float((out.detach().float() - reference.detach()).norm() / reference.detach().norm()) < 0.02


@pytest.mark.parametrize("kind", ["linear", "1x1", "3x3", "stride"])
def test_lycoris_agrees(kind: str) -> None:
    """The same weights in LyCORIS' LoConModule and its functional form change the output by the same amount."""
    pytest.importorskip("lycoris", reason="lycoris_lora is in requirements/test-no-deps.txt, and needs toml")
    from lycoris.functional import locon
    from lycoris.modules.locon import LoConModule

    torch.manual_seed(2)
    layer = nn.Linear(6, 10) if kind == "linear" else CONVOLUTIONS[kind]()
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 8, 8)
    adapter = adapter_on(layer)
    theirs = LoConModule("name", layer, 1.0, RANK, ALPHA)
    with torch.no_grad():
        theirs.lora_down.weight.copy_(adapter.down.reshape(theirs.lora_down.weight.shape))
        theirs.lora_up.weight.copy_(adapter.up.reshape(theirs.lora_up.weight.shape))
        plain = layer(x)
        with LoraNetwork([adapter]).applied():
            mine = layer(x) - plain
        torch.testing.assert_close(mine, theirs.bypass_forward_diff(x), rtol=1e-5, atol=1e-6)
        delta = locon.diff_weight(adapter.down, adapter.up, None, gamma=adapter.scale)
        torch.testing.assert_close(delta, merged(adapter, layer) - layer.weight, rtol=1e-5, atol=1e-6)


def test_initial_values() -> None:
    """`down` is kaiming-uniform with a = √5, that is uniform in ±1/√fan_in; `up` is zero, so nothing changes yet."""
    for layer, fan_in in ((nn.Linear(400, 30), 400), (nn.Conv2d(40, 30, 3), 360)):
        network = LoraNetwork.create([target(layer)], 32, 16, torch.Generator().manual_seed(1))
        (adapter,) = network
        reference = torch.empty(32, fan_in)
        nn.init.kaiming_uniform_(reference, a=math.sqrt(5), generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(adapter.down.detach().flatten(1), reference)
        assert float(adapter.down.detach().abs().max()) <= 1 / math.sqrt(fan_in)
        assert float(adapter.down.detach().std()) == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.03)
        assert not adapter.up.any()
        assert adapter.scale == 0.5


def test_a_seed_decides_the_network_whatever_the_order_of_its_targets() -> None:
    layers = {key: nn.Linear(6, 8) for key in ("b", "a", "c")}
    targets = [target(layer, key) for key, layer in layers.items()]
    one = LoraNetwork.create(targets, 2, 2, torch.Generator().manual_seed(9)).tensors(torch.float32)
    two = LoraNetwork.create(targets[::-1], 2, 2, torch.Generator().manual_seed(9)).tensors(torch.float32)
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["a.lora_down.weight"], one["b.lora_down.weight"])


def test_multiplier_zero_and_half(linear: nn.Linear) -> None:
    adapter, x = adapter_on(linear), torch.randn(5, 6, dtype=torch.float64)
    network, plain = LoraNetwork([adapter]), linear(x)
    for multiplier in (0.0, 0.5, -1.0):
        with network.applied(multiplier):
            out = linear(x)
        torch.testing.assert_close(out, F.linear(x, merged(adapter, linear, multiplier), linear.bias))
    with network.applied(0.0):
        assert torch.equal(linear(x), plain)


def test_networks_nest(linear: nn.Linear) -> None:
    first, second = adapter_on(linear), adapter_on(linear, alpha=1.0)
    x = torch.randn(5, 6, dtype=torch.float64)
    both = merged(first, linear) + 0.3 * (merged(second, linear) - linear.weight)
    with LoraNetwork([first]).applied(), LoraNetwork([second]).applied(0.3):
        out = linear(x)
    torch.testing.assert_close(out, F.linear(x, both, linear.bias))


def test_a_network_nests_in_itself_with_another_multiplier(linear: nn.Linear) -> None:
    adapter, x = adapter_on(linear), torch.randn(5, 6, dtype=torch.float64)
    network = LoraNetwork([adapter])
    with network.applied(0.5):
        with network.applied(0.25):
            inside = linear(x)
        outside = linear(x)
    torch.testing.assert_close(inside, F.linear(x, merged(adapter, linear, 0.75), linear.bias))
    torch.testing.assert_close(outside, F.linear(x, merged(adapter, linear, 0.5), linear.bias))


@pytest.mark.parametrize("raising", [False, True], ids=["ends", "raises"])
@pytest.mark.parametrize("own", [False, True], ids=["class forward", "own forward"])
def test_the_forward_is_put_back(linear: nn.Linear, own: bool, raising: bool) -> None:
    def patched(x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, linear.weight * 2)

    if own:
        linear.forward = patched  # type: ignore[method-assign]
    before, x = dict(linear.__dict__), torch.randn(5, 6, dtype=torch.float64)
    plain, adapter = linear(x), adapter_on(linear)
    try:
        with LoraNetwork([adapter]).applied():
            delta = linear(x) - plain
            assert "forward" in linear.__dict__
            if raising:
                raise KeyError("body")
    except KeyError:
        assert raising
    torch.testing.assert_close(delta, F.linear(x, merged(adapter, linear) - linear.weight))
    assert linear.__dict__.keys() == before.keys()
    assert linear.__dict__.get("forward") is before.get("forward")
    assert torch.equal(linear(x), plain)


def test_forwards_put_back_if_a_later_layer_cannot_be_wrapped(linear: nn.Linear) -> None:
    """Half-way through `applied` an error must not leave the first layers changed."""
    good, bad = adapter_on(linear, key="a"), adapter_on(nn.Linear(6, 10).double(), key="b")
    bad.wrap = None  # type: ignore[assignment,method-assign]
    with pytest.raises(TypeError), LoraNetwork([good, bad]).applied():
        pass
    assert "forward" not in linear.__dict__


def test_replaced_forward_of_a_class_patch() -> None:
    class Patched(nn.Linear):
        pass

    layer = Patched(3, 3)
    with replaced_forward(layer, lambda x: x + 1):
        assert torch.equal(layer(torch.zeros(1, 3)), torch.ones(1, 3))
    assert "forward" not in layer.__dict__


def test_only_linear_and_convolution_can_be_wrapped() -> None:
    with pytest.raises(TypeError, match="lora_unet_layer"):
        LoraAdapter(target(nn.Embedding(3, 4)), 2, 2)


def test_the_frozen_layer_is_no_part_of_the_network(linear: nn.Linear) -> None:
    network = LoraNetwork([adapter_on(linear)])
    assert {name.rsplit(".", 1)[1] for name, _ in network.named_parameters()} == {"down", "up"}


def test_empty_batches_and_strided_inputs(linear: nn.Linear) -> None:
    adapter = adapter_on(linear)
    strided = torch.randn(6, 5, 2, dtype=torch.float64).permute(2, 1, 0)
    with LoraNetwork([adapter]).applied():
        assert linear(torch.zeros(0, 6, dtype=torch.float64)).shape == (0, 10)
        torch.testing.assert_close(linear(strided), F.linear(strided, merged(adapter, linear), linear.bias))
