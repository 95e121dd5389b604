"""Held-out pictures: which they are, that measuring them changes nothing, and what their loss decides."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_trainer.dataset.encoding import encode_pictures
from lib_trainer.dataset.latent_store import MemoryStore
from lib_trainer.dataset.scan import Sample, Scan
from lib_trainer.kinds.captions import CaptionMaker
from lib_trainer.networks.formats.embedding_file import read_embedding
from lib_trainer.ports import Conditioning, NoiseSchedule
from lib_trainer.refusals import ConfigError, SaveError, TrainerError
from lib_trainer.training.course import Course, Point
from lib_trainer.training.fixed_loss import FixedLoss, fixed_captions
from lib_trainer.training.measuring import Measuring
from lib_trainer.training.objective import Objective
from lib_trainer.training.plan import prepare
from lib_trainer.training.results import settle, taken_files
from lib_trainer.training.validation import HeldOut, hold_out
from lib_trainer.work import events as ev
from tests.support import ModelHost, draw_pictures, make_job
from tests.training.watched import Watched, at_step, weights_after

CPU = torch.device("cpu")
SHARE: dict[str, Any] = {
    "validation__pictures": "share",
    "validation__share": 0.3,
    "validation__every": 1,
    "validation__levels": 1,
}
VARIED: dict[str, Any] = {
    "training__max_steps": 2,
    "network__dropout": 0.3,
    "network__module_dropout": 0.2,
    "captions__shuffle": True,
    "captions__tag_dropout": 0.3,
    "augment__mirror": True,
    "training__batch_size": 2,
}
"""Whatever draws from a generator."""


# ------------------------------------------------------------------------------------------------ which they are


def samples(*counts: int) -> tuple[Sample, ...]:
    return tuple(
        Sample(Path(f"/set/1_{folder}/{number}.png"), "a disc", 1, str(folder), (64, 64))
        for folder, count in enumerate(counts)
        for number in range(count)
    )


def held_of(counts: tuple[int, ...], share: float = 0.2, seed: int = 1, **changes: Any) -> tuple[Scan, Any]:
    job = make_job(
        Path("/set"), validation__pictures="share", validation__share=share, validation__seed=seed, **changes
    )
    return hold_out(job, Scan(samples(*counts)), lambda folder: Scan(()))


def test_the_share_is_that_of_every_subfolder() -> None:
    scan, held = held_of((20, 10))
    by_folder = [sum(one.concept == name for one in held.pictures) for name in ("0", "1")]
    assert by_folder == [4, 2]
    assert set(scan.samples) | set(held.pictures) == set(samples(20, 10))
    assert not set(scan.samples) & set(held.pictures)
    assert len(held.trained) == 6 and set(held.trained) <= set(scan.samples)
    assert list(scan.samples) == [one for one in samples(20, 10) if one in scan.samples], "the order stays"


def test_pictures_of_several_folders_are_told_with_their_folders() -> None:
    one, other = samples(1, 1)
    assert "1_0/0.png, 1_1/0.png" in str(HeldOut((one, other)).note)
    assert "training: 0.png" in str(HeldOut((one,)).note) and HeldOut().note is None


def test_what_is_held_out_hangs_on_its_own_seed_alone() -> None:
    first = held_of((20,))[1]
    assert held_of((20,), training__seed=99)[1] == first
    assert set(held_of((20,), seed=2)[1].pictures) != set(first.pictures)
    assert held_of((20,), validation__trained=False)[1].trained == ()


def test_a_share_is_one_picture_at_least_and_never_all() -> None:
    assert len(held_of((3,), share=0.01)[1].pictures) == 1
    with pytest.raises(ConfigError, match="of 1 picture none is left to train"):
        held_of((1,))


def test_captions_are_measured_whole_and_always_the_same() -> None:
    from lib_trainer.captions.variation import Variation

    varied = Variation(shuffle=True, tag_dropout=0.9, warmup=50, dropout=0.5, wildcards=True, prefix="of")
    maker = CaptionMaker((), ("zrk",), variation=varied)
    shown = [replace(one, caption="disc, {red|blue} ||| round;;;thing, small") for one in samples(4)]
    told = [str(one) for one in fixed_captions(shown, maker)]
    assert told == fixed_captions(shown, maker)
    assert {one.replace("blue", "red") for one in told} == {"of zrk, disc, red, round, thing, small"}
    lines = CaptionMaker(("a [name]", "b [name]", "c [name]"), ("zrk",))
    assert fixed_captions(shown, lines) == fixed_captions(shown, lines) and len(set(fixed_captions(shown, lines))) > 1
    for one in (maker, lines):
        assert fixed_captions(shown, one)[1:] == fixed_captions(shown[1:], one), "whatever stands beside a picture"


# ------------------------------------------------------------------------------------------------ how they are measured


class Line:
    """A UNet that says `weight` times what it is shown, and knows what it was shown."""

    device = CPU
    weight = 0.0

    def __init__(self) -> None:
        self.shown: list[tuple[int, torch.Tensor]] = []

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, told: Conditioning) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        self.shown += list(zip(timesteps.tolist(), latents.clone(), strict=True))
        return latents * self.weight


def said_nothing(captions: Any, sizes: Any) -> Conditioning:
    return Conditioning(torch.zeros(len(captions), 77, 4))


def probe(pictures: Path, **changes: Any) -> FixedLoss:
    from lib_trainer.dataset.batches import FixedSize
    from lib_trainer.dataset.scan import scan_folder

    scan = scan_folder(pictures, trigger_word="zork", repeats=1)
    moments = lambda pixels: torch.nn.functional.avg_pool2d(pixels.mean(1, True), 8).repeat(1, 8, 1, 1) - 3  # noqa: E731
    encoded = encode_pictures(
        scan.samples, FixedSize(64, 64), moments, "x", MemoryStore(), lambda done, total: None, lambda: False
    )
    return FixedLoss(encoded, tuple(one.caption for one in encoded.samples), 1.0, **{"levels": 4, **changes})


OBJECTIVE = Objective(NoiseSchedule(torch.linspace(0.999, 0.005, 1000, dtype=torch.float64), "epsilon"))


def losses(of: FixedLoss, model: Any) -> torch.Tensor:
    found = of.losses(model, said_nothing, OBJECTIVE, torch.float32)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_timesteps_are_spread_over_the_range(pictures: Path) -> None:
    from lib_trainer.config import NoiseConfig

    timesteps = probe(pictures).timesteps(1000)
    assert timesteps.shape == (6, 4)
    assert (timesteps // 250 == torch.arange(4)).all(), "each picture has one in each quarter"
    assert sorted((timesteps.flatten() * 24 // 1000).tolist()) == list(range(24)), "together they have each place"
    narrow = probe(pictures, noise=NoiseConfig(min_timestep=400, max_timestep=424)).timesteps(1000)
    assert sorted(narrow.flatten().tolist()) == list(range(400, 424))
    assert not torch.equal(probe(pictures, seed=2).timesteps(1000), timesteps)


def test_measurements_differ_by_the_model_alone(pictures: Path) -> None:
    own, model, again = probe(pictures), Line(), Line()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = losses(own, model)
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn from torch's own generator"
    torch.manual_seed(2)
    assert torch.equal(losses(own, again), first)
    for batch in (2, 5):
        other = Line()
        assert torch.allclose(losses(replace(own, batch=batch), other), first, rtol=1e-6)
        together = sorted(model.shown, key=lambda one: one[0])
        for (step, shown), (other_step, other_shown) in zip(
            together, sorted(other.shown, key=lambda one: one[0]), strict=True
        ):
            assert step == other_step and torch.equal(shown, other_shown)
    assert not torch.equal(losses(replace(own, seed=2), Line()), first)
    assert first.mean() == pytest.approx(1, abs=0.2), "what says nothing is off by the noise, whose mean square is 1"


def test_paired_measurements_tell_what_single_ones_cannot(pictures: Path) -> None:
    """A change far below the spread of the losses is seen in their differences."""
    model = Line()
    before = losses(probe(pictures), model)
    model.weight = 0.002
    rises = (losses(probe(pictures), model) - before).mean(1)
    rise, error = float(rises.mean()), float(rises.std() / len(rises) ** 0.5)
    assert rise < 0 and abs(rise) > 4 * error
    assert before.mean(1).std() / 6**0.5 > abs(rise)


def test_a_picture_that_is_measured_at_several_sizes_counts_once(tmp_path: Path) -> None:
    samples = [Sample(tmp_path / name, "", 1, "", (64, 64)) for name in ("a.png", "a.png", "a.png", "b.png")]
    losses = torch.tensor([[1.0, 3.0], [3.0, 3.0], [4.0, 4.0], [7.0, 9.0]])
    probe: Any = SimpleNamespace(losses=lambda *told: losses, encoded=SimpleNamespace(samples=samples))
    unused: Any = None
    point = Measuring(probe, None, unused, 1, 0).point(5, unused, unused, torch.float32, lambda: False)
    assert point is not None and point.by_picture == (3.0, 8.0) and point.held_out == 5.5


def test_a_measurement_can_be_stopped(pictures: Path) -> None:
    model, asked = Line(), iter([False, False, True])
    found = probe(pictures).losses(model, said_nothing, OBJECTIVE, torch.float32, lambda: next(asked))  # type: ignore[arg-type]
    assert found is None and len(model.shown) == 2


def test_some_of_the_pictures_have_their_own_masks_and_holes(pictures: Path) -> None:
    encoded = probe(pictures).encoded
    names = [str(number) for number in range(len(encoded))]
    whole = replace(encoded, masks=tuple((one,) for one in names), holes=tuple(((one, one),) for one in names))
    some = whole.only([4, 1])
    assert (some.masks, some.holes) == ((("4",), ("1",)), ((("4", "4"),), (("1", "1"),)))
    assert [one.path.stem for one in some.samples] == ["4", "1"] and some.keys == (whole.keys[4], whole.keys[1])


def test_the_best_is_the_first_of_the_lowest_and_never_the_start() -> None:
    course = Course(begins=2)
    assert course.best is None and course.since_best == 0
    told = [course.put(Point(step, value)) for step, value in ((2, 0.1), (4, 0.5), (6, 0.4), (8, 0.4), (10, 0.6))]
    assert told == [False, True, True, False, False]
    assert course.start == Point(2, 0.1) and course.best == Point(6, 0.4) and course.since_best == 2
    other = Course(begins=2)
    other.load_state_dict(course.state_dict())
    assert other == course


# ------------------------------------------------------------------------------------------------ runs


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_measures_gives_the_file_that_it_gives_otherwise(watched: Watched, tmp_path: Path) -> None:
    """Of a folder of its own nothing is missing in the set; of a share, the pictures that are held out."""
    whole = draw_pictures(tmp_path / "set", 8)
    other = draw_pictures(tmp_path / "other", 2, size=(80, 64))
    assert watched.run(whole, output__name="plain", **VARIED).state == "finished"
    folder = {"validation__pictures": "folder", "validation__folder": str(other), "validation__every": 1}
    assert watched.run(whole, output__name="measured", **VARIED, **folder).state == "finished"
    assert [one.step for one in watched.of(ev.Measured)] == [0, 1, 2]
    assert same(watched.tensors("measured.safetensors"), watched.tensors("plain.safetensors"))
    assert watched.run(whole, output__name="shared", **VARIED, **SHARE).state == "finished"
    job = make_job(whole, **SHARE)
    trained = prepare(job, watched.host).scan.samples
    assert len(trained) == 6
    left = tmp_path / "alone" / "set"
    left.mkdir(parents=True)
    for sample in trained:
        for path in (sample.path, sample.path.with_suffix(".txt")):
            shutil.copy(path, left / path.name)
    assert watched.run(left, output__name="fewer", **VARIED).state == "finished"
    assert same(watched.tensors("shared.safetensors"), watched.tensors("fewer.safetensors"))


def test_what_is_told_of_measurements(watched: Watched, pictures: Path) -> None:
    view = watched.run(pictures, **SHARE | {"validation__every": 2}, training__max_steps=4)
    told = watched.of(ev.Measured)
    assert [one.step for one in told] == [0, 2, 4] == [one.step for one in view.held_out]
    assert not told[0].best and told[1].best
    assert view.best_step == min(told[1:], key=lambda one: one.held_out).step
    assert all(one.trained is not None and one.held_out != one.trained for one in told)
    assert told[0].held_out != told[1].held_out
    assert any("Held out of training: " in line for line in view.log)
    assert view.notes == () == watched.of(ev.Finished)[0].notes, "two measurements after the start have no shape"
    assert any(f"Step 2: held-out loss {told[1].held_out:.4f}, the lowest so far" in line for line in view.log)


def test_captions_of_both_sides_are_those_that_were_encoded(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where their words are drawn and weighted."""
    model, weighted = watched.host.model(), []
    encode = model.encode_text

    def encode_text(*given: Any, **named: Any) -> Any:
        weighted.append(named.get("weighted", False))
        return encode(*given, **named)

    monkeypatch.setattr(model, "encode_text", encode_text)
    pictures = shutil.copytree(pictures, tmp_path / "own")
    for number, path in enumerate(sorted(pictures.glob("*.txt"))):
        path.write_text(f"a {{red{number}|(blue{number}:1.3)|green{number}|grey{number}}} disc")
    changes = SHARE | {"captions__wildcards": True, "captions__weights": True, "optimizer__text_encoder_lr": 0.0}
    view = watched.run(pictures, **changes, training__max_steps=1)
    assert (view.state, view.error) == ("finished", "")
    assert len(watched.of(ev.Measured)) == 2 and weighted and all(weighted)


def test_epochs_end_with_a_measurement(watched: Watched, pictures: Path) -> None:
    watched.run(pictures, **SHARE | {"validation__every": 0}, training__max_steps=10, training__epochs=1)
    assert [one.step for one in watched.of(ev.Measured)] == [0, 4, 8, 10], "an epoch has the four pictures left"


CALM = {"embedding__learning_rate": 0.05, "hypernetwork__learning_rate": 0.01, "finetune__unet_lr": 1e-3}


@pytest.mark.parametrize(
    "kind", ["locon", "loha", "lokr", "pivotal", "difference", "embedding", "hypernetwork", "checkpoint"]
)
def test_every_kind_is_measured(watched: Watched, pictures: Path, tmp_path: Path, kind: str) -> None:
    changes: dict[str, Any] = SHARE | CALM | {"network__kind": kind, "training__gradient_checkpointing": True}
    if kind in ("embedding", "pivotal"):
        changes |= {"output__name": "zrk-a"} if kind == "embedding" else {"embedding__names": "zrk-a"}
    changes["training__max_steps"] = 2 if kind == "difference" else 1
    if kind == "difference":
        changes |= {"difference__before": str(draw_pictures(tmp_path / "before", side=72)), "difference__base_steps": 1}
    if kind == "checkpoint":
        changes |= {"optimizer__ema": True}
    view = watched.run(pictures, **changes)
    assert view.state == "finished", view.error
    told = watched.of(ev.Measured)
    assert [one.step for one in told] == ([1, 2] if kind == "difference" else [0, 1])
    assert len({one.held_out for one in told}) > 1
    folders = [watched.host.lora_folder(), watched.host.embedding_folder(), watched.host.hypernetwork_folder()]
    folders.append(watched.host.checkpoint_folder())
    found = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if "-best." in path.name]
    assert any(path.suffix in (".safetensors", ".pt") for path in found), found


RISING = {"optimizer__unet_lr": 0.5, "optimizer__text_encoder_lr": 0.0, "optimizer__max_gradient_norm": 0.0}
"""A rate at which every step makes it worse."""


def test_a_run_ends_early_and_the_best_is_kept(watched: Watched, pictures: Path) -> None:
    changes = SHARE | RISING | {"optimizer__ema": True, "optimizer__ema_decay": 0.5}
    view = watched.run(pictures, **changes, training__max_steps=30, validation__patience=3)
    told = watched.of(ev.Measured)
    best = min(told[1:], key=lambda one: one.held_out).step
    assert view.state == "finished" and view.step == best + 3 < 30
    assert view.log[-1].endswith(f"Ended at step {view.step}: the held-out loss has not fallen since step {best}.")
    assert watched.files == ["learned-best.safetensors", "learned.safetensors"]
    assert str(watched.of(ev.Finished)[0].notes[0]) in " ".join(view.log), "what they say is told"
    kept = watched.tensors("learned-best.safetensors")
    assert same(kept, weights_after(watched.host, pictures, best, **changes)), "the average, as the file has it"
    assert not same(kept, watched.tensors())
    assert (watched.host.lora_folder() / "learned-best.json").is_file(), "it has a card"
    start = {"network__continue_from": str(watched.host.lora_folder() / "learned-best.safetensors")}
    calm = {"optimizer__unet_lr": 1e-12, "optimizer__text_encoder_lr": 1e-12, "training__max_steps": 1}
    assert watched.run(pictures, **start, **calm, output__name="more").state == "finished"
    more = watched.tensors("more.safetensors")
    assert all(torch.allclose(more[name], kept[name], atol=1e-9) for name in kept), "it is gone on from as any file is"


def test_a_stop_during_a_measurement_ends_the_run_there(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FixedLoss.losses

    def losses(self: FixedLoss, *given: Any) -> torch.Tensor | None:
        if len(watched.of(ev.StepDone)) == 2:
            watched.runner.stop()
        return real(self, *given)

    monkeypatch.setattr(FixedLoss, "losses", losses)
    view = watched.run(pictures, **SHARE, training__max_steps=6)
    assert (view.state, view.step) == ("stopped", 2)
    assert [one.step for one in watched.of(ev.Measured)] == [0, 1]
    assert same(watched.tensors(), weights_after(watched.host, pictures, 2, **SHARE))


def test_a_best_file_that_is_there_is_taken_and_goes_with_the_others(watched: Watched, pictures: Path) -> None:
    assert watched.run(pictures, **SHARE).state == "finished"
    assert "learned-best.safetensors" in watched.files
    (watched.host.lora_folder() / "learned.safetensors").unlink()
    with pytest.raises(TrainerError, match=r"learned-best\.safetensors exists already"):
        watched.runner.start(make_job(pictures, **SHARE))
    old = (watched.host.lora_folder() / "learned-best.safetensors").read_bytes()
    watched.events.clear()
    assert watched.run(pictures, **SHARE, output__existing="replace").state == "finished"
    assert watched.files == [".trainer-trash", "learned-best.safetensors", "learned.safetensors"]
    trash = watched.host.lora_folder() / ".trainer-trash"
    assert [path.read_bytes() for path in trash.rglob("learned-best.safetensors*")] == [old]


@pytest.mark.parametrize("keeps_none", [{}, {**SHARE, "validation__keep_best": False}], ids=["no pictures", "no best"])
def test_the_name_of_a_best_file_is_free_where_none_is_kept(
    watched: Watched, pictures: Path, keeps_none: dict[str, Any]
) -> None:
    """It may be the finished result of a job that is called so."""
    other = watched.host.lora_folder() / "learned-best.safetensors"
    other.parent.mkdir()
    other.write_bytes(b"precious")
    assert taken_files(make_job(pictures, **keeps_none), watched.host) == []
    assert taken_files(make_job(pictures, **SHARE), watched.host) == [other]
    settled = settle(make_job(pictures, **keeps_none, output__existing="replace"), watched.host)
    assert settled.replaced == () and settled.job.output.name == "learned"


def test_without_the_option_no_best_file_is_written(watched: Watched, pictures: Path) -> None:
    watched.run(pictures, **SHARE, validation__keep_best=False)
    assert watched.files == ["learned.safetensors"]


def test_a_full_disk_does_not_end_the_run(watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_trainer.kinds.adapters import AdapterRecipe

    real = AdapterRecipe.save

    def full(self: AdapterRecipe, files: Any, facts: Any, *, overwrite: bool) -> None:
        if "-best" in files[0].name:
            raise SaveError("system.says", reason="No space left on device")
        real(self, files, facts, overwrite=overwrite)

    monkeypatch.setattr(AdapterRecipe, "save", full)
    view = watched.run(pictures, **SHARE)
    assert view.state == "finished" and watched.files == ["learned.safetensors"]
    assert any("Step 1 was not saved" in line for line in view.log)


def measured_as(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Let the held-out loss be one of these after another, of the start first; -1: there is no room for it."""
    left, real = list(values), FixedLoss.losses

    def losses(self: FixedLoss, *given: Any) -> torch.Tensor | None:
        found, value = real(self, *given), left.pop(0)
        if value < 0:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return None if found is None else torch.full_like(found, value)

    monkeypatch.setattr(FixedLoss, "losses", losses)


ALONE: dict[str, Any] = SHARE | {"validation__trained": False}


def test_without_room_to_measure_the_run_goes_on(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ALONE | {"optimizer__ema": True, "training__batch_size": 2}
    learned = weights_after(watched.host, pictures, 3, **changes)
    measured_as(monkeypatch, 0.5, -1, 0.4, -1)
    view = watched.run(pictures, **changes)
    assert (view.state, view.step) == ("finished", 3)
    assert [one.step for one in watched.of(ev.Measured)] == [0, 2]
    told = [line for line in view.log if "was not measured at step 1" in line]
    assert len(told) == 1 and "ran out of memory while held-out pictures were measured" in told[0]
    assert "training.batch_size (now 2)" in told[0] and "network.rank" not in told[0]
    assert same(watched.tensors(), learned)


def test_any_other_error_of_a_measurement_ends_the_run(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_as(monkeypatch, 0.5)  # and no value for the next
    view = watched.run(pictures, **ALONE)
    assert view.state == "failed" and view.step == 1


def test_nothing_is_measured_while_a_step_fails(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a step is told of when the next one's gradients are under way, also where these do not fit."""
    from functools import partial

    from lib_trainer.training import preparation

    model, trained = watched.host.model(), []
    predict = model.predict

    def full(*given: Any) -> Any:
        trained.extend([1] * torch.is_grad_enabled())
        if torch.is_grad_enabled() and len(trained) == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return predict(*given)

    monkeypatch.setattr(model, "predict", full)
    monkeypatch.setattr(preparation, "LoopOptions", partial(preparation.LoopOptions, late=True))
    view = watched.run(pictures, **ALONE)
    assert (view.state, view.step) == ("failed", 2) and "at step 3" in view.error
    assert [one.step for one in watched.of(ev.Measured)] == [0, 1]
    assert "learned-step00000002.safetensors" in watched.files


def test_a_best_of_several_files_that_broke_off_is_saved_again(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lib_trainer.kinds import embedding

    real, once = embedding.write_embedding, ["zrk-b-best"]

    def full(path: Path, *given: Any, **named: Any) -> None:
        if path.stem in once:
            once.remove(path.stem)
            raise SaveError("system.says", reason="No space left on device")
        real(path, *given, **named)

    monkeypatch.setattr(embedding, "write_embedding", full)
    measured_as(monkeypatch, 0.5, 0.4, 0.3)
    names = {"network__kind": "embedding", "embedding__names": "zrk-a, zrk-b", "output__name": "zrk-pair"}
    view = watched.run(pictures, **ALONE, **names, training__max_steps=2)
    assert view.state == "finished", view.error
    folder = watched.host.embedding_folder()
    for name in ("zrk-a", "zrk-b"):
        best, last = (read_embedding(folder / f"{name}{end}.safetensors") for end in ("-best", ""))
        assert torch.equal(best["te1"], last["te1"]), "of step 2, both"
    assert not any("Step 2 was not saved" in line for line in view.log)


def test_a_best_file_of_somebody_else_stays(watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = watched.host.lora_folder() / "learned-best.safetensors"
    watched.react = at_step(1, lambda: other.parent.mkdir(exist_ok=True) or other.write_bytes(b"other"))
    measured_as(monkeypatch, 0.5, 0.4, 0.3)
    view = watched.run(pictures, **ALONE, training__max_steps=2)
    assert view.state == "finished" and other.read_bytes() == b"other"
    assert [f"Step {step} was not saved" in " ".join(view.log) for step in (1, 2)] == [True, True]


def test_the_step_of_the_best_file_is_told_where_a_later_one_could_not_be_saved(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lib_trainer.kinds.adapters import AdapterRecipe

    real, saves = AdapterRecipe.save, []

    def full(self: AdapterRecipe, files: Any, facts: Any, *, overwrite: bool) -> None:
        saves.extend([1] * ("-best" in files[0].name))
        if "-best" in files[0].name and len(saves) == 2:
            raise SaveError("system.says", reason="No space left on device")
        real(self, files, facts, overwrite=overwrite)

    monkeypatch.setattr(AdapterRecipe, "save", full)
    measured_as(monkeypatch, 0.5, 0.4, 0.3, 0.6, 0.7)
    view = watched.run(pictures, **ALONE, training__max_steps=9, validation__patience=2)
    assert (view.state, view.step) == ("finished", 4)
    assert view.log[-1].endswith("since step 2. That step could not be saved: the best file is of step 1.")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"validation__patience": 3}, "ends a run by the loss of held-out pictures, and there are none"),
        ({"validation__pictures": "folder"}, "choose something else in validation.pictures"),
        (SHARE | {"validation__patience": 3, "training__max_steps": 4}, "is over before so many have brought nothing"),
        ({"validation__pictures": "folder", "validation__folder": "SET"}, "is one of the pictures that are trained"),
        ({"validation__pictures": "folder", "validation__folder": "SET/none"}, "none"),
    ],
)
def test_contradictions_are_refused(
    diffusers_model: Any, pictures: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    given = {
        name: str(value).replace("SET", str(pictures)) if value == "SET" or value == "SET/none" else value
        for name, value in changes.items()
    }
    with pytest.raises(TrainerError, match=sentence) as raised:
        prepare(make_job(pictures, **given), ModelHost(diffusers_model, tmp_path))
    assert all(problem.field.startswith("validation.") for problem in raised.value.problems)


def test_a_held_out_folder_without_a_readable_picture_fails_by_name(
    watched: Watched, pictures: Path, tmp_path: Path
) -> None:
    broken = draw_pictures(tmp_path / "broken", 1, side=300)
    path = broken / "0.png"
    path.write_bytes(path.read_bytes()[:400])
    view = watched.run(pictures, validation__pictures="folder", validation__folder=str(broken))
    assert view.state == "failed" and "0.png" in view.error


def test_the_course_is_part_of_the_state(diffusers_model: Any, pictures: Path, tmp_path: Path) -> None:
    from tests.training.test_state import Whole, encoded_of

    plan = prepare(make_job(pictures, **SHARE), ModelHost(diffusers_model, tmp_path))
    encoded = encoded_of(plan, diffusers_model)
    first, second = (Whole(plan, diffusers_model, encoded) for _ in range(2))
    first.state.course.put(Point(1, 0.25, None))
    second.state.load_state_dict(first.state.state_dict())
    assert second.state.course.best == Point(1, 0.25)


def test_a_preview_now_and_a_measurement_do_not_meet(watched: Watched, pictures: Path) -> None:
    watched.react = at_step(2, watched.runner.sample)
    changes = {"preview__prompt": "zork", "preview__steps": 2}
    assert watched.run(pictures, **SHARE, **changes).state == "finished"
    assert 2 in [one.step for one in watched.of(ev.PreviewMade)]
