"""Shared pieces of the miniature's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

    from miniature.judge import Judge


@pytest.fixture(scope="session")
def pipeline() -> StableDiffusionPipeline:
    """The committed checkpoint as a diffusers pipeline."""
    from miniature.export import build_pipeline

    return build_pipeline()


@pytest.fixture(scope="session")
def checkpoint() -> dict[str, torch.Tensor]:
    """The committed checkpoint's tensors."""
    from safetensors.torch import load_file

    from miniature.export import CHECKPOINT

    return load_file(CHECKPOINT)


@pytest.fixture(scope="session")
def tagger() -> Judge:
    """The committed tagger."""
    from miniature.judge import Judge

    return Judge()
