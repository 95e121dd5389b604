"""What only a card shows of recorded passes: that the kernels of every kind can be recorded, and what is left after."""

from __future__ import annotations

import contextlib
import copy
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer.ports import Conditioning, HeldPart
from lib_trainer.training import graphs
from lib_trainer.training.graphs import CudaRecorder
from lib_trainer.training.plan import prepare
from lib_trainer.training.run import run_plan
from lib_trainer.transfer import is_recorded
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from tests.support import ModelHost, draw_pictures, make_job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA card"),
]
CARD = torch.device("cuda", 0)
BF16 = {"training__precision": "bf16"}
JOBS: dict[str, dict[str, Any]] = {
    "lora, bf16": BF16,
    "lora, fp16": {"training__precision": "fp16"},
    "lora, fp32": {"training__precision": "fp32"},
    "lora, 8-bit weights": BF16 | {"training__weights": "fp8"},
    "lora, every tensor": BF16 | {"optimizer__name": "Lion"},
    "lora, text encoder for a while": BF16 | {"optimizer__text_encoder_share": 0.5},
    "lora, added up": BF16 | {"training__gradient_accumulation": 2},
    "lora, huber and masks": BF16 | {"loss__type": "huber", "loss__weighting": "min_snr"},
    "locon": BF16 | {"network__kind": "locon"},
    "loha": BF16 | {"network__kind": "loha"},
    "lokr": BF16 | {"network__kind": "lokr"},
    "dora": BF16 | {"network__dora": True},
    "embedding": BF16 | {"network__kind": "embedding", "output__name": "zrk-a"},
    "pivotal": BF16 | {"network__kind": "pivotal", "output__name": "zrk-a"},
    "hypernetwork": BF16 | {"network__kind": "hypernetwork"},
    "checkpoint": BF16 | {"network__kind": "checkpoint"},
    "difference, EMA": BF16 | {"network__kind": "difference", "difference__base_steps": 6, "optimizer__ema": True},
}


class Watching(CudaRecorder):
    """Counts, and is kept after a run."""

    made: list[Watching]

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.recordings = self.repeats = 0
        Watching.made.append(self)

    def recorded(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        out, repeat = super().recorded(work)
        self.recordings += 1

        def counted() -> None:
            self.repeats += 1
            repeat()

        return out, counted


class CardHost(ModelHost):
    def device(self) -> torch.device:
        return CARD

    def parts(self) -> dict[str, HeldPart]:
        return {"unet": HeldPart(1, torch.float32)}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "PAYS", 0)
    monkeypatch.setattr(graphs, "recorder_for", Watching)
    Watching.made = []


@pytest.fixture(params=["ldm", "diffusers"])
def model(request: pytest.FixtureRequest) -> Any:
    made = copy.deepcopy(request.getfixturevalue(f"small_{request.param}_model"))
    for root in (made.unet, made.vae, *made.text.parts().values()):
        root.to(CARD)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_pictures(tmp_path / "pictures", 4)


def ran(model: Any, folder: Path, root: Path, *, off: bool = False, **changes: Any) -> list[Any]:
    """What a run of twelve steps said, with blank previews after the eighth."""
    usual = {"training__max_steps": 12, "preview__prompt": "x", "preview__every": 8}
    if changes.get("network__kind") == "difference":
        changes["difference__before"] = str(draw_pictures(root / "before", 4, side=72))
    job = make_job(folder, **usual | changes, training__cuda_graphs="off" if off else "on")
    events: list[Any] = []
    host = CardHost(model, root)
    run_plan(prepare(job, host), host, Control(), events.append)
    assert [done.step for done in events if isinstance(done, ev.StepDone)] == list(range(1, 13))
    return events


def curve(events: list[Any]) -> torch.Tensor:
    return torch.tensor([[one.loss, one.gradient_norm] for one in events if isinstance(one, ev.StepDone)])


def said(events: list[Any]) -> list[str]:
    return [str(one.text) for one in events if isinstance(one, ev.Message) and "CUDA graphs" in str(one.text)]


@pytest.mark.parametrize("kind", JOBS)
def test_a_run_learns_the_same(model: Any, folder: Path, tmp_path: Path, kind: str) -> None:
    found = ran(model, folder, tmp_path / "on", **JOBS[kind])
    (recorder,) = Watching.made
    assert said(found) == []
    assert recorder.repeats > recorder.recordings >= 2, "and anew after the preview"
    plain = ran(model, folder, tmp_path / "off", **JOBS[kind], off=True)
    off_by = (curve(found) - curve(plain)).abs() / curve(plain).abs().clamp_min(1e-6)
    print(f"{kind}: largest relative difference of a loss {off_by[:, 0].max():.1e}, of a norm {off_by[:, 1].max():.1e}")
    assert float(off_by[:, 0].max()) < 1e-2 and float(off_by[:, 1].max()) < 0.1


def _held() -> tuple[int, int]:
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def test_nothing_of_it_is_left_on_the_card(model: Any, folder: Path, tmp_path: Path) -> None:
    ran(model, folder, tmp_path / "first", **BF16)  # what libraries make once
    before = _held()
    ran(model, folder, tmp_path / "second", **BF16)
    assert Watching.made[1].recordings >= 2
    assert _held() == before


@contextlib.contextmanager
def asking(model: Any, what: Callable[[], object]) -> Iterator[None]:
    """A UNet that does it while it is recorded."""
    own = model.predict

    def predict(latents: torch.Tensor, timesteps: torch.Tensor, told: Conditioning) -> torch.Tensor:
        if is_recorded(CARD):
            what()
        return own(latents, timesteps, told)  # type: ignore[no-any-return]

    model.predict = predict
    try:
        yield
    finally:
        del model.predict


FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "waits": (lambda: torch.zeros(1, device=CARD).item(), ""),
    "no memory": (lambda: torch.empty(1 << 42, device=CARD), "memory"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_recorded_is_computed(model: Any, folder: Path, tmp_path: Path, fault: str) -> None:
    what, word = FAULTS[fault]
    with asking(model, what):
        found = ran(model, folder, tmp_path / "on", **BF16)
    (told,) = said(found)
    assert word in told
    torch.cuda.empty_cache()  # torch before 2.12 refuses both after a recording that CUDA has broken off
    assert torch.randn(4, device=CARD).isfinite().all()
    assert Watching.made[0].recordings == 0
    plain = ran(model, folder, tmp_path / "off", **BF16, off=True)
    assert torch.allclose(curve(found)[:, 0], curve(plain)[:, 0], rtol=1e-2)


def test_other_threads_use_the_card_meanwhile(model: Any, folder: Path, tmp_path: Path) -> None:
    ended = threading.Event()

    def busy() -> None:
        while not ended.is_set():
            sent = torch.ones(1000, 1000, pin_memory=True).to(CARD, non_blocking=True)
            assert float((sent @ sent).sum()) > 0
            torch.cuda.mem_get_info(CARD)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        found = ran(model, folder, tmp_path, **BF16)
    finally:
        ended.set()
        thread.join()
    assert said(found) == [] and Watching.made[0].repeats > 0
