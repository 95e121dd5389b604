"""The weight that each kind of adapter makes, against LyCORIS' own modules and against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib_trainer.toolbox.adapters import (
    Kind,
    bias_difference,
    difference,
    kind_of,
    lora_pair,
    scale_of,
)
from tests.toolbox.loras import module

LAYERS = {
    "linear": lambda: nn.Linear(12, 16),
    "square": lambda: nn.Linear(16, 16),
    "1x1": lambda: nn.Conv2d(12, 16, 1),
    "3x3": lambda: nn.Conv2d(12, 16, 3, padding=1),
}
ALGORITHMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lora": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 3.0}),
    "lora, core": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 3.0, "use_tucker": True}),
    "lora, DoRA": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 3.0, "weight_decompose": True, "wd_on_out": False}),
    "lora, DoRA out": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 3.0, "weight_decompose": True}),
    "loha": ("loha", "LohaModule", {"lora_dim": 4, "alpha": 3.0}),
    "loha, core": ("loha", "LohaModule", {"lora_dim": 4, "alpha": 3.0, "use_tucker": True}),
    "loha, DoRA": ("loha", "LohaModule", {"lora_dim": 4, "alpha": 3.0, "weight_decompose": True, "wd_on_out": False}),
    "lokr": ("lokr", "LokrModule", {"lora_dim": 1, "alpha": 3.0}),
    "lokr, both": ("lokr", "LokrModule", {"lora_dim": 1, "alpha": 3.0, "factor": 4, "decompose_both": True}),
    "lokr, core": ("lokr", "LokrModule", {"lora_dim": 1, "alpha": 3.0, "use_tucker": True}),
    "lokr, whole": ("lokr", "LokrModule", {"lora_dim": 99, "alpha": 3.0}),
    "oft": ("diag_oft", "DiagOFTModule", {"lora_dim": 4}),
    "oft, limit": ("diag_oft", "DiagOFTModule", {"lora_dim": 4, "constraint": 0.01}),
    "oft, scaled": ("diag_oft", "DiagOFTModule", {"lora_dim": 4, "rescaled": True}),
    "boft": ("boft", "ButterflyOFTModule", {"lora_dim": 4}),
    "boft, scaled": ("boft", "ButterflyOFTModule", {"lora_dim": 4, "rescaled": True}),
}


def filled(module: Any) -> Any:
    """Every parameter random, as if trained; magnitudes and scales stay near what they were."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, one in module.named_parameters():
            if "org_module" in name:
                continue
            drawn = torch.randn(one.shape)
            if "dora_scale" in name or "rescale" in name:
                one.mul_(1 + 0.2 * drawn)
            else:
                one.copy_(0.3 * drawn)
    return module


def tensors_of(module: Any) -> dict[str, torch.Tensor]:
    state = module.custom_state_dict() if hasattr(module, "custom_state_dict") else None
    state = state or {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: one.detach().clone() for name, one in state.items() if isinstance(one, torch.Tensor)}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_lycoris_makes_the_same_weight(algorithm: str, layer: str) -> None:
    pytest.importorskip("lycoris", reason="lycoris_lora is in requirements/test-no-deps.txt, and needs toml")
    import importlib

    file, name, arguments = ALGORITHMS[algorithm]
    kind = getattr(importlib.import_module(f"lycoris.modules.{file}"), name)
    torch.manual_seed(1)
    frozen: Any = LAYERS[layer]().requires_grad_(False)
    before = frozen.weight.clone()
    module = filled(kind("lora_unet_x", frozen, 1.0, **arguments))
    own = tensors_of(module)
    with torch.no_grad():
        torch.testing.assert_close(
            before + difference(own, before, tuple(before.shape)), _theirs(module, before), rtol=1e-4, atol=1e-5
        )
    assert float(difference(own, before, tuple(before.shape)).abs().max()) > 1e-2


def _theirs(module: Any, before: torch.Tensor) -> torch.Tensor:
    """LoHa's and LoKr's get_diff_weight multiply by the scale a second time, which their forwards do not."""
    shape = tuple(before.shape)
    if type(module).__name__ not in ("LohaModule", "LokrModule"):
        merged: torch.Tensor = module.get_merged_weight(1.0, shape)[0]
        return merged
    changed = before + module.get_weight(shape).reshape(shape)
    weight: torch.Tensor = module.apply_weight_decompose(changed) if module.wd else changed
    return weight


def test_whole_differences_and_norms_are_added() -> None:
    whole = {"diff": torch.ones(2, 3), "diff_b": torch.tensor([1.0, -1.0]), "alpha": torch.tensor(7.0)}
    assert torch.equal(difference(whole, None, (2, 3)), torch.ones(2, 3))
    moved = bias_difference(whole)
    assert moved is not None and moved.tolist() == [1, -1]
    own = {"w_norm": torch.tensor([1.0, 2.0]), "b_norm": torch.tensor([0.5, 0.25])}
    assert kind_of(own) is Kind.NORM
    assert torch.equal(difference(own, None, (2,)), own["w_norm"])
    found = bias_difference(own)
    assert found is not None and torch.equal(found, own["b_norm"])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 2**31))
def test_lora_and_its_core_in_double(rank: int, out: int, inner: int, kernel: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (out, inner, kernel, kernel)
    plain = {"lora_up.weight": drawn(out, rank, 1, 1), "lora_down.weight": drawn(rank, *shape[1:]),
             "alpha": torch.tensor(2.5, dtype=torch.float64)}  # fmt: skip
    wanted = torch.einsum("or,rikl->oikl", plain["lora_up.weight"][:, :, 0, 0], plain["lora_down.weight"])
    found = difference(plain, None, shape)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted * 2.5 / rank)
    core = {"lora_up.weight": drawn(out, rank, 1, 1), "lora_down.weight": drawn(rank, inner, 1, 1),
            "lora_mid.weight": drawn(rank, rank, kernel, kernel), "alpha": torch.tensor(1.0)}  # fmt: skip
    x = drawn(1, inner, 5, 5)
    through = nn.functional.conv2d(x, core["lora_down.weight"])
    through = nn.functional.conv2d(through, core["lora_mid.weight"], padding=kernel // 2)
    through = nn.functional.conv2d(through, core["lora_up.weight"]) / rank
    whole = nn.functional.conv2d(x, difference(core, None, shape), padding=kernel // 2)
    torch.testing.assert_close(whole, through)
    up, down = lora_pair(core)
    torch.testing.assert_close((up @ down).reshape(shape) / rank, difference(core, None, shape))


def test_kinds_are_known_only_when_they_are_whole() -> None:
    assert kind_of(["lora_down.weight", "lora_up.weight", "alpha"]) is Kind.LORA
    assert kind_of(["lora_down.weight", "alpha"]) is None
    assert kind_of(["lokr_w1", "lokr_w2_a"]) is None
    assert kind_of(["lokr_w1", "lokr_w2_a", "lokr_w2_b"]) is Kind.LOKR
    assert kind_of(["a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"]) is None


def test_scales() -> None:
    down, up = torch.zeros(4, 3), torch.zeros(5, 4)
    own = {"lora_down.weight": down, "lora_up.weight": up}
    assert scale_of(own) == 1
    assert scale_of(own | {"alpha": torch.tensor(2.0)}) == 0.5
    assert scale_of(own | {"alpha": torch.tensor(2.0), "scale": torch.tensor(3.0)}) == 3
    whole = {"lokr_w1": torch.ones(1, 1), "lokr_w2": torch.ones(2, 2), "alpha": torch.tensor(9.0)}
    assert scale_of(whole) == 1  # nothing to divide alpha by, as in the WebUI


def test_sparse_entries_of_lycoris_extraction_are_added() -> None:
    own = {"lora_down.weight": torch.zeros(1, 3), "lora_up.weight": torch.zeros(2, 1), "alpha": torch.tensor(1.0),
           "bias_indices": torch.tensor([[0, 1], [2, 0]]), "bias_values": torch.tensor([5.0, 7.0]),
           "bias_size": torch.tensor([2, 3])}  # fmt: skip
    assert difference(own, None, (2, 3)).tolist() == [[0, 0, 5], [7, 0, 0]]


@pytest.mark.parametrize("kind", ["dora", "dora out", "oft", "lora"])
def test_numbers_of_several_types_make_the_weight_that_those_of_one_do(kind: str) -> None:
    """Whole numbers as alpha (LyCORIS), and fp64 beside fp32 (a file under peft's names)."""
    draw = torch.Generator().manual_seed(5)
    own = module(kind, (8, 6), draw) | {"alpha": torch.tensor(2.0)}
    weight, last = torch.randn(8, 6, generator=draw), next(iter(own))
    wanted = difference(own, weight, (8, 6))
    whole = {"alpha": torch.tensor(2)}
    for other in (whole | own | whole, own | {last: own[last].double()}):  # the first stands first
        torch.testing.assert_close(difference(other, weight, (8, 6)).float(), wanted)


def test_what_does_not_fit_is_refused() -> None:
    own = {"lora_down.weight": torch.zeros(1, 3), "lora_up.weight": torch.zeros(2, 1)}
    with pytest.raises(ValueError, match=r"\(2, 3\) does not fit \(2, 4\)"):
        difference(own, None, (2, 4))
    with pytest.raises(ValueError, match="2 blocks of 3 do not fit 8 rows"):
        difference({"oft_blocks": torch.zeros(2, 3, 3)}, torch.zeros(8, 2), (8, 2))
    with pytest.raises(ValueError, match="needs the weight"):
        difference({**own, "dora_scale": torch.ones(1, 3)}, None, (2, 3))
