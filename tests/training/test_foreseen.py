"""What is told of a run before it begins: its steps are those that the plan comes to, and its pace that of the last."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from lib_trainer.config import from_values
from lib_trainer.dataset.repeats import Repeats
from lib_trainer.kinds.registry import kind_of
from lib_trainer.refusals import ConfigError
from lib_trainer.training.foreseen import Foreseen, Foresight
from lib_trainer.training.order import Order, Shown
from lib_trainer.training.paces import FILE, Watch, expected, keep
from lib_trainer.training.plan import prepare
from lib_trainer.training.sizes import resolutions_of
from lib_trainer.work.events import Event, Message, StepDone
from tests.support import draw_pictures
from tests.ui.fakes import FakeHost


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw_pictures(tmp_path / "set", count=3)
    draw_pictures(tmp_path / "set" / "4_thing", count=2)
    draw_pictures(tmp_path / "set" / "rest", count=2)
    return tmp_path / "set"


def foreseen(folder: Path, foresight: Foresight | None = None, **values: Any) -> Foreseen:
    job = from_values({"dataset.folder": str(folder), "dataset.trigger_word": "zorb", "output.name": "x"} | values)
    found = (foresight or Foresight()).of(job)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"training.batch_size": 4, "training.gradient_accumulation": 2},
        {"training.max_steps": 33},
        {"dataset.repeats": 1, "training.epochs": 3, "training.batch_size": 2},
        {"buckets.enabled": True, "buckets.resolutions": "768", "training.batch_size": 4},
        {"prior.class_prompt": "a disc", "prior.class_pictures": 7, "training.batch_size": 2},
    ],
)
def test_the_steps_are_the_plans(folder: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    found = foreseen(folder, **values)
    assert found.steps == prepare(found.job, FakeHost(tmp_path)).steps


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("more", [{}, {"validation.trained": False, "dataset.repeats": 0.5}], ids=["", "halves"])
def test_held_out_pictures_are_not_counted(folder: Path, tmp_path: Path, seed: int, more: dict[str, Any]) -> None:
    """Which ones they are changes the steps where subfolders have repeats of their own."""
    draw_pictures(folder / "4_thing", count=6)
    draw_pictures(folder / "1_other", count=5)
    whole = foreseen(folder, **more)
    values = more | {"validation.pictures": "share", "validation.share": 0.2, "validation.seed": seed}
    found = foreseen(folder, **values)
    assert found.steps == prepare(found.job, FakeHost(tmp_path)).steps < whole.steps
    assert (len(whole.repeats), len(found.repeats)) == (14, 11)


def test_further_resolutions_are_read_as_people_type_them() -> None:
    own = {"dataset.width": 512, "dataset.height": 512, "buckets.enabled": True}
    job = from_values(own | {"buckets.resolutions": " 768, 512x768,640 × 384,,768X512 , 512"})
    assert resolutions_of(job) == ((512, 512), (768, 768), (512, 768), (640, 384), (768, 512))
    assert resolutions_of(from_values(own | {"buckets.resolutions": ""})) == ((512, 512),)
    for text in ("wide", "512x", "7", "512x768x3"):
        with pytest.raises(ConfigError, match=rf"'{text}'"):
            resolutions_of(from_values(own | {"buckets.resolutions": text}))


def test_one_picture_is_told_too(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "set", count=1)
    assert (
        str(foreseen(tmp_path / "set", **{"dataset.repeats": 2}).told())
        == "1 picture × 2 repeats × 10 epochs = 20 steps"
    )


def test_where_all_would_be_held_out_it_is_refused(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "set", count=1)
    with pytest.raises(ConfigError, match="none is left to train"):
        foreseen(tmp_path / "set", **{"validation.pictures": "share"})


def test_shares_and_the_weights_of_single_pictures_count(folder: Path, tmp_path: Path) -> None:
    weights = folder / "weights.CSV"  # the ending in any letters
    weights.write_text("picture,repeats\n0.png,3\n", encoding="utf-8")
    draw_pictures(folder / "0.5_share", count=3)
    foresight = Foresight()
    found = foreseen(folder, foresight, **{"dataset.repeats": 1})
    assert sorted(found.repeats) == [0.5, 0.5, 0.5, 1, 1, 3, 4, 4]
    assert found.steps == prepare(found.job, FakeHost(tmp_path)).steps
    weights.unlink()
    assert 3 not in foreseen(folder, foresight, **{"dataset.repeats": 1}).repeats


@pytest.mark.parametrize("evened", [False, True])
@pytest.mark.parametrize("with_class", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_steps_of_shares_are_counted_without_a_look_at_every_epoch(
    evened: bool, with_class: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form asks at every change; thousands of epochs are no rarity."""
    draw = Random(seed)
    shares = [draw.choice([0.5, 0.3, 1.25, 2, 1 / 3]) for _ in range(draw.randint(1, 20))]
    pictures = [Shown("learn", one, (64, 64)) for one in shares] + [Shown("class", 1, (64, 64))] * (3 * with_class)
    job = from_values({"training.epochs": 17, "training.batch_size": 3, "training.gradient_accumulation": 2,
                       "buckets.enabled": evened, "training.seed": seed})  # fmt: skip
    order, counts = Order(job, kind_of(job), tuple(pictures)), []
    for epoch in range(1, 18):
        counts.append(sum(order.repeats(torch.Generator(), epoch, before=False)))
    expected = -(-sum(counts) // 6) if evened else sum(-(-count // 6) for count in counts)
    monkeypatch.setattr(Repeats, "of", lambda self, epoch: pytest.fail("an epoch was looked at"))
    assert Order(job, kind_of(job), tuple(pictures)).total_steps() == expected


def test_it_is_told_as_a_sum(folder: Path) -> None:
    told = foreseen(folder, **{"dataset.repeats": 4}).told
    assert str(told()) == "5 pictures × 4 repeats × 10 epochs = 200 steps"
    values: dict[str, Any] = {"training.batch_size": 2, "training.epochs": 5, "prior.class_prompt": "a disc"}
    assert str(foreseen(folder, **values).told()) == (
        "5 pictures, shown 38 times an epoch, and as many of the class × 5 epochs, 2 in each step = 190 steps"
    )
    values = {"dataset.repeats": 4, "training.max_steps": 1500, "buckets.enabled": True, "buckets.resolutions": "768"}
    assert str(foreseen(folder, **values).told()) == "1,500 steps: 37.5 epochs of 5 pictures × 4 repeats × 2 sizes"
    short = foreseen(folder, **{"dataset.repeats": 100, "training.max_steps": 3}).told()
    assert str(short) == "3 steps: less than 0.1 epochs of 5 pictures, shown 308 times an epoch"
    assert "3 步：不到 0.1 轮" in short.text("zh")


def test_nothing_is_told_without_pictures(tmp_path: Path) -> None:
    foresight = Foresight()
    for folder in ("", str(tmp_path / "absent"), str(tmp_path)):
        assert foresight.of(from_values({"dataset.folder": folder})) is None


def test_a_folder_is_read_again_when_it_has_changed_also_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foresight, read = Foresight(), []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: read.append(place) or scandir(place))
    assert foreseen(folder, foresight, **{"dataset.repeats": 1}).steps == 110
    first = len(read)
    assert foreseen(folder, foresight, **{"dataset.repeats": 1, "training.epochs": 1}).steps == 11
    assert len(read) == first
    draw_pictures(folder / "4_thing", count=3)
    os.utime(folder / "4_thing", ns=(1, 1))  # whatever the clock of the disk
    assert foreseen(folder, foresight, **{"dataset.repeats": 1}).steps == 150


def steps(count: int) -> list[Event]:
    return [StepDone(step, count, 1, 0.1, {}, 1.0, 1.0, 0) for step in range(1, count + 1)]


def test_the_pace_is_that_of_a_usual_step() -> None:
    times = iter([0.0, 30.0, 40.0, 41.0, 42.0, 43.0, 53.0, 54.0, 55.0])
    told: list[Event] = []
    watch = Watch(lambda: next(times))
    listen = watch.listening(told.append)
    listen(Message("a line"))
    for event in steps(7):
        listen(event)
    assert watch.seconds is None, "too few to tell"
    for event in steps(2):
        listen(event)
    assert watch.seconds == 1.0, "kernels that are chosen and a preview do not count"
    assert len(told) == 10


def test_a_jobs_length_follows_from_earlier_ones_of_its_sort(tmp_path: Path) -> None:
    host, job = FakeHost(tmp_path), from_values({"training.batch_size": 2})
    assert expected(host, job) is None
    keep(host, job, 3.0)
    assert expected(host, job) == pytest.approx(3.0)
    assert expected(host, from_values({"training.batch_size": 4})) == pytest.approx(6.0)
    assert expected(host, from_values({"dataset.width": 1024, "dataset.height": 1024})) == pytest.approx(6.0)
    for other in ({"network.kind": "loha"}, {"training.gradient_checkpointing": True}, {"training.precision": "bf16"}):
        assert expected(host, from_values(other)) is None, other
    keep(host, from_values({"network.kind": "loha"}), 1.0)
    assert expected(host, job) == pytest.approx(3.0)


def test_a_file_of_paces_that_is_none_costs_nothing(tmp_path: Path) -> None:
    host, job = FakeHost(tmp_path), from_values({})
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / FILE).write_bytes(b"\x00[")
    assert expected(host, job) is None
    keep(host, job, 3.0)
    assert expected(host, job) == pytest.approx(3.0)
