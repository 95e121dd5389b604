"""A picture that is encoded again gives the same latents, and a VAE that has changed gives its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import encoded
from tests.encoded import remembered_encoders


@pytest.fixture(params=["small_ldm_model", "small_diffusers_model"])
def encoder(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param).vae.encoder


@torch.no_grad()
def test_only_what_cannot_differ_is_remembered(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "KNOWN", {})
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    plain = encoder(pixels)
    with remembered_encoders():
        assert torch.equal(encoder(pixels), plain) and len(encoded.KNOWN) == 1
        encoder(pixels).zero_()
        with monkeypatch.context() as patch:
            patch.setattr("torch.nn.functional.conv2d", None)  # nothing is worked out
            assert torch.equal(encoder(pixels), plain)
        assert not torch.equal(encoder(pixels + 0.1), plain)
        handle = encoder.conv_in.register_forward_hook(lambda layer, given, out: out * 2)
        try:
            assert not torch.equal(encoder(pixels), plain)
        finally:
            handle.remove()
        with monkeypatch.context() as patch:
            patch.setitem(vars(encoder.conv_in), "forward", lambda given: torch.zeros(1, 32, 64, 64))
            assert not torch.equal(encoder(pixels), plain)
        weight = encoder.conv_out.weight
        kept = weight.data
        weight.data = kept * 2
        try:
            assert not torch.equal(encoder(pixels), plain)
        finally:
            weight.data = kept
        assert torch.equal(encoder(pixels), plain)
