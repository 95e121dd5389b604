"""Recorded passes, on a stand-in that records: the curve is that of a run that records nothing, whatever comes between.

What only a card shows is in test_graphs_on_a_card.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lib_trainer.config import OptimizerConfig, from_values
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.networks import flat
from lib_trainer.networks.flat import Flat
from lib_trainer.ports import Conditioning, PictureSize
from lib_trainer.training import graphs
from lib_trainer.training.graphs import Graphs, graphs_for
from lib_trainer.training.loop import Batch, LoopOptions, StepBatches, train
from lib_trainer.training.objective import Objective
from lib_trainer.training.optimizers import make_optimizer
from lib_trainer.training.precision import _cpu_multiplies_fp16
from lib_trainer.training.scaling import loss_scaler
from lib_trainer.training.schedules import LearningRates
from lib_trainer.training.state import TrainState
from lib_trainer.work import events as ev
from tests.support import draw_pictures, tiny_schedule
from tests.training.recording import OnCpu, unnoticed_by_flats
from tests.training.watched import Watched, at_step

SIZE = PictureSize((8, 8), (0, 0), (8, 8))
SHORT = torch.cuda.OutOfMemoryError("CUDA out of memory")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short runs record too."""
    monkeypatch.setattr(graphs, "PAYS", 0)
    monkeypatch.setattr(graphs, "SEEN", 1)


@dataclass
class Small:
    """A UNet of one product, told by a text encoder of one vector."""

    weight: nn.Parameter = field(default_factory=lambda: nn.Parameter(torch.tensor([0.3, -0.2])))
    words: nn.Parameter = field(default_factory=lambda: nn.Parameter(torch.tensor([0.5, 0.1])))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    before: Callable[[torch.Tensor], None] = lambda latents: None

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, told: Conditioning) -> torch.Tensor:
        self.before(latents)
        text = told.context.mean((1, 2)).view(-1, 1, 1, 1)
        return latents * self.weight.sum() + text * timesteps.view(-1, 1, 1, 1) / 1000

    def told(self, captions: Sequence[Any], sizes: Any) -> Conditioning:
        return Conditioning(self.words.sin().expand(len(captions), 77, 2) * len(captions[0]))


class Silent(torch.optim.SGD):
    """Changes the bytes of parameters unseen by torch, as 8-bit optimizers do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in (one for group in self.param_groups for one in group["params"] if one.grad is not None):
            parameter.data.add_(parameter.grad, alpha=-100 * self.param_groups[0]["lr"])


class NoRecipe(Recipe):
    """What learns is the test's own."""


@dataclass
class Ran:
    model: Small = field(default_factory=Small)
    recorder: OnCpu | None = None
    graphs: Graphs | None = None
    steps: list[ev.StepDone] = field(default_factory=list)
    kind: str = "AdamW"
    until: float = 1.0
    after: Callable[[ev.StepDone], None] = lambda done: None

    def __post_init__(self) -> None:
        self.graphs = None if self.recorder is None else Graphs(self.recorder)
        own = [
            {"params": [self.model.weight], "lr": 0.05, "name": "unet"},
            {"params": [self.model.words], "lr": 0.05, "name": "te1", "until": self.until},
        ]
        self.optimizer = make_optimizer(own, OptimizerConfig(name=self.kind))

    def run(self, drawn: Sequence[StepBatches], *, dtype: torch.dtype = torch.float32, late: bool = True) -> Ran:
        scaler, noise = loss_scaler(torch.device("cpu"), dtype), torch.Generator().manual_seed(3)

        def told(done: ev.StepDone) -> None:
            self.steps.append(done)
            self.after(done)

        train(
            self.model,  # type: ignore[arg-type]
            self.model.told,
            iter(drawn),
            TrainState(NoRecipe(), self.optimizer, scaler, noise, Objective(tiny_schedule())),
            LearningRates(self.optimizer, OptimizerConfig(schedule="constant"), len(drawn)),
            LoopOptions(len(drawn), dtype, 1.0, late=late, graphs=self.graphs),
            told,
            lambda: False,
        )
        return self

    def is_as(self, other: Ran) -> None:
        """Bit for bit, with every step's loss and gradients."""
        for one, two in zip(self.steps, other.steps, strict=True):
            assert (one.loss, one.gradient_norm, one.applied) == (two.loss, two.gradient_norm, two.applied), one.step
        assert torch.equal(self.model.weight, other.model.weight)
        assert torch.equal(self.model.words, other.model.words)
        assert len({done.loss for done in self.steps}) == len(self.steps), "the steps tell nothing apart"


def batch(seed: int, count: int = 1, side: int = 8, weights: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    own = torch.rand(count, generator=generator) if weights else None
    captions = ["abc"[: 1 + seed % 3]] * count
    return Batch(torch.randn(count, 4, side, side, generator=generator), captions, [SIZE] * count, own)


def alike(steps: int, **form: Any) -> list[StepBatches]:
    return [StepBatches(1, [batch(step, **form)]) for step in range(steps)]


SHAPES: dict[str, Callable[[], list[StepBatches]]] = {
    "one shape": lambda: alike(6),
    "two shapes in turn": lambda: [StepBatches(1, [batch(step, side=8 + 8 * (step % 2))]) for step in range(8)],
    "a short batch": lambda: [StepBatches(1, [batch(step, 1 + (step % 3 > 0))]) for step in range(9)],
    "added up": lambda: [StepBatches(1, [batch(2 * step), batch(2 * step + 1)]) for step in range(6)],
    "added up, two shapes": lambda: [StepBatches(1, [batch(step), batch(step, side=16)]) for step in range(6)],
    "added up to what is not recorded": lambda: [
        StepBatches(1, [batch(2 * step, side=16 if step == 4 else 8), batch(2 * step + 1)]) for step in range(6)
    ],
    "sometimes added up": lambda: [
        StepBatches(1, [batch(9 * step + one) for one in range(1 + step % 2)]) for step in range(8)
    ],
    "weights": lambda: [StepBatches(1, [batch(step, 2, weights=step % 2 == 0)]) for step in range(8)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_repeating_passes_changes_no_bit_of_a_run(shape: str) -> None:
    recorder = OnCpu()
    Ran(recorder=recorder).run(SHAPES[shape]()).is_as(Ran().run(SHAPES[shape]()))
    assert recorder.repeats > recorder.recordings > 0


@pytest.mark.parametrize("late", [True, False], ids=["late", "at once"])
def test_a_text_encoder_learns_beside_it_and_may_end_before(late: bool) -> None:
    runs = [Ran(recorder=one, until=0.5).run(alike(8), late=late) for one in (OnCpu(), None)]
    runs[0].is_as(runs[1])
    assert not torch.equal(runs[0].model.words, Small().words) and not runs[0].model.words.requires_grad
    assert runs[0].recorder is not None and runs[0].recorder.recordings == 2, "with gradients for the text, and without"


def test_loss_scaling_is_followed() -> None:
    """The scale changes on the way: a first one of 65536 overflows."""
    if not _cpu_multiplies_fp16():
        pytest.skip("torch has no products in fp16 on the CPU")
    runs = [Ran(recorder=one).run(alike(9), dtype=torch.float16) for one in (OnCpu(), None)]
    runs[0].is_as(runs[1])
    assert {done.applied for done in runs[0].steps} == {True, False}


@pytest.mark.parametrize("fault", ["fails", "other numbers", "no memory"])
def test_what_cannot_be_recorded_is_computed_as_ever(fault: str) -> None:
    recorder = OnCpu()
    recorder.fails = {"fails": RuntimeError("operation not permitted"), "no memory": SHORT}.get(fault)
    recorder.off_by = 0.1 if fault == "other numbers" else 0.0
    ran = Ran(recorder=recorder).run(alike(6))
    ran.is_as(Ran().run(alike(6)))
    assert ran.graphs is not None
    told = ran.graphs.take_failure()
    assert {"fails": "not permitted", "no memory": "out of memory"}.get(fault, "where it had given") in told
    assert ran.graphs.take_failure() == "" and not ran.graphs.holds and not recorder.made
    assert recorder.recordings == (fault == "other numbers"), "and it is not tried again"


def test_without_room_nothing_is_recorded_and_nothing_told() -> None:
    recorder = OnCpu()
    recorder.room = False
    ran = Ran(recorder=recorder).run(alike(5))
    ran.is_as(Ran().run(alike(5)))
    assert ran.graphs is not None and ran.graphs.take_failure() == "" and recorder.recordings == 0


def test_a_larger_picture_that_finds_no_memory_is_given_what_was_recorded() -> None:
    recorder = OnCpu()

    def before(latents: torch.Tensor) -> None:
        if latents.shape[-1] > 8 and recorder.made:
            raise SHORT

    drawn = [*alike(4), StepBatches(1, [batch(4), batch(5, side=16)]), *alike(8)[5:]]
    ran = Ran(model=Small(before=before), recorder=recorder).run(drawn)
    ran.is_as(Ran().run(drawn))
    assert ran.graphs is not None and "out of memory" in ran.graphs.take_failure()
    assert not recorder.made and recorder.recordings == 1


def test_an_error_that_nothing_recorded_has_to_do_with_is_raised() -> None:
    def before(latents: torch.Tensor) -> None:
        if latents.shape[-1] > 8:
            raise SHORT

    ran = Ran(model=Small(before=before), recorder=(recorder := OnCpu()))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        ran.run([StepBatches(1, [batch(5, side=16)])])
    assert recorder.forgotten == 0


def test_forgetting_between_two_steps_records_anew() -> None:
    """As for a preview, which is drawn while the next step's gradients are there already."""
    recorder = OnCpu()
    ran = Ran(recorder=recorder)
    assert ran.graphs is not None
    ran.after = lambda done: ran.graphs.forget() if done.step == 4 and ran.graphs else None
    ran.run(alike(8)).is_as(Ran().run(alike(8)))
    assert (recorder.recordings, recorder.forgotten) == (2, 1)


def test_parameters_that_an_optimizer_puts_elsewhere_are_followed() -> None:
    def moved(ran: Ran) -> Ran:
        def step(done: ev.StepDone) -> None:
            if done.step == 3:
                ran.model.weight.data = ran.model.weight.data.clone()

        ran.after = step
        return ran.run(alike(8))

    recorder = OnCpu()
    moved(Ran(recorder=recorder)).is_as(moved(Ran()))
    assert recorder.recordings == 2


def test_only_what_comes_often_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "PAYS", 20)
    recorder = OnCpu()
    Ran(recorder=recorder).run(alike(12))
    assert recorder.recordings == 0, "too few are to come"
    drawn = [StepBatches(1, [batch(step, side=16 if step % 10 == 9 else 8)]) for step in range(60)]
    Ran(recorder=recorder).run(drawn)
    assert recorder.recordings == 1, "of the large ones too few"


def test_no_more_forms_are_recorded_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST", 2)
    drawn = [StepBatches(1, [batch(step, side=8 * (1 + step % 4))]) for step in range(12)]
    ran = Ran(recorder=(recorder := OnCpu())).run(drawn)
    ran.is_as(Ran().run(drawn))
    assert recorder.recordings == 2


def test_a_recorded_pass_makes_its_own_copies_of_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that lie there may go, and those that it makes hold nothing yet."""
    own, recorded = Flat([nn.Parameter(torch.ones(3))], whole=True), [False]
    monkeypatch.setattr(flat, "is_recorded", lambda device: recorded[0])
    own.learn(False)
    lying = own.working(torch.float16)
    assert own.working(torch.float16) is lying
    recorded[0] = True
    made = own.working(torch.float16)
    assert made is not lying and own.working(torch.float16) is made
    recorded[0] = False
    assert own.working(torch.float16) is not made


CARD, CPU = torch.device("cuda"), torch.device("cpu")
ASKS: dict[str, dict[str, Any]] = {
    "turned off": {"training.cuda_graphs": "off"},
    "learned weights": {"loss.learned_weights": True},
    "checkpointing": {"training.gradient_checkpointing": True},
}


@pytest.mark.parametrize("asks", ASKS)
def test_what_is_not_recorded(asks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "recorder_for", lambda device: OnCpu() if device == CARD else None)
    recipe, drawing = NoRecipe(), NoRecipe()
    drawing.draws = True
    assert graphs_for(from_values(ASKS[asks]), recipe, CARD) is None
    assert graphs_for(from_values({}), recipe, CARD) is not None
    assert graphs_for(from_values({}), drawing, CARD) is None
    assert graphs_for(from_values({}), recipe, CPU) is None


@pytest.mark.parametrize(
    ("torch_version", "wanted"), [((2, 1), False), ((2, 10), False), ((2, 11), True), ((3, 0), True)]
)
def test_older_torches_record_when_they_are_asked_to(
    torch_version: tuple[int, int], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "recorder_for", lambda device: OnCpu())
    monkeypatch.setattr(graphs, "torch_version", lambda: torch_version)
    assert (graphs_for(from_values({}), NoRecipe(), CARD) is not None) is wanted
    assert graphs_for(from_values({"training.cuda_graphs": "on"}), NoRecipe(), CARD) is not None


# ---------------------------------------------------------------------------- what torch leaves of a broken recording

POOL = (0, 7)


class Allocator:
    """Of three generations of torch: whether a recording is under way, and how it is told that none is."""

    def __init__(self, generation: str, recording: bool) -> None:
        self.generation, self.under_way = generation, int(recording)

    def of_a_pool(self, device: int, pool: tuple[int, int]) -> None:
        assert (device, pool) == (0, POOL)
        if not self.under_way:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.under_way = 0

    def of_a_stream(self, device: int) -> None:
        self.under_way -= 1

    def empty_cache(self) -> None:
        if self.under_way:
            raise RuntimeError("captures_underway == 0 INTERNAL ASSERT FAILED")


@pytest.mark.parametrize("recording", [True, False], ids=["broken off by CUDA", "ended"])
@pytest.mark.parametrize("generation", ["2.1", "2.2", "2.8"])
def test_the_allocator_is_told_once_that_nothing_is_recorded(
    generation: str, recording: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is empty on a card then is in test_graphs_on_a_card.py."""
    own = Allocator(generation, recording)
    newest, older = "_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"
    monkeypatch.setattr(torch._C, newest, own.of_a_pool if generation == "2.8" else None, raising=False)
    before = {"2.1": own.of_a_stream, "2.2": own.of_a_pool}.get(generation)
    monkeypatch.setattr(torch._C, older, before, raising=False)
    monkeypatch.setattr(torch.cuda, "empty_cache", own.empty_cache)
    assert graphs._end_allocating(0, POOL) is recording
    assert own.under_way == 0


# ------------------------------------------------------------------------------------------------------ a whole run

KINDS: dict[str, dict[str, Any]] = {
    "lora, every tensor": {"optimizer__name": "Lion"},
    "embedding": {"network__kind": "embedding", "output__name": "zrk-a"},
    "checkpoint": {"network__kind": "checkpoint"},
    "difference, EMA": {"network__kind": "difference", "difference__base_steps": 3, "optimizer__ema": True},
}


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[OnCpu]]:
    """Those that runs have asked for; copies of parameters are made anew in a record, as on a card."""
    made: list[OnCpu] = []
    unnoticed = unnoticed_by_flats(monkeypatch)

    def recorder_for(device: torch.device) -> OnCpu:
        made.append(OnCpu())
        made[-1].unnoticed = unnoticed
        return made[-1]

    monkeypatch.setattr(graphs, "recorder_for", recorder_for)
    monkeypatch.setattr(flat, "is_recorded", lambda device: any(one.recording for one in made))
    yield made


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_run_learns_the_same(
    kind: str, watched: Watched, pictures: Path, tmp_path: Path, recorders: list[OnCpu]
) -> None:
    """With pictures in between, for which all that was recorded goes."""
    changes: dict[str, Any] = {"training__max_steps": 7, "preview__prompt": "x", "preview__every": 4} | KINDS[kind]
    if "difference" in kind:
        changes["difference__before"] = str(draw_pictures(tmp_path / "before", side=72))
    curves = []
    for off in (False, True):
        own = Watched(StandaloneHost(watched.host.checkpoint, tmp_path / f"off-{off}", CPU))
        own.host._model = watched.host._model
        view = own.run(pictures, **changes, training__cuda_graphs="off" if off else "on")
        assert view.state == "finished", view.error
        curves.append([(done.loss, done.gradient_norm) for done in own.of(ev.StepDone)])
    assert curves[0] == curves[1] and len(curves[0]) == 7
    (recorder,) = recorders
    assert recorder.repeats > recorder.recordings >= 2 and recorder.forgotten >= 2 and not recorder.made


def test_a_failure_is_told_once_and_the_run_goes_on(watched: Watched, pictures: Path, recorders: list[OnCpu]) -> None:
    watched.react = at_step(1, lambda: setattr(recorders[0], "fails", RuntimeError("operation not permitted")))
    assert watched.run(pictures, training__max_steps=5).state == "finished"
    told = [str(one.text) for one in watched.of(ev.Message) if "CUDA graphs" in str(one.text)]
    assert len(told) == 1 and told[0].endswith("operation not permitted")


def test_held_out_losses_between_repeated_steps_are_of_what_has_been_learned(
    watched: Watched, pictures: Path, tmp_path: Path, recorders: list[OnCpu]
) -> None:
    """No backward pass of Python's lets go of the copies that were measured with before."""
    changes: dict[str, Any] = {
        "training__max_steps": 6,
        "validation__pictures": "share",
        "validation__share": 0.3,
        "validation__levels": 1,
        "validation__trained": False,
        "validation__every": 3,
        "optimizer__name": "by path",
        "optimizer__class_path": f"{__name__}.Silent",
        "optimizer__unet_lr": 0.1,
    }
    found = []
    for off in ("off", "on"):
        own = Watched(StandaloneHost(watched.host.checkpoint, tmp_path / off, CPU))
        own.host._model = watched.host._model
        view = own.run(pictures, **changes, training__cuda_graphs=off)
        assert view.state == "finished", view.error
        found.append([one.held_out for one in own.of(ev.Measured)])
    assert recorders[-1].repeats > 3
    assert found[1] == found[0] and len(set(found[0])) == 3
