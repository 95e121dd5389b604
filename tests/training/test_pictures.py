"""Which pictures a step sees, what they weigh, and the running average of a whole checkpoint."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lib_trainer.captions.variation import Moment, Variation
from lib_trainer.config import LossConfig, NoiseConfig, from_values
from lib_trainer.dataset.scan import Sample
from lib_trainer.kinds.captions import CaptionMaker
from lib_trainer.kinds.registry import kind_of
from lib_trainer.training.finder import ENOUGH, HELD_SHARE, held_back
from lib_trainer.training.loop import StepBatches
from lib_trainer.training.objective import Noised, Objective
from lib_trainer.training.order import Order, Shown
from lib_trainer.training.pictures import PictureSource
from lib_trainer.training.probe import make_probe
from tests.support import tiny_schedule

SHAPES = ((64, 64), (64, 128), (128, 64), (64, 192))


def source(learn: int, others: int, role: str = "class", shapes: int = 1, **values: Any) -> PictureSource:
    samples = [Sample(Path(f"{n}.png"), f"zork {n}", 2, "", (64, 64)) for n in range(learn)]
    samples += [Sample(Path(f"o{n}.png"), f"other {n}", 1, "", (64, 64), role) for n in range(others)]  # type: ignore[arg-type]
    encoded = SimpleNamespace(
        samples=samples,
        targets=[SHAPES[number % shapes] for number in range(len(samples))],
        sizes=[(None,)] * len(samples),
        mask=lambda index, variation: None,
        hole=lambda index, variation: None,
        moments=lambda index, variation: torch.zeros(8, *(side // 8 for side in reversed(encoded.targets[index]))),
    )
    job = from_values({"training.batch_size": 2, **values})
    shown = tuple(Shown(one.role, one.repeats, target) for one, target in zip(samples, encoded.targets, strict=True))
    return PictureSource(Order(job, kind_of(job), shown), encoded, CaptionMaker((), ()), 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("others", [1, 3, 10, 25])
def test_an_epoch_shows_as_many_class_pictures_as_others(others: int) -> None:
    pictures = source(5, others)
    seen: set[int] = set()
    for seed in range(12):
        repeats = pictures.order.repeats(torch.Generator().manual_seed(seed), 1, before=False)
        assert repeats[:5] == [2] * 5 and sum(repeats[5:]) == 10
        assert max(repeats[5:]) - min(repeats[5:]) <= 1
        seen |= {index for index, count in enumerate(repeats[5:]) if count}
    assert len(seen) == others, "in time all of them are shown"
    assert pictures.order.batches_per_epoch() == 10


def test_a_batch_is_weighed_where_something_weighs() -> None:
    moments = [Moment(0, 1, 1, place) for place in range(2)]

    def weights(pictures: PictureSource, indices: list[int], share: float) -> list[float] | None:
        found = pictures.batch(indices, moments, share, torch.Generator().manual_seed(0)).weights
        return None if found is None else found.tolist()

    plain, beside = source(2, 0), source(1, 1, **{"prior.weight": 0.5})
    assert weights(plain, [0, 1], 1.0) is None
    assert weights(plain, [0, 1], 2.0) == [2, 2] and weights(plain, [0, 1], 0.5) == [0.5, 0.5]
    assert weights(beside, [0, 1], 1.0) == [1, 0.5] and weights(beside, [0, 0], 1.0) is None


def test_pictures_to_judge_by_are_a_share_of_each_folder(tmp_path: Path) -> None:
    def held(*counts: int, seed: int = 1) -> list[Path]:
        paths = [tmp_path / str(folder) / f"{n}.png" for folder, count in enumerate(counts) for n in range(count)]
        samples = [Sample(path, "", 1, "", size) for path in paths for size in SHAPES[:2]]
        samples.append(Sample(tmp_path / "class" / "0.png", "", 1, "", SHAPES[0], "class"))
        found = [samples[index].path for index in held_back(samples, seed)]
        assert {samples[index].role for index in held_back(samples, seed)} <= {"learn"}
        assert all(found.count(path) == 2 for path in found), "at all of their sizes"
        return found[::2]

    assert held(ENOUGH - 1) == [] and held(ENOUGH - 2, 1) == []
    assert len(held(ENOUGH)) == round(HELD_SHARE * ENOUGH)
    assert [path.parent.name for path in held(ENOUGH, 1)].count("1") == 0, "its only picture is trained"
    assert len({path.parent for path in held(ENOUGH, 2, 30)}) == 3
    assert held(40) == held(40) != held(40, seed=2)


def test_fixed_points_are_spread_over_the_timesteps_and_over_pictures_as_an_epoch_shows_them() -> None:
    pictures, objective = source(4, 2, role="learn"), Objective(tiny_schedule(), NoiseConfig(), LossConfig())
    noise = NoiseConfig(min_timestep=100, max_timestep=900)
    probe = make_probe(pictures, range(6), 80, objective, noise, 16)
    timesteps = torch.cat([points.noised.timesteps for points in probe._batches])
    assert len(timesteps) == len(probe.pictures) == 160
    assert torch.histc(timesteps.float(), 8, 100, 900).int().tolist() == pytest.approx([20] * 8, abs=4)
    times = Counter(probe.pictures)
    assert [times[index] for index in range(6)] == pytest.approx([32] * 4 + [16] * 2, abs=6)
    again = make_probe(pictures, range(6), 80, objective, noise, 16)
    assert all(
        torch.equal(one.noised.latents, other.noised.latents)
        for one, other in zip(probe._batches, again._batches, strict=True)
    )


class Compared(int):
    """A number that counts how often it is compared."""

    count = 0

    def __eq__(self, other: object) -> bool:
        Compared.count += 1
        return int(self) == other

    __hash__ = int.__hash__


def test_a_thousand_class_pictures_are_not_looked_up_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them are shown in an epoch: each of the thousand is looked for among five hundred."""
    shuffled = torch.randperm

    class Numbers(list[Compared]):
        def __getitem__(self, part: Any) -> Any:
            return Numbers(list.__getitem__(self, part))

        def tolist(self) -> list[Compared]:
            return list(self)

    def permuted(count: int, **how: Any) -> Numbers:
        return Numbers(map(Compared, shuffled(count, **how).tolist()))

    monkeypatch.setattr(torch, "randperm", permuted)
    repeats = source(250, 1000).order.repeats(torch.Generator().manual_seed(0), 1, before=False)
    assert sum(repeats[250:]) == 500
    assert 0 < Compared.count <= 2 * 1000


def test_class_pictures_carry_their_weight_and_keep_their_captions() -> None:
    pictures = source(4, 4, **{"prior.weight": 0.25})
    steps = pictures.steps()
    batches = [batch for _ in range(8) for batch in next(steps).batches]
    captions = [caption for batch in batches for caption in batch.captions]
    assert any(caption.startswith("other") for caption in captions)
    for batch in batches:
        expected = [0.25 if caption.startswith("other") else 1.0 for caption in batch.captions]
        assert (batch.weights is None and set(expected) == {1.0}) or batch.weights.tolist() == expected


def test_the_pictures_before_come_first_and_alone() -> None:
    values = {"network.kind": "difference", "training.max_steps": 9, "difference.base_steps": 5}
    steps = list(itertools.islice(source(3, 3, role="before", **values).steps(), 9))
    captions = [[c for batch in step.batches for c in batch.captions] for step in steps]
    assert [all(c.startswith("other") for c in own) for own in captions] == [True] * 5 + [False] * 4
    assert not any(c.startswith("other") for own in captions[5:] for c in own)
    assert [step.base for step in steps] == [True] * 5 + [False] * 4
    assert source(3, 3, role="before", **values | {"difference.base_steps": 0}).order.base_steps() == 4


def plain(step: StepBatches) -> Any:
    batches = [(batch.latents.tolist(), batch.captions, str(batch.weights)) for batch in step.batches]
    return step.epoch, step.base, batches


@pytest.mark.parametrize("repeats", [(1, 2, 3), (0.5,), (0.25, 0.5, 1.5, 2)], ids=str)
def test_every_picture_of_buckets_is_shown_equally_often_and_every_batch_is_full(repeats: tuple[float, ...]) -> None:
    """Twenty random sets, as many batch sizes: issue 11. What an epoch asks for is shown in it or in the next one; at
    the end nothing is owed, and pictures of the same repeats differ by one at most."""
    random = Random(11)
    for _ in range(20):
        sizes = [(64 * random.randint(1, 5), 64) for _ in range(random.randint(16, 60))]
        shown = tuple(Shown("learn", random.choice(repeats), size) for size in sizes)
        batch_size, epochs = random.randint(1, 8), random.randint(2, 6)
        job = from_values(
            {"buckets.enabled": True, "training.batch_size": batch_size, "training.epochs": epochs, "training.seed": 3}
        )
        order, counts, short = Order(job, kind_of(job), shown), Counter[int](), 0
        wanted = [order.repeats(torch.Generator(), epoch, before=False) for epoch in range(1, epochs + 1)]
        for place, _generator in itertools.islice(order.places(), order.total_steps()):
            if place.epoch_begins and place.epoch > 1:  # at the end of the epoch before
                asked = [sum(own) for own in zip(*wanted[: place.epoch - 1], strict=True)]
                late = [total - counts[index] for index, total in enumerate(asked)]
                assert all(0 <= own <= most for own, most in zip(late, wanted[place.epoch - 2], strict=True))
            counts.update(index for part in place.batches for index in part)
            short += sum(len(part) for part in place.batches) < batch_size
        asked = [sum(own) for own in zip(*wanted, strict=True)]
        assert short <= 1
        assert counts == Counter({index: total for index, total in enumerate(asked) if total})
        assert all(abs(counts[index] - epochs * one.repeats) < 1 for index, one in enumerate(shown))
        for same in repeats:
            own = [counts[index] for index, one in enumerate(shown) if one.repeats == same]
            assert not own or max(own) - min(own) <= (same != int(same))


def test_fractional_repeats_without_buckets() -> None:
    """The steps that are foreseen are those that the epochs have, and the class keeps up with the pictures."""
    values = {"training.epochs": 6, "training.batch_size": 3, "training.gradient_accumulation": 2}
    job = from_values(values)
    shown = tuple(Shown("learn", 0.3, (64, 64)) for _ in range(17)) + (Shown("class", 1, (64, 64)),) * 4
    order, counts = Order(job, kind_of(job), shown), Counter[int]()
    steps = list(itertools.takewhile(lambda one: one[0].epoch <= 6, order.places()))
    assert len(steps) == order.total_steps()
    for place, _ in steps:
        counts.update(index for part in place.batches for index in part)
    assert {counts[index] for index in range(17)} == {1, 2}
    assert sum(counts[index] for index in range(17)) == sum(counts[index] for index in range(17, 21)) in (30, 31)


def test_a_picture_has_its_own_weight_beside_that_of_its_role() -> None:
    pictures = source(2, 2, **{"prior.weight": 0.5, "training.max_steps": 4})
    heavy = [replace(one, weight=3.0 if index % 2 else 1.0) for index, one in enumerate(pictures.encoded.samples)]
    pictures.encoded.samples = heavy  # type: ignore[misc, assignment]
    found = {}
    for step in itertools.islice(pictures.steps(), 8):
        for batch in step.batches:
            weights = [1.0] * len(batch.captions) if batch.weights is None else batch.weights.tolist()
            found |= dict(zip(batch.captions, weights, strict=True))
    assert found == {"zork 0": 1.0, "zork 1": 3.0, "other 0": 0.5, "other 1": 1.5}


@pytest.mark.parametrize("buckets", [True, False])
def test_pictures_of_a_divided_batch_count_alike(buckets: bool) -> None:
    """Three pictures of one size and one of another, or a short batch added to a full one: the mean of the parts'
    losses is that of the pictures."""
    values = {"buckets.enabled": buckets, "training.batch_size": 8, "training.max_steps": 9}
    values |= {} if buckets else {"training.batch_size": 4, "training.gradient_accumulation": 2}
    pictures = source(6 if buckets else 7, 0, shapes=4 if buckets else 1, **values)
    divided = [step for step in itertools.islice(pictures.steps(), 9) if len(step.batches) > 1]
    assert divided
    for step in divided:
        count = sum(len(batch.captions) for batch in step.batches)
        own = {caption: torch.rand(()) for batch in step.batches for caption in batch.captions}
        parts = []
        for batch in step.batches:
            assert batch.latents.shape[0] == len(batch.captions)
            weights = torch.ones(len(batch.captions)) if batch.weights is None else batch.weights
            parts.append((torch.stack([own[caption] for caption in batch.captions]) * weights).mean())
        expected = sum(own[caption] for batch in step.batches for caption in batch.captions) / count
        torch.testing.assert_close(torch.stack(parts).mean(), expected)


@pytest.mark.parametrize("role", ["class", "before", "buckets"])
def test_a_step_hangs_on_its_number_alone(role: str) -> None:
    """Asking ahead, from the middle, or for single steps gives what asking in order gives."""
    kind = "difference" if role == "before" else "lora"
    values = {"network.kind": kind, "training.max_steps": 30, "difference.base_steps": 7}
    values |= {"training.gradient_accumulation": 2, "training.batch_size": 2}
    buckets = role == "buckets"
    values |= {"buckets.enabled": buckets}
    pictures = source(5, 3, role="class" if buckets else role, shapes=4 if buckets else 1, **values)
    whole = [plain(step) for step in itertools.islice(pictures.steps(), 30)]
    assert len({one[0] for one in whole}) > 3, "several epochs"
    assert all(one != other for one, other in itertools.combinations(whole, 2))
    for first in (1, 2, 7, 8, 9, 20):
        assert [plain(step) for step in itertools.islice(pictures.steps(first), 31 - first)] == whole[first - 1 :]
    two, one = pictures.steps(), pictures.steps(12)
    assert [plain(next(two)), plain(next(one)), plain(next(two))] == [whole[0], whole[11], whole[1]]


def test_varied_captions_hang_on_the_step_alone_and_class_pictures_keep_theirs() -> None:
    """Whatever step is asked for first. What else is drawn is what it is without them."""
    values = {"training.gradient_accumulation": 2, "training.batch_size": 2, "training.max_steps": 20}
    as_is = source(5, 3, **values)
    variation = Variation(True, tag_dropout=0.3, dropout_epochs=3)
    pictures = replace(as_is, captions=CaptionMaker((), ("a", "b", "c, d, e"), "", variation))
    whole, plainly = ([*itertools.islice(one.steps(), 20)] for one in (pictures, as_is))
    told = [[caption for batch in step.batches for caption in batch.captions] for step in whole]
    for first in (2, 9, 20):
        assert [plain(step) for step in itertools.islice(pictures.steps(first), 21 - first)] == [
            plain(step) for step in whole[first - 1 :]
        ]
    learned = [caption for step in told for caption in step if not caption.startswith("other")]
    assert len({*learned}) > len(learned) / 2
    assert {step.epoch for step, own in zip(whole, told, strict=True) if "" in own} == {3}
    for step, same in zip(whole, plainly, strict=True):
        for batch, other in zip(step.batches, same.batches, strict=True):
            assert torch.equal(batch.latents, other.latents)
            assert [c for c in batch.captions if c.startswith("other")] == [
                c for c in other.captions if c.startswith("other")
            ]


def with_captions(pictures: PictureSource, **changes: Any) -> PictureSource:
    samples = [replace(one, **changes) for one in pictures.encoded.samples]
    encoded = SimpleNamespace(**{**vars(pictures.encoded), "samples": samples})
    return replace(pictures, encoded=encoded)  # type: ignore[arg-type]


def told_by(pictures: PictureSource, steps: int) -> list[Any]:
    taken = itertools.islice(pictures.steps(), steps)
    return [caption for step in taken for batch in step.batches for caption in batch.captions]


def test_captions_come_as_often_as_their_chances_say() -> None:
    pictures = with_captions(source(4, 0), others=("other", "third"), chances=(0.7, 0.2, 0.1))
    counts = Counter(caption if caption in ("other", "third") else "first" for caption in told_by(pictures, 1000))
    shares = [counts[name] / sum(counts.values()) for name in ("first", "other", "third")]
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.03)
    assert sorted(pictures.captions_of(0), key=str) == ["other", "third", "zork 0"]


def test_each_encoder_is_told_its_own_and_both_are_left_out_together() -> None:
    """What is encoded beforehand is what the steps tell."""
    pictures = with_captions(source(3, 3), seconds=("a, sentence", "another"), second_chances=(1.0, 3.0))
    pictures = replace(pictures, captions=CaptionMaker((), ("zork",), "", Variation(dropout=0.3)))
    told = told_by(pictures, 400)
    known = {caption for index in range(6) for caption in pictures.captions_of(index)}
    assert {*told} == known
    assert ("", "") in known and all((not one) == (not other) for one, other in known)
    assert ("zork 1", "zork, a, sentence") in known and ("other 1", "another") in known, "the class keeps its own"
    counts = Counter(other for _, other in told if other)
    assert counts["zork, another"] / counts["zork, a, sentence"] == pytest.approx(3, rel=0.4)
    assert not pictures.varies
    warming = replace(pictures, captions=CaptionMaker((), ("zork",), "", Variation(warmup=5)))
    assert warming.varies, "which pairs there are is not foretold"


def test_weights_are_factors_on_each_pictures_own_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    weights = torch.tensor([1.0, 0.5, 0.0])
    own = torch.stack([F.mse_loss(p, t) for p, t in zip(prediction, target, strict=True)])
    objective, times = Objective(tiny_schedule()), torch.zeros(3, dtype=torch.int64)
    plain, weighted, ones = (
        objective.loss(prediction, Noised(prediction, times, target, factors))
        for factors in (None, weights, torch.ones(3))
    )
    torch.testing.assert_close(weighted, (own * weights).mean())
    torch.testing.assert_close(ones, plain)


def test_swapped_weights_come_back_as_the_same_objects_also_after_an_error(diffusers_model: Any) -> None:
    from lib_trainer.kinds.checkpoint import CheckpointRecipe

    recipe = CheckpointRecipe(from_values({"network.kind": "checkpoint"}), diffusers_model)
    before = {name: id(parameter) for name, parameter in diffusers_model.unet.named_parameters()}
    with pytest.raises(RuntimeError), recipe.applied():
        inside = {name: id(parameter) for name, parameter in diffusers_model.unet.named_parameters()}
        assert not set(inside.values()) & set(before.values())
        raise RuntimeError
    assert {name: id(parameter) for name, parameter in diffusers_model.unet.named_parameters()} == before
