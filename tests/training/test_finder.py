"""The search for a learning rate on the tiny model: what it says, what it leaves as it was, and what it refuses.

The `host` fixture checks after each of them that the model is untouched and draws what it drew.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer.kinds.recipe import parameters
from lib_trainer.refusals import ConfigError, NumericalError
from lib_trainer.training import finder
from lib_trainer.training.finder import Report, ShortRuns, prepare_search
from lib_trainer.training.place import Place
from lib_trainer.training.probe import Probe
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from lib_trainer.work.monitor import JobView
from tests import protocol
from tests.support import make_job
from tests.training.watched import PATIENCE, Watched


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rates of two steps, then two of them."""
    monkeypatch.setattr(finder, "FIRST", (0.1, 1.0, 10.0))
    monkeypatch.setattr(finder, "MOST", 2)
    monkeypatch.setattr(finder, "SHORTEST", 2)
    monkeypatch.setattr(finder, "LEAST", 2)
    monkeypatch.setattr(finder, "SEEDS", 1)
    monkeypatch.setattr(finder, "PAIRS", 4)
    monkeypatch.setattr(finder, "near", lambda factor: [factor / 3, factor])


def searched(watched: Watched, pictures: Path, **changes: Any) -> tuple[JobView, list[ev.Event]]:
    before = len(watched.events)
    watched.runner.find_rate(make_job(pictures, **changes), watched)
    view = watched.runner.searches.wait(PATIENCE)
    assert view is not None and not watched.runner.searches.running
    events = watched.events[before:]
    protocol.check(events, training=False)
    return view, events


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_search_answers_and_writes_nothing(watched: Watched, pictures: Path) -> None:
    before, beside = files(watched.host.root), files(pictures)
    view, events = searched(watched, pictures, training__max_steps=8, output__name="", dataset__cache="disk")
    assert (view.state, view.error) == ("finished", "")
    report = view.result
    assert isinstance(report, Report)
    assert report.rates == {"optimizer.unet_lr": 1e-3, "optimizer.text_encoder_lr": 1e-3} and report.whole == 8
    assert {one.factor for one in report.tried} >= {0.1, 1.0, 10.0}
    assert (report.range is None) != (report.unknown is None) and view.told
    assert files(watched.host.root) == before and files(pictures) == beside
    phases = [event for event in events if isinstance(event, ev.Phase) and event.unit == "runs"]
    assert phases and phases[-1].done == phases[-1].total
    assert watched.runner.view() is None


def test_the_same_search_says_the_same(watched: Watched, pictures: Path) -> None:
    first, again = (searched(watched, pictures, training__max_steps=8)[0].result for _ in range(2))
    assert isinstance(first, Report) and first == again


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"network__kind": "checkpoint", "finetune__unet_lr": 1e-4, "finetune__text_encoder_lr": 1e-4},
        {"network__kind": "pivotal", "embedding__learning_rate": 1e-2, "output__name": "zork"},
        {"network__kind": "hypernetwork", "hypernetwork__learning_rate": 1e-3},
    ],
    ids=["lora", "checkpoint", "pivotal", "hypernetwork"],
)
def test_every_short_run_begins_where_the_first_one_did(watched: Watched, pictures: Path, kind: Any) -> None:
    """A run whose rate is far too high leaves no trace in the next one."""
    gains: list[torch.Tensor | None] = []

    class Twice(finder.Search):
        def _searched(self, short: ShortRuns) -> Report | None:
            start = [one.detach().clone() for one in parameters(self.prepared.recipe)]  # type: ignore[union-attr]
            for factor in (1.0, 100.0, 1.0):
                run = short.run(factor, 2, 0, lambda: False)
                gains.append(None if run is None else run.gains)
            short.restore()
            now = parameters(self.prepared.recipe)  # type: ignore[union-attr]
            assert all(torch.equal(one, other) for one, other in zip(start, now, strict=True))
            return None

    host, plan = watched.host, prepare_search(make_job(pictures, **kind), watched.host)
    with host.lease("a test") as lease:
        Twice(plan, Place(host, host.model(), lease, Control(), lambda event: None)).execute()
    first, wild, again = gains
    assert first is not None and again is not None and torch.equal(first, again)
    assert wild is None or not torch.allclose(first, wild)


def test_pictures_to_judge_by_are_not_learned(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are enough of them; else the report says so."""
    view, _ = searched(watched, pictures, training__max_steps=8)
    assert isinstance(view.result, Report)
    assert [note.code for note in view.result.notes] == ["finder.none_held"]
    monkeypatch.setattr(finder, "ENOUGH", 6)
    shown: list[set[Path]] = []
    real = finder.ShortRuns._source

    def source(self: ShortRuns, job: Any) -> Any:
        found = real(self, job)
        samples = found.encoded.samples
        learned = {
            samples[index].path
            for place in list(zip(found.order.places(), range(9)))
            for batch in place[0][0].batches
            for index in batch
        }
        shown.append(learned & {samples[index].path for index in self.held})
        assert len(self.held) == 2 and set(self.probe.pictures) <= set(self.held)
        return found

    monkeypatch.setattr(finder.ShortRuns, "_source", source)
    view, _ = searched(watched, pictures, training__max_steps=8)
    assert isinstance(view.result, Report) and not view.result.notes
    assert shown and not any(shown)


def test_a_search_that_is_stopped_gives_no_answer(watched: Watched, pictures: Path) -> None:
    watched.react = lambda event: watched.runner.stop() if isinstance(event, ev.Found) else None
    view, _ = searched(watched, pictures, training__max_steps=8)
    assert view.state == "stopped" and isinstance(view.result, Report)
    assert len(view.result.tried) == 1 and view.result.range is None


def test_one_thing_at_a_time(watched: Watched, pictures: Path) -> None:
    refused: list[str] = []

    def also(event: ev.Event) -> None:
        if isinstance(event, ev.Found) and not refused:
            with pytest.raises(ConfigError) as found:
                watched.runner.start(make_job(pictures))
            refused.append(found.value.sentence.code)
            watched.runner.stop()

    watched.react = also
    searched(watched, pictures, training__max_steps=8)
    assert refused == ["finder.busy"]

    def search(event: ev.Event) -> None:
        if isinstance(event, ev.StepDone) and len(refused) == 1:
            with pytest.raises(ConfigError) as found:
                watched.runner.find_rate(make_job(pictures))
            refused.append(found.value.sentence.code)

    watched.react = search
    assert watched.run(pictures).state == "finished"
    assert refused == ["finder.busy", "training.busy"]


@pytest.mark.parametrize(
    "optimizer",
    [
        {"optimizer__name": "Prodigy"},
        {"optimizer__name": "by path", "optimizer__class_path": "pytorch_optimizer.Prodigy"},
    ],
    ids=["by name", "by path"],
)
def test_an_optimizer_that_finds_its_rate_is_refused(watched: Watched, pictures: Path, optimizer: Any) -> None:
    pytest.importorskip("pytorch_optimizer")
    with pytest.raises(ConfigError) as found:
        watched.runner.find_rate(make_job(pictures, optimizer__unet_lr=1, optimizer__text_encoder_lr=1, **optimizer))
    assert found.value.sentence.code == "finder.finds_itself" and found.value.field == "optimizer.name"
    assert watched.runner.searches.view() is None


def test_what_is_wrong_with_the_job_is_told_as_of_a_run(watched: Watched, pictures: Path) -> None:
    with pytest.raises(ConfigError) as found:
        watched.runner.find_rate(make_job(pictures / "nowhere", optimizer__unet_lr=0, optimizer__text_encoder_lr=0))
    assert {problem.field for problem in found.value.problems} == {"dataset.folder", "optimizer.unet_lr"}


def probed(watched: Watched, pictures: Path, **changes: Any) -> tuple[Probe, list[torch.Tensor]]:
    """The points of a job's search, and what the model says at them."""
    found: list[tuple[Probe, list[torch.Tensor]]] = []

    class Looked(finder.Search):
        def _searched(self, short: ShortRuns) -> Report | None:
            found.append((short.probe, short._answers()))
            return None

    host, plan = watched.host, prepare_search(make_job(pictures, **changes), watched.host)
    with host.lease("a test") as lease:
        Looked(plan, Place(host, host.model(), lease, Control(), lambda event: None)).execute()
    return found[0]


@pytest.mark.parametrize(
    "varied",
    [
        {"captions__shuffle": True},
        {"captions__tag_dropout": 0.9},
        {"captions__warmup": 2, "optimizer__text_encoder_lr": 0.0},
        {"captions__dropout": 0.9},
    ],
    ids=lambda varied: next(iter(varied)),
)
def test_points_are_told_with_all_their_tags(watched: Watched, pictures: Path, varied: dict[str, Any]) -> None:
    probe, _ = probed(watched, pictures, **varied)
    told = {str(caption) for points in probe._batches for caption in points.batch.captions}
    assert told <= {f"zork, disc, colour {index}, saber_(fate)" for index in range(6)} and len(told) > 1


def test_points_weigh_as_much_as_their_pictures(watched: Watched, pictures: Path, tmp_path: Path) -> None:
    pictures = shutil.copytree(pictures, tmp_path / "own")
    plain, said = probed(watched, pictures)
    (pictures / "weights.csv").write_text("picture,weight\n*,1\n[0-2].png,3\n", encoding="utf-8")
    weighed, again = probed(watched, pictures)
    assert plain.pictures == weighed.pictures and all(torch.equal(*pair) for pair in zip(said, again, strict=True))
    factors = torch.tensor([3.0 if picture < 3 else 1.0 for picture in weighed.pictures])
    assert len(factors.unique()) == 2
    assert torch.allclose(weighed.losses(again), factors * plain.losses(said))


def test_no_run_is_longer_than_the_job(watched: Watched, pictures: Path) -> None:
    view, _ = searched(watched, pictures, training__max_steps=1)
    assert isinstance(view.result, Report) and {one.steps for one in view.result.tried} == {1}


def test_no_run_of_a_short_job_is_made_twice(watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second round is as long as its first one, of the same rates and with the same first seed."""
    made: list[tuple[float, int, int]] = []
    real = finder.ShortRuns.run

    def run(self: finder.ShortRuns, factor: float, steps: int, seed: int, stopping: Any) -> Any:
        made.append((round(factor, 9), steps, seed))
        return real(self, factor, steps, seed, stopping)

    monkeypatch.setattr(finder.ShortRuns, "run", run)
    monkeypatch.setattr(finder, "SEEDS", 2)
    monkeypatch.setattr(finder, "near", lambda factor: [factor / 3 * 3.0000000000000004])
    monkeypatch.setattr(finder, "best_factor", lambda found: found[1])
    view, _ = searched(watched, pictures, training__max_steps=1)
    assert made == [(0.1, 1, 0), (1.0, 1, 0), (10.0, 1, 0), (1.0, 1, 1)]
    assert isinstance(view.result, Report) and len(view.result.tried) == 3


def test_a_rate_that_overflows_is_told_and_costs_nothing(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, forgotten = list[object](), list[object]()
    make, forget, train = finder.make_optimizer, finder.forget_state, finder.train

    def makes(*given: Any) -> Any:
        made.append(make(*given))
        return made[-1]

    def forgets(optimizer: Any) -> None:
        forgotten.append(optimizer)
        forget(optimizer)

    def overflows(*given: Any) -> None:
        train(*given)
        if len(made) == 3:  # the highest rate
            raise NumericalError("loss.not_finite", what="the loss", step=2, last=1, rates="", precision="")

    for name, own in (("make_optimizer", makes), ("forget_state", forgets), ("train", overflows)):
        monkeypatch.setattr(finder, name, own)
    view, _ = searched(watched, pictures, training__max_steps=8)
    report = view.result
    assert view.state == "finished" and isinstance(report, Report)
    assert [one.factor for one in report.tried if one.gain is None] == [10.0]
    assert forgotten == made, "also of the run that overflowed"


def test_a_short_run_is_the_job_in_small() -> None:
    """What is set in steps becomes a share; another seed is another order."""
    job = make_job(Path("pictures"), optimizer__warmup=100, difference__base_steps=500, training__max_steps=1000)
    short = finder.shortened(job, 40, 1000, 3)
    assert short.optimizer.warmup == 0.1 and short.difference.base_steps == 0
    assert (short.training.max_steps, short.training.seed) == (40, job.training.seed + 3)
