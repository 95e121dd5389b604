"""A host whose model must come out of every run as it went in."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import smaller

if TYPE_CHECKING:
    from lib_trainer.host.standalone.host import StandaloneHost
    from tests.training.watched import Watched


tiny, ldm_model, diffusers_model = smaller.tiny, smaller.ldm_model, smaller.diffusers_model


@pytest.fixture(scope="module", autouse=True)
def pictures_are_encoded_once() -> Iterator[None]:
    """In a process."""
    from tests.encoded import remembered_encoders

    with remembered_encoders():
        yield


@pytest.fixture(scope="module")
def untouched_picture(diffusers_model: Any) -> str:
    """What a seed draws before any run."""
    return _drawn(diffusers_model)


@pytest.fixture(scope="module")
def untouched(diffusers_model: Any) -> dict[str, object]:
    """The model before a file's first test; each test leaves it so."""
    from tests.support import roots_of, snapshot

    return snapshot(*roots_of(diffusers_model))


@pytest.fixture
def host(
    diffusers_model: Any,
    tiny: Any,
    tmp_path: Path,
    untouched: dict[str, object],
    untouched_picture: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[StandaloneHost]:
    """The standalone host on the tiny model. After the test, whatever happened in it: the model is bit for bit what it
    was, in every flag, forward, hook and type, and the same seed draws the same picture. Where the host was never asked
    for its model, which is so with a job that is refused, nothing of it can have changed."""
    import torch

    from lib_trainer.host.standalone.host import StandaloneHost
    from tests.support import differences, roots_of, snapshot

    host = StandaloneHost(tiny.path, tmp_path, torch.device("cpu"))
    host._model = diffusers_model
    schedule = diffusers_model.schedule.alphas_cumprod.clone()
    given: list[StandaloneHost] = []
    real = StandaloneHost.model

    @functools.wraps(real)
    def model(self: StandaloneHost) -> Any:
        given.append(self)
        return real(self)

    monkeypatch.setattr(StandaloneHost, "model", model)
    yield host
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    assert not host._busy.locked()
    if given:
        assert differences(untouched, snapshot(*roots_of(diffusers_model))) == []
        assert torch.equal(diffusers_model.schedule.alphas_cumprod, schedule)
        assert _drawn(diffusers_model) == untouched_picture


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
        picture = draw(model, PreviewRequest("a disc", width=16, height=16, steps=1, seed=3))
    return hashlib.sha256(picture.tobytes()).hexdigest()
