"""Latents drawn from moments have the distribution that they should."""

from __future__ import annotations

import pytest
import torch

from lib_trainer.dataset.encoded import sample_latents


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_sampled_latents_have_the_mean_and_the_deviation_they_should() -> None:
    moments = torch.cat([torch.full((2, 4, 200, 200), 3.0), torch.full((2, 4, 200, 200), -1.2)], dim=1)
    drawn = sample_latents(moments, 0.5, generator())
    assert drawn.shape == (2, 4, 200, 200)
    assert drawn.mean().item() == pytest.approx(1.5, abs=0.003)
    assert drawn.std().item() == pytest.approx(0.5 * torch.tensor(-0.6).exp().item(), rel=0.01)
    assert torch.equal(drawn, sample_latents(moments, 0.5, generator()))
    assert not torch.equal(drawn, sample_latents(moments, 0.5, generator(2)))
    assert not torch.equal(drawn[0], drawn[1])


def test_logarithmic_variances_are_clamped() -> None:
    moments = torch.zeros(1, 8, 50, 50)
    moments[:, 4:] = -1000.0
    assert sample_latents(moments, 1.0, generator()).abs().max().item() == pytest.approx(0, abs=5e-6)
    moments[:, 4:] = 1000.0
    drawn = sample_latents(moments, 1.0, generator())
    assert drawn.std().item() == pytest.approx(torch.tensor(10.0).exp().item(), rel=0.05)


def test_sampling_agrees_with_diffusers() -> None:
    vae = pytest.importorskip("diffusers.models.autoencoders.vae", reason="the reference is diffusers")
    moments = torch.randn(3, 8, 9, 7, generator=generator(5)) * 20
    reference = vae.DiagonalGaussianDistribution(moments)
    scale = 0.18215
    ours = sample_latents(moments, scale, generator(7))
    torch.testing.assert_close(ours, reference.sample(generator(7)) * scale)
    noise = torch.randn(reference.mean.shape, generator=generator(7))
    torch.testing.assert_close(ours, (reference.mean + reference.std * noise) * scale)
