"""Shared fixtures: the tiny model on both hosts, and a folder of drawn pictures."""

from __future__ import annotations

import gc
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lib_trainer.host.ldm.model import LdmModel
    from lib_trainer.host.standalone.model import DiffusersModel
    from tests.support import Tiny


os.environ.setdefault("HYPOTHESIS_NO_PLUGINS", "1")
"""Nothing is drawn from pydantic's types, whose plugin works out each pattern that a page's server brings along, and in
a clone that has no `.hypothesis` yet a table of all of Unicode."""

LONG = (
    "tests/training/test_forecast_on_a_card.py",
    "tests/browser/",
    "tests/e2e/test_learns.py[sd1]",
    "tests/training/test_forecast.py",
    "tests/options/test_every_option.py",
    "tests/e2e/test_learns.py[sdxl]",
    "tests/e2e/test_learns.py[sd2-v]",
    "tests/training/test_state.py",
    "tests/training/test_other_families.py",
    "tests/training/test_half_host.py",
    "tests/training/test_validation.py",
    "tests/training/test_same_files.py",
    "tests/training/test_finder.py",
    "tests/training/test_kinds.py",
    "tests/training/test_out_of_memory.py",
    "tests/training/test_runs_in_trouble.py",
    "tests/training/test_metadata.py",
    "tests/training/test_two_hosts.py",
    "tests/training/test_runs.py",
    "tests/training/test_preservation.py",
    "tests/tiling/test_precision.py",
    "tests/host/test_prediction_of_files.py",
    "tests/training/test_inpainting.py",
    "tests/host/test_other_families.py",
)
"""Files that begin first, the longest before the others, so that no worker is left alone with one at the end."""
TOGETHER = ("tests/browser/", "tests/webui/")
"""Folders whose tests stay on one worker: each has one browser, or one WebUI, for all of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorted by LONG. A file's tests stay together and in order."""
    place = {scope: number for number, scope in enumerate(LONG)}
    items.sort(key=lambda item: place.get(scope_of(item.nodeid), len(LONG)))


def scope_of(nodeid: str) -> str:
    """What stays on one worker: a file, or a folder of TOGETHER; of LONG also what comes of one parameter in a file.

    A test on a card goes to any: there most of a test's time is the host's.
    """
    file, _, test = nodeid.partition("::")
    for folder in TOGETHER:
        if file.startswith(folder):
            return folder
    if test.endswith("card]"):
        return nodeid
    one = f"{file}[{test.partition('[')[2]}"
    return one if one in LONG else file


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What imports make is no garbage and no test's: the collector, which many tests call, never looks at it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a scope stay on one worker (xdist's own groups need an older pytest)."""
    from xdist.scheduler import LoadScopeScheduling

    class ByScope(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    return ByScope(config, log)


@pytest.fixture(scope="session", autouse=True)
def processors_are_alike(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`auto` is fp32 on a processor without bf16 and bf16 on one with it: the tests run on the first, wherever."""
    from lib_trainer.training import precision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "CPU_INFO", tmp_path_factory.mktemp("processor") / "cpuinfo")
        precision._cpu_multiplies_bf16.cache_clear()
        yield
    precision._cpu_multiplies_bf16.cache_clear()


SHARED: dict[str, tuple[Any, list[object]]] = {}
"""Models and folders of the session, each with what it is made of."""


@pytest.fixture(scope="module", autouse=True)
def what_is_shared_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """A file whose tests put something else into a shared model or folder fails itself, and not whoever comes next."""
    yield
    for name, (shared, before) in SHARED.items():
        now = _made_of(shared)
        SHARED[name] = shared, now  # the next file is not to blame
        assert now == before, f"{request.node.name} left something else in {name}"


@pytest.fixture(scope="module", autouse=True)
def what_was_imported_is_no_garbage() -> Iterator[None]:
    """Nor is what a file has imported any test's. That it has is told by the number of modules."""
    yield
    if len(sys.modules) > IMPORTED[-1] + MANY:
        IMPORTED.append(len(sys.modules))
        gc.collect()
        gc.freeze()


IMPORTED, MANY = [0], 100


def _made_of(shared: Any) -> list[object]:
    if isinstance(shared, Path):
        return [(path.name, path.read_bytes()) for path in sorted(shared.iterdir())]
    roots = (shared.unet, shared.vae, *(encoder.module for encoder in shared.text.encoders))
    return [
        (id(tensor), tensor.dtype, zlib.crc32(tensor.detach().contiguous().numpy()))
        for root in roots
        for tensor in root.parameters()
    ]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Random weights of SD1's topology, as ldm modules and as a checkpoint file."""
    pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason="ldm is in requirements/test-no-deps.txt")
    from tests.support import build_tiny

    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The same with a quarter of the layers. Where it is enough, a folder's fixtures put it in the tiny one's place."""
    pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason="ldm is in requirements/test-no-deps.txt")
    from tests.support import build_tiny, shallow

    with shallow():
        return build_tiny(tmp_path_factory.mktemp("small"), shift=0.1)


@pytest.fixture(scope="session")
def ldm_model(tiny: Tiny) -> LdmModel:
    """The tiny model through ldm's classes. Tests leave it as they found it."""
    return _shared("ldm_model", tiny.in_ldm())


@pytest.fixture(scope="session")
def small_ldm_model(small: Tiny) -> LdmModel:
    return _shared("small_ldm_model", small.in_ldm())


@pytest.fixture(scope="session")
def diffusers_model(tiny: Tiny) -> DiffusersModel:
    """The same weights through the standalone host's loader. Tests leave it as they found it."""
    return _shared("diffusers_model", tiny.in_diffusers())


@pytest.fixture(scope="session")
def small_diffusers_model(small: Tiny) -> DiffusersModel:
    return _shared("small_diffusers_model", small.in_diffusers())


def _shared(name: str, model: Any) -> Any:
    from tests.support import leave_traces

    leave_traces(model)
    SHARED[name] = model, _made_of(model)
    return model


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn pictures of 64×64 with captions."""
    from tests.support import draw_pictures

    folder = draw_pictures(tmp_path_factory.mktemp("pictures"))
    SHARED["pictures"] = folder, _made_of(folder)
    return folder
