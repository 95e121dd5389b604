"""Fixtures of the model with a quarter of the layers, for a file of tests that takes them in the tiny one's place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module", autouse=True)
def shallow_models() -> Iterator[None]:
    """What a test builds or describes itself is as shallow."""
    from tests.support import shallow

    with shallow():
        yield


@pytest.fixture(scope="session")
def tiny(small: Any) -> Any:
    return small


@pytest.fixture(scope="session")
def ldm_model(small_ldm_model: Any) -> Any:
    return small_ldm_model


@pytest.fixture(scope="session")
def diffusers_model(small_diffusers_model: Any) -> Any:
    return small_diffusers_model
