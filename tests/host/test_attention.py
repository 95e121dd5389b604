"""Attention while training, against the formula in float64 and ldm's own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_trainer.host.ldm.attention import attend, efficient_attention
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.ports import Conditioning
from tests.support import CONTEXT, differences, relative, snapshot


def _attention(dim: int, context: int | None, heads: int, width: int) -> Any:
    from ldm.modules.attention import CrossAttention

    torch.manual_seed(4)
    return CrossAttention(dim, context, heads, width)


@pytest.mark.parametrize("context", [None, 12], ids=["self", "cross"])
def test_attention_is_softmax_of_the_scaled_product(context: int | None) -> None:
    """Vaswani et al. 2017, eq. 1, with einsum in float64; and ldm's own forward."""
    pytest.importorskip("ldm.modules.attention")
    module = _attention(16, context, 4, 6)
    x = torch.randn(2, 9, 16)
    told = None if context is None else torch.randn(2, 5, 12)
    mine = attend(module, x, told)
    torch.testing.assert_close(mine, module(x, told), rtol=1e-5, atol=1e-6)
    double = module.double()
    q, k, v = (
        layer(source.double()).unflatten(-1, (4, 6))
        for layer, source in (
            (double.to_q, x),
            (double.to_k, x if told is None else told),
            (double.to_v, x if told is None else told),
        )
    )
    weights = torch.softmax(torch.einsum("bnhd,bmhd->bhnm", q, k) / 6**0.5, dim=-1)
    reference = double.to_out(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))
    torch.testing.assert_close(mine.double(), reference, rtol=1e-5, atol=1e-6)


def test_attention_masks_are_refused() -> None:
    module = _attention(16, None, 4, 4)
    with pytest.raises(ValueError, match="masks"):
        attend(module, torch.zeros(1, 3, 16), mask=torch.ones(1, 3))


def test_efficient_attention_changes_the_way_and_not_the_result(ldm_model: LdmModel) -> None:
    latents, context = torch.randn(2, 4, 16, 16), torch.randn(2, 154, CONTEXT)
    with torch.no_grad():
        plain = ldm_model.predict(latents, torch.tensor([1, 900]), Conditioning(context))
        before = snapshot(ldm_model.unet)
        with efficient_attention(ldm_model.unet):
            own = sum("forward" in module.__dict__ for module in ldm_model.unet.modules())
            fused = ldm_model.predict(latents, torch.tensor([1, 900]), Conditioning(context))
    assert own >= 32  # two attentions in each of 16 transformers
    assert relative(fused, plain) < 1e-5
    assert differences(before, snapshot(ldm_model.unet)) == []
