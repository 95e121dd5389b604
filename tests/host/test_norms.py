"""Norms in the run's precision: near the fp32 norm, for the run only, and with every other holding."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from lib_trainer.autocasting import autocast_dtype
from lib_trainer.host import norms
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.norms import direct_norms
from lib_trainer.ports import Conditioning, TrainingState
from tests.support import CONTEXT, differences, relative, snapshot


def ldm_group_norm(groups: int, channels: int) -> Any:
    util = pytest.importorskip("ldm.modules.diffusionmodules.util")
    return util.GroupNorm32(groups, channels)


NORMS = {
    "ldm's group norm": lambda: ldm_group_norm(4, 16),
    "group norm": lambda: nn.GroupNorm(4, 16),
    "layer norm": lambda: nn.LayerNorm(16),
    "without weights": lambda: nn.LayerNorm(16, elementwise_affine=False),
}


def filled(name: str) -> Any:
    torch.manual_seed(0)
    norm = NORMS[name]()
    for parameter in norm.parameters():
        parameter.data.normal_(1, 0.3)
        parameter.requires_grad_(False)
    return norm


def picture(norm: Any) -> torch.Tensor:
    return torch.randn(3, 5, 16) if isinstance(norm, nn.LayerNorm) else torch.randn(3, 16, 6, 6)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_in_and_out_and_gradients_near_those_of_fp32(name: str, dtype: torch.dtype) -> None:
    norm, eps = filled(name), torch.finfo(dtype).eps
    x = picture(norm).to(dtype).requires_grad_()
    exact = x.detach().float().requires_grad_()
    wanted = norm(exact)
    weights = torch.randn_like(wanted)
    (wanted * weights).sum().backward()
    with direct_norms(dtype, norm), torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
        assert autocast_dtype("cpu") is torch.bfloat16
        (out * weights.to(out.dtype)).sum().backward()
    assert name == "without weights" or out.dtype is dtype
    assert x.grad is not None and exact.grad is not None
    assert relative(out.detach(), wanted.detach()) < 2 * eps and relative(x.grad, exact.grad) < 4 * eps


def test_forwards_come_back_and_fp32_is_left_alone() -> None:
    block = nn.Sequential(*(filled(name) for name in NORMS))
    before = snapshot(block)
    with contextlib.suppress(KeyError), direct_norms(torch.bfloat16, block):
        assert all("forward" in vars(norm) for norm in block)
        raise KeyError
    assert differences(before, snapshot(block)) == []
    with direct_norms(torch.float32, block):
        assert differences(before, snapshot(block)) == []


@pytest.mark.parametrize("text_encoder", [True, False])
def test_a_run_holds_the_norms_it_trains_through_in_its_precision(ldm_model: LdmModel, text_encoder: bool) -> None:
    with ldm_model.training(TrainingState(torch.bfloat16, False, text_encoder)):
        for root, direct in ((ldm_model.unet, True), (ldm_model.text.encoders[0].module, text_encoder)):
            found = [module for module in root.modules() if isinstance(module, norms.NORMS)]
            assert found and {one.weight.dtype for one in found} == {torch.bfloat16 if direct else torch.float32}
        assert ldm_model.text.encoders[0].module.text_model.embeddings.token_embedding.weight.dtype is torch.float32


def test_a_norm_that_learns_keeps_its_fp32() -> None:
    norm = filled("ldm's group norm")
    with direct_norms(torch.bfloat16, norm):
        held = norm._parameters["weight"]
        norm._parameters["weight"] = nn.Parameter(torch.ones(16))
        norm._parameters["bias"] = nn.Parameter(torch.zeros(16))
        norm(picture(norm).bfloat16()).float().square().sum().backward()
        assert norm.weight.grad is not None and norm.weight.grad.dtype is torch.float32
        norm._parameters["weight"] = held


def test_a_norm_that_fails_leaves_autocast_on() -> None:
    norm = filled("layer norm")
    with direct_norms(torch.bfloat16, norm), torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError):
            norm(torch.zeros(2, 7, dtype=torch.bfloat16))
        assert autocast_dtype("cpu") is torch.bfloat16


def test_a_models_prediction_stays_as_near_to_fp32(ldm_model: LdmModel, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, told = torch.randn(2, 4, 16, 16), Conditioning(torch.randn(2, 77, CONTEXT))

    def predicted() -> torch.Tensor:
        state = TrainingState(torch.bfloat16, False, True)
        with torch.no_grad(), ldm_model.training(state), torch.autocast("cpu", torch.bfloat16):
            return ldm_model.predict(latents.bfloat16(), torch.tensor([1, 900]), told).float()

    with torch.no_grad():
        exact = ldm_model.predict(latents, torch.tensor([1, 900]), told)
    mine = relative(predicted(), exact)
    real = norms._normed
    monkeypatch.setattr(norms, "_normed", lambda norm, x: real(norm, x.float()).to(x.dtype))
    assert 0 < mine < 1.3 * relative(predicted(), exact)
