"""Attention on diffusers' modules while a model trains, beside what their own processors give."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor

from lib_trainer.host.standalone.attention import direct_attention

TOLD = torch.linspace(-1, 1, 2 * 5 * 6).view(2, 5, 6)
X = torch.linspace(-2, 1, 2 * 4 * 8).view(2, 4, 8)


def module(**more):
    torch.manual_seed(1)
    return Attention(8, 6, heads=2, dim_head=4, **more).eval()


class Watched(torch.nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention


@pytest.mark.parametrize("told", [None, TOLD], ids=["self", "cross"])
@pytest.mark.parametrize("mask", [None, torch.zeros(2, 1, 5)], ids=["plain", "masked"])
def test_it_is_what_the_processor_gives_bit_for_bit(told, mask):
    own = module() if told is not None else Attention(8, heads=2, dim_head=4).eval()
    mask = mask if told is not None or mask is None else mask[..., :4]
    expected = own(X, encoder_hidden_states=told, attention_mask=mask)
    with direct_attention(Watched(own)):
        assert torch.equal(own(X, encoder_hidden_states=told, attention_mask=mask), expected)
    assert "forward" not in vars(own)


def test_the_processor_is_not_asked_for_plain_attention(monkeypatch):
    own = module()
    expected = own(X, encoder_hidden_states=TOLD)
    monkeypatch.setattr(type(own.processor), "__call__", lambda *args, **kwargs: 1 / 0)
    with direct_attention(Watched(own)):
        assert torch.equal(own(X, encoder_hidden_states=TOLD), expected)


@pytest.mark.parametrize(
    "other",
    [
        module(residual_connection=True),
        module(qk_norm="layer_norm"),
        module(rescale_output_factor=2.0),
        module(processor=AttnProcessor()),
        module(norm_num_groups=2),
    ],
    ids=["residual", "normed heads", "rescaled", "somebody's processor", "normed"],
)
def test_an_attention_that_does_more_is_left_alone(other):
    with direct_attention(Watched(other)):
        assert "forward" not in vars(other)
