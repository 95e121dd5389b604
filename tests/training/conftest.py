"""A host whose model must come out of every run as it went in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lib_trainer.host.standalone.host import StandaloneHost
    from tests.training.watched import Watched


@pytest.fixture(scope="session")
def untouched_picture(diffusers_model: Any) -> str:
    """What a seed draws before any run."""
    return _drawn(diffusers_model)


@pytest.fixture
def host(diffusers_model: Any, tiny: Any, tmp_path: Path, untouched_picture: str) -> Iterator[StandaloneHost]:
    """The standalone host on the tiny model. After the test, whatever happened in it: the model is bit for bit what it
    was, in every flag, forward, hook and type, and the same seed draws the same picture."""
    import torch

    from lib_trainer.host.standalone.host import StandaloneHost
    from tests.support import differences, roots_of, snapshot

    host = StandaloneHost(tiny.path, tmp_path, torch.device("cpu"))
    host._model = diffusers_model
    before = snapshot(*roots_of(diffusers_model))
    schedule = diffusers_model.schedule.alphas_cumprod.clone()
    yield host
    assert differences(before, snapshot(*roots_of(diffusers_model))) == []
    assert torch.equal(diffusers_model.schedule.alphas_cumprod, schedule)
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    assert _drawn(diffusers_model) == untouched_picture
    assert not host._busy.locked()


@pytest.fixture
def watched(host: StandaloneHost) -> Iterator[Watched]:
    """A job that should have been refused must not run on into the next test."""
    from tests.training.watched import PATIENCE, Watched

    watched = Watched(host)
    yield watched
    watched.runner.stop()
    watched.runner.wait(PATIENCE)


def _drawn(model: Any) -> str:
    import torch

    from lib_trainer.host.standalone.sampling import draw
    from lib_trainer.ports import PreviewRequest

    with torch.no_grad():
        picture = draw(model, PreviewRequest("a disc", width=64, height=64, steps=2, seed=3))
    return hashlib.sha256(picture.tobytes()).hexdigest()
