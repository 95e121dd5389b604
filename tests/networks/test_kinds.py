"""LoHa, LoKr, LoCon and DoRA against LyCORIS, against the WebUI's loader maths, and against merged weights."""

from __future__ import annotations

import gzip
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib_trainer.networks.adapters import Adapter, AdapterSpec, Dropouts
from lib_trainer.networks.functional import factorization
from lib_trainer.networks.lora import LoraNetwork, make_adapter
from lib_trainer.ports import AdaptableModule
from lib_trainer.toolbox.adapters import decomposed
from tests.networks.layers import LAYERS

SPECS = {
    "lora": AdapterSpec("lora", 4, 3.0),
    "loha": AdapterSpec("loha", 4, 3.0),
    "lokr": AdapterSpec("lokr", 2, 1.0),
    "lokr factor": AdapterSpec("lokr", 2, 1.0, factor=2),
    "lokr both": AdapterSpec("lokr", 1, 3.0, factor=4, both=True),
    "lokr whole": AdapterSpec("lokr", 100, 3.0),
}
GRID = list(itertools.product(SPECS, LAYERS, (False, True)))


def target(layer: nn.Module, key: str = "lora_unet_layer") -> AdaptableModule:
    return AdaptableModule(key, layer, "unet", "transformer", "middle")


def filled(adapter: Adapter, seed: int = 3) -> Adapter:
    """Every parameter random, as if trained; magnitudes stay near their norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if name == "dora_scale":
                parameter.mul_(1 + 0.2 * drawn)
            else:
                parameter.copy_(0.5 * drawn)
    return adapter


def made(kind: str, layer: str, dora: bool) -> tuple[nn.Module, Adapter]:
    torch.manual_seed(1)
    frozen = LAYERS[layer]().requires_grad_(False)
    return frozen, filled(make_adapter(target(frozen), replace(SPECS[kind], dora=dora)))


def picture(layer: nn.Module) -> torch.Tensor:
    return torch.randn(2, 5, 12) if isinstance(layer, nn.Linear) else torch.randn(2, 12, 6, 6)


def run_with(layer: Any, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


def loaders_difference(tensors: dict[str, torch.Tensor], original: torch.Tensor) -> torch.Tensor:
    """The weight difference by the formulas of the WebUI's loader (network_lora, _hada, _lokr and network.py), anew."""
    own = {name.partition(".")[2]: tensor.double() for name, tensor in tensors.items()}
    original = original.double()
    dim = None
    if "lora_down.weight" in own:
        down, up = own["lora_down.weight"], own["lora_up.weight"]
        dim = down.shape[0]
        delta = up.flatten(1) @ down.flatten(1)
    elif "hada_w1_a" in own:
        dim = own["hada_w1_b"].shape[0]
        delta = (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"])
    else:
        w1, w2 = own.get("lokr_w1"), own.get("lokr_w2")
        if w1 is None:
            dim, w1 = own["lokr_w1_b"].shape[0], own["lokr_w1_a"] @ own["lokr_w1_b"]
        if w2 is None:
            dim, w2 = own["lokr_w2_b"].shape[0], own["lokr_w2_a"] @ own["lokr_w2_b"]
        if w2.ndim == 4:
            w1 = w1[:, :, None, None]
        delta = torch.kron(w1, w2.contiguous())
    delta = delta.reshape(original.shape) * (1.0 if dim is None else float(own["alpha"]) / dim)
    if "dora_scale" in own:
        merged = original + delta
        norm = merged.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (original.ndim - 2))
        delta = merged * (own["dora_scale"] / norm) - original
    return delta


@pytest.mark.parametrize(("kind", "layer", "dora"), GRID)
def test_the_output_is_that_of_the_weight_the_webuis_loader_makes(kind: str, layer: str, dora: bool) -> None:
    frozen, adapter = made(kind, layer, dora)
    network = LoraNetwork([adapter])
    difference = loaders_difference(network.tensors(torch.float32), frozen.weight)
    x = picture(frozen)
    for strength in (1.0, 0.4):
        wanted = run_with(frozen, (frozen.weight.double() + strength * difference).float(), x)
        with torch.no_grad(), network.applied(strength):
            torch.testing.assert_close(frozen(x), wanted, rtol=1e-4, atol=2e-5)
        with torch.no_grad():
            assert not torch.allclose(frozen(x), wanted, atol=1e-2)


@pytest.mark.parametrize(("kind", "layer", "dora"), GRID)
def test_the_same_weights_in_lycoris_make_the_same_difference(kind: str, layer: str, dora: bool) -> None:
    pytest.importorskip("lycoris", reason="lycoris_lora is in requirements/test-no-deps.txt, and needs toml")
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    frozen, adapter = made(kind, layer, dora)
    spec = SPECS[kind]
    module = {"lora": LoConModule, "loha": LohaModule, "lokr": LokrModule}[spec.kind]
    options = {"factor": spec.factor, "decompose_both": spec.both} if spec.kind == "lokr" else {}
    theirs = module(
        "name", frozen, 1.0, spec.rank, spec.alpha, weight_decompose=dora, wd_on_out=False, bypass_mode=False, **options
    )
    state = {name: tensor.detach() for name, tensor in adapter.file_tensors().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.named_parameters() if name != "scalar"}
    assert {n: int(torch.Size(s).numel()) for n, s in shapes.items()} == {n: t.numel() for n, t in state.items()}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name in state:
                parameter.copy_(state[name].reshape(parameter.shape))
        shape = tuple(frozen.weight.shape)
        # LoHa's and LoKr's get_diff_weight multiply by the scale a second time (3.4), which their forwards do not
        added = theirs.get_diff_weight(1.0, shape)[0] if spec.kind == "lora" else theirs.get_weight(shape)
        weight = frozen.weight
        if dora:
            added = theirs.apply_weight_decompose(weight + added) - weight
        mine = loaders_difference(LoraNetwork([adapter]).tensors(torch.float32), weight)
        torch.testing.assert_close(added.double(), mine, rtol=1e-6, atol=1e-6)
        if not dora:
            torch.testing.assert_close(adapter.delta().double(), mine, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dimension", [1, 2, 12, 20, 32, 127, 128, 250, 320, 360, 768, 1280, 2560, 3072])
@pytest.mark.parametrize("factor", [-1, 2, 4, 8, 16])
def test_factors_are_lycoris(dimension: int, factor: int) -> None:
    pytest.importorskip("lycoris", reason="lycoris_lora is in requirements/test-no-deps.txt, and needs toml")
    from lycoris.functional.general import factorization as theirs

    assert factorization(dimension, factor) == theirs(dimension, factor)


@pytest.mark.parametrize(("kind", "layer", "dora"), GRID)
def test_a_fresh_adapter_adds_nothing_and_learns(kind: str, layer: str, dora: bool) -> None:
    torch.manual_seed(1)
    frozen = LAYERS[layer]().requires_grad_(False)
    spec = replace(SPECS[kind], dora=dora)
    network = LoraNetwork.build([(target(frozen), spec)], torch.Generator().manual_seed(0))
    x = picture(frozen)
    plain = frozen(x)
    with network.applied():
        out = frozen(x)
        torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-5)
        (out - torch.randn(out.shape)).square().mean().backward()
    assert any(bool(parameter.grad is not None and parameter.grad.any()) for parameter in network.parameters())
    assert frozen.weight.grad is None and "forward" not in vars(frozen)


@pytest.mark.parametrize(("kind", "layer", "dora"), GRID)
def test_a_network_is_read_back_from_its_tensors(kind: str, layer: str, dora: bool) -> None:
    frozen, adapter = made(kind, layer, dora)
    stored = LoraNetwork([adapter]).tensors(torch.float32)
    again = LoraNetwork.from_tensors([target(frozen)], stored)
    found = again.tensors(torch.float32)
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], stored[name]) for name in stored)
    x = picture(frozen)
    with torch.no_grad():
        with LoraNetwork([adapter]).applied():
            wanted = frozen(x)
        with again.applied():
            assert torch.allclose(frozen(x), wanted, atol=1e-6)


def test_gradients_of_each_kind_are_those_of_the_merged_weight() -> None:
    for kind, layer in itertools.product(SPECS, LAYERS):
        frozen, adapter = made(kind, layer, False)
        x, parameters = picture(frozen), list(adapter.parameters())
        with LoraNetwork([adapter]).applied():
            mine = torch.autograd.grad(frozen(x).square().mean(), parameters)
        merged = run_with(frozen, frozen.weight + adapter.delta(), x)
        for one, other in zip(mine, torch.autograd.grad(merged.square().mean(), parameters), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_magnitude_of_dora_is_learned_and_has_the_loaders_axis() -> None:
    for layer, shape in (("linear", (1, 12)), ("3x3", (1, 12, 1, 1))):
        frozen, adapter = made("lora", layer, True)
        assert adapter.dora_scale is not None and tuple(adapter.dora_scale.shape) == shape
        with LoraNetwork([adapter]).applied():
            frozen(picture(frozen)).square().mean().backward()
        assert adapter.dora_scale.grad is not None and bool(adapter.dora_scale.grad.any())


@pytest.mark.parametrize("layer", LAYERS)
def test_dora_computes_with_weights_that_are_all_zero_for_an_input(layer: str) -> None:
    torch.manual_seed(1)
    frozen = LAYERS[layer]().requires_grad_(False)
    frozen.weight[:, 3] = 0
    network = LoraNetwork.build([(target(frozen), AdapterSpec("lora", 4, 4.0, dora=True))], torch.Generator())
    x = picture(frozen)
    with network.applied():
        out = frozen(x)
        out.square().mean().backward()
    torch.testing.assert_close(out, run_with(frozen, frozen.weight, x), rtol=1e-5, atol=1e-5)
    assert all(bool(one.grad.isfinite().all()) for one in network.parameters() if one.grad is not None)
    whole = decomposed(frozen.weight, network.tensors(torch.float32)["lora_unet_layer.dora_scale"])
    torch.testing.assert_close(whole, frozen.weight, rtol=1e-5, atol=1e-6)


def test_dora_with_a_magnitude_for_each_output_is_not_taken_for_the_inputs() -> None:
    """Of a square layer there are as many of both."""
    frozen = nn.Linear(12, 12)
    stored = LoraNetwork([make_adapter(target(frozen), AdapterSpec("lora", 4, 4.0, dora=True))]).tensors(torch.float32)
    name = "lora_unet_layer.dora_scale"
    with pytest.raises(ValueError, match=r"\(12, 1\) does not fit the layer's \(1, 12\)"):
        LoraNetwork.from_tensors([target(frozen)], stored | {name: stored[name].T})


def test_rank_stabilised_files_hold_alpha_times_the_root_of_the_rank() -> None:
    layer = nn.Linear(12, 20)
    adapter = make_adapter(target(layer), AdapterSpec("lora", 16, 2.0, rank_stabilised=True))
    assert adapter.alpha == 8.0 and adapter.scale == 0.5  # 2/√16
    assert float(LoraNetwork([adapter]).tensors(torch.float32)["lora_unet_layer.alpha"]) == 8.0


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("which", ["values", "ranks", "modules"])
def test_dropouts_act_while_gradients_are_on_and_only_then(kind: str, which: str) -> None:
    frozen, adapter = made(kind, "linear", False)
    x = picture(frozen)
    with torch.no_grad(), LoraNetwork([adapter]).applied():
        full = frozen(x)
    adapter.dropouts = Dropouts(**{which: 0.5})
    network = LoraNetwork([adapter])
    with network.applied():
        torch.manual_seed(0)
        outs = [frozen(x) for _ in range(400)]
        with torch.no_grad():
            torch.testing.assert_close(frozen(x), full)
    different = {out.detach().numpy().tobytes() for out in outs}
    if which == "ranks" and kind == "lokr whole":
        assert len(different) == 1  # there is no rank to leave out
        return
    assert len(different) > 1
    if which == "modules":
        plain = frozen(x)
        share = sum(torch.allclose(out, plain) for out in outs) / len(outs)
        assert len(different) == 2 and 0.4 < share < 0.6
    else:  # what is kept makes up for what is left out
        mean = torch.stack([out.detach() for out in outs]).mean(0)
        assert float((mean - full).norm() / full.norm()) < 0.2


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_a_rank_is_left_out_for_all_inputs_alike(kind: str) -> None:
    """Each of the first three outputs hangs on a rank of its own, which is there twice as strong or not at all."""
    layer = nn.Linear(8, 8, bias=False)
    adapter: Any = make_adapter(target(layer), AdapterSpec(kind, 3, 3.0, factor=1))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.fill_(1.0)
        if kind == "loha":
            adapter.w2_a.fill_(1 / 3)
        {"lora": lambda: adapter.up, "loha": lambda: adapter.w1_a, "lokr": lambda: adapter.w2_a}[kind]().copy_(
            torch.eye(8, 3)
        )
    full = adapter.added(torch.eye(8)).detach()
    adapter.dropouts = Dropouts(ranks=0.5)
    torch.manual_seed(0)
    seen = set()
    for _ in range(8):
        left = adapter.added(torch.ones(1, 8)).detach()[0, :3] / full.sum(0)[:3]
        seen |= {round(float(one), 4) for one in left}
    assert seen == {0.0, 2.0}


def test_a_file_holds_the_precision_that_was_asked_for() -> None:
    _, adapter = made("lora", "linear", True)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        stored = LoraNetwork([adapter]).tensors(dtype)
        magnitudes = stored.pop("lora_unet_layer.dora_scale")
        assert {one.dtype for one in stored.values()} == {dtype} and len(stored) == 3
        assert torch.equal(magnitudes, adapter.file_tensors()["dora_scale"])  # they multiply the whole weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_gives_the_scale_that_was_trained_whatever_its_precision(dtype: torch.dtype) -> None:
    """16·√3 has no place in half precision, and 4096·√1024 is beyond the range of fp16."""
    for rank, alpha in ((3, 16.0), (1024, 4096.0), (4, 2.0)):
        adapter = make_adapter(target(nn.Linear(12, 20)), AdapterSpec("lora", rank, alpha, rank_stabilised=True))
        stored = LoraNetwork([adapter]).tensors(dtype)
        assert float(stored["lora_unet_layer.alpha"]) / rank == pytest.approx(adapter.scale, rel=1e-7)
        assert stored["lora_unet_layer.lora_up.weight"].dtype is dtype


def test_a_small_factor_is_split_where_its_rank_is_below_half_of_its_side() -> None:
    for rank, names in ((3, ["w1_a", "w1_b", "w2_a", "w2_b"]), (4, ["w1", "w2"])):
        spec = AdapterSpec("lokr", rank, 1.0, factor=8, both=True)
        assert make_adapter(target(nn.Linear(64, 64)), spec).names == names


def test_a_file_of_another_form_is_refused_by_name() -> None:
    frozen, adapter = made("loha", "3x3", False)
    stored = LoraNetwork([adapter]).tensors(torch.float32)
    with pytest.raises(ValueError, match=r"lora_unet_layer.*hada_t1"):
        LoraNetwork.from_tensors([target(frozen)], stored | {"lora_unet_layer.hada_t1": torch.zeros(4, 4, 3, 3)})
    frozen, adapter = made("lokr", "linear", False)
    stored = LoraNetwork([adapter]).tensors(torch.float32)
    with pytest.raises(ValueError, match="lora_unet_layer"):
        LoraNetwork.from_tensors([target(nn.Linear(12, 22))], stored)


def test_a_locon_has_the_published_keys_and_shapes() -> None:
    from lib_trainer.config import from_values
    from lib_trainer.families.known import DEFAULT
    from lib_trainer.kinds.registry import KINDS
    from tests.networks.test_names_and_shapes import KEYS, _ldm_sd15

    published = json.loads(gzip.decompress(Path(KEYS).read_bytes()))["sd15_locon_r4_c2"]
    job = from_values(
        {"network.kind": "locon", "network.rank": 4, "network.conv_rank": 2, "optimizer.text_encoder_lr": 1e-4}
    )
    planned = KINDS["locon"].plan(job, _ldm_sd15().adaptable_modules(), DEFAULT)
    mine: dict[str, list[int]] = {}
    for module, spec in planned:
        adapter = make_adapter(module, spec)
        mine[f"{adapter.key}.alpha"] = []
        mine |= {f"{adapter.key}.{name}": list(tensor.shape) for name, tensor in adapter.file_tensors().items()}
    assert mine == published


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("spec", SPECS)
def test_a_bound_on_the_norm_scales_what_is_above_it_and_nothing_else(spec: str, layer: str) -> None:
    """sd-scripts' scale_weight_norms: ΔW · min(1, bound / ‖ΔW‖), every factor by the same root of it."""
    adapter = filled(make_adapter(target(LAYERS[layer]()), SPECS[spec]))
    before = adapter.delta().detach().clone()
    torch.testing.assert_close(adapter.norm().detach(), before.norm())
    with torch.no_grad():
        adapter.bound(float(before.norm()) * 1.01)
        assert torch.equal(adapter.delta(), before)
        starts = {name: getattr(adapter, name).clone() for name in adapter.names}
        adapter.bound(float(before.norm()) / 4)
        torch.testing.assert_close(adapter.delta(), before / 4)
        root = 0.25 ** (1 / len(starts))
        for name, start in starts.items():
            torch.testing.assert_close(getattr(adapter, name), start * root)


@pytest.mark.parametrize("whole", [True, False])
def test_a_bound_holds_for_adapters_that_lie_in_one_buffer(whole: bool) -> None:
    targets = [target(nn.Linear(12, 20), f"lora_unet_{index}") for index in range(2)]
    network = LoraNetwork([filled(make_adapter(one, SPECS["lora"]), seed) for seed, one in enumerate(targets)])
    network.flatten(list(network), whole=whole)
    starts = [adapter.delta().detach().clone() for adapter in network]
    network.bound(0.0)
    assert all(torch.equal(adapter.delta(), start) for adapter, start in zip(network, starts))
    network.bound(0.125)
    for adapter, start in zip(network, starts):
        torch.testing.assert_close(adapter.delta().detach(), start * (0.125 / start.norm()))
        (copied, *_) = adapter.current(torch.float32)
        torch.testing.assert_close(copied.detach().reshape(adapter.down.shape), adapter.down.detach())
