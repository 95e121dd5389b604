"""Whole runs through `TrainingDesk` on the standalone host that end well: finished, stopped, saved, previewed.

The `host` fixture checks after each of them that the model is untouched and draws what it drew.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_trainer.dataset.latent_cache import prune
from lib_trainer.networks.formats.lora_file import read_lora
from lib_trainer.ports import PreviewRequest
from lib_trainer.toolbox import desk as tools
from lib_trainer.training import loop, preparation, previewing, run
from lib_trainer.training.desk import process_desk
from lib_trainer.work import events as ev
from lib_trainer.work import runner
from tests.support import assert_same_training, draw_pictures, network_difference
from tests.training import averaging
from tests.training.watched import Watched, at_step, weights_after


def test_a_run_finishes(watched: Watched, pictures: Path) -> None:
    view = watched.run(pictures)
    assert (view.state, view.step, view.total_steps, view.error) == ("finished", 3, 3, "")
    assert view.output == watched.host.lora_folder() / "learned.safetensors"
    assert watched.files == ["learned.safetensors"]
    assert [type(event) for event in watched.events if not isinstance(event, (ev.Phase, ev.Message))] == [
        ev.Started, ev.StepDone, ev.StepDone, ev.StepDone, ev.Saved, ev.Finished,
    ]  # fmt: skip
    started, (saved,) = watched.of(ev.Started)[0], watched.of(ev.Saved)
    tensors = watched.tensors()
    assert started.trained_parameters == sum(t.numel() for name, t in tensors.items() if not name.endswith("alpha"))
    assert started.modules == {"unet": 48, "te1": 18}
    assert saved.final and saved.step == 3
    step = watched.of(ev.StepDone)[-1]
    assert step.learning_rates == {"unet": 1e-3, "te1": 1e-3}
    assert step.gradient_norm > 0 and step.seconds > 0 and step.memory_bytes > 1 << 20


def test_what_a_run_reads_stays_until_it_is_over(watched: Watched, pictures: Path) -> None:
    folder, removed = watched.host.cache_folder(), list[int]()
    watched.react = at_step(2, lambda: removed.append(prune(folder).pictures))
    assert watched.run(pictures, dataset__cache="disk", training__max_steps=8).state == "finished"
    assert removed == [0]
    assert prune(folder).pictures == 6


def test_what_the_file_says_of_itself(watched: Watched, pictures: Path) -> None:
    changes = {"preview__prompt": "zork", "preview__every": 2, "optimizer__text_encoder_lr": 0}
    watched.run(pictures, training__max_steps=2, **changes)
    metadata = read_lora(watched.host.lora_folder() / "learned.safetensors").metadata
    assert all(isinstance(value, str) for value in metadata.values())
    expected = {
        "ss_output_name": "learned",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_sd_model_name": "tiny.safetensors",
        "ss_clip_skip": "1",
        "ss_steps": "2",
        "ss_epoch": "1",
        "ss_seed": "5",
        "ss_unet_lr": "0.001",
        "ss_text_encoder_lr": "None",
        "ss_max_train_steps": "2",
        "ss_num_batches_per_epoch": "6",
        "ss_num_train_images": "6",
        "ss_num_reg_images": "0",
        "ss_resolution": "(64, 64)",
        "ss_mixed_precision": "no",
        "ss_network_args": '{"algo": "lora"}',
        "ss_new_sd_model_hash": watched.host.model().file_hash,
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "learned",
        "modelspec.trigger_phrase": "zork",
        "modelspec.prediction_type": "epsilon",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert float(metadata["ss_training_started_at"]) <= float(metadata["ss_training_finished_at"])
    tags = json.loads(metadata["ss_tag_frequency"])
    assert tags == {pictures.name: {"disc": 6, "saber_(fate)": 6} | {f"colour {i}": 1 for i in range(6)}}
    assert json.loads(metadata["ss_dataset_dirs"]) == {pictures.name: {"n_repeats": 1, "img_count": 6}}
    assert json.loads(metadata["ss_bucket_info"])["buckets"] == {"0": {"resolution": [64, 64], "count": 6}}
    assert metadata["ss_tag_frequency"][0] == metadata["ss_dataset_dirs"][0] == metadata["ss_bucket_info"][0] == "{"
    (cover,) = json.loads(metadata["ssmd_cover_images"])
    assert Image.open(io.BytesIO(base64.b64decode(cover))).size == (64, 64)


def test_stop_keeps_what_was_learned(watched: Watched, pictures: Path) -> None:
    watched.react = at_step(2, watched.runner.stop)
    view = watched.run(pictures, training__max_steps=50)
    assert (view.state, view.step) == ("stopped", 2)
    assert watched.events[-1] == ev.Finished(2, watched.host.lora_folder() / "learned.safetensors", stopped=True)
    assert watched.files == ["learned.safetensors"]
    watched.react = lambda event: None
    two, one = (weights_after(watched.host, pictures, steps) for steps in (2, 1))
    assert_same_training(watched.tensors(), two, apart=one)


@pytest.mark.parametrize("phase", ["Waiting for the queue", "Caching latents", "Caching captions"])
def test_stop_before_the_first_step(watched: Watched, pictures: Path, phase: str) -> None:
    def react(event: ev.Event) -> None:
        if isinstance(event, ev.Phase) and str(event.name) == phase:
            watched.runner.stop()

    watched.react = react
    view = watched.run(pictures, optimizer__text_encoder_lr=0)
    assert view.state == "stopped"
    assert watched.events[-1] == ev.Finished(0, None, stopped=True)
    assert watched.files == [] and not watched.of(ev.StepDone)


def test_the_hosts_own_interrupt_stops_for_good(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The WebUI forgets its Interrupt at the next task; a run that has seen it once must still end."""
    from lib_trainer.host.standalone.host import StandaloneLease

    answers = iter(["", "Stopped by the host's own button."])
    monkeypatch.setattr(StandaloneLease, "interrupted", property(lambda self: next(answers, "")))
    view = watched.run(pictures, training__max_steps=3)
    assert view.state == "stopped" and not watched.of(ev.StepDone)
    assert sum("Stopped by the host's own button." in line for line in view.log) == 1


def test_save_now_writes_and_goes_on(watched: Watched, pictures: Path) -> None:
    watched.react = at_step(1, watched.runner.save)
    assert watched.run(pictures, training__max_steps=2).state == "finished"
    assert watched.files == ["learned-step00000001.safetensors", "learned.safetensors"]
    assert [(s.step, s.final) for s in watched.of(ev.Saved)] == [(1, False), (2, True)]
    assert network_difference(watched.tensors(watched.files[0]), watched.tensors()) > 0
    metadata = read_lora(watched.host.lora_folder() / watched.files[0]).metadata
    assert (metadata["ss_steps"], metadata["ss_output_name"]) == ("1", "learned-step00000001")


def test_save_every(watched: Watched, pictures: Path) -> None:
    watched.run(pictures, training__max_steps=5, output__save_every=2)
    assert watched.files == [
        "learned-step00000002.safetensors",
        "learned-step00000004.safetensors",
        "learned.safetensors",
    ]


def test_previews_show_the_lora_and_change_nothing(watched: Watched, pictures: Path) -> None:
    from lib_trainer.host.standalone.sampling import draw
    from lib_trainer.networks.lora import LoraNetwork
    from lib_trainer.ports import PreviewRequest

    rates = {"optimizer__unet_lr": 0.02, "training__max_steps": 4}
    watched.run(pictures, preview__prompt="a zork", preview__every=2, preview__seed=3, preview__steps=2, **rates)
    made = watched.of(ev.PreviewMade)
    assert [(preview.step, preview.prompt, preview.image.size) for preview in made] == [
        (2, "a zork", (64, 64)),
        (4, "a zork", (64, 64)),
    ]
    model = watched.host.model()
    request = PreviewRequest("a zork", width=64, height=64, steps=2, seed=3)
    with torch.no_grad():
        plain = draw(model, request)
        with LoraNetwork.from_tensors(model.adaptable_modules(), watched.tensors()).applied():
            with_lora = draw(model, request)
    assert made[-1].image.tobytes() == with_lora.tobytes() != plain.tobytes()
    unwatched, shorter = (weights_after(watched.host, pictures, steps, optimizer__unet_lr=0.02) for steps in (4, 3))
    assert_same_training(watched.tensors(), unwatched, apart=shorter)


def test_the_peak_that_is_shown_is_that_of_the_steps(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preview may take more than any step; and what was taken before the first step is none of theirs."""
    peak = {"bytes": 5_000}
    own = watched.host.preview

    def drawn(request: PreviewRequest) -> Any:
        peak["bytes"] = max(peak["bytes"], 9_000)
        return own(request)

    def stepped(*args: Any) -> int:
        peak["bytes"] = max(peak["bytes"], 1_000)
        return peak["bytes"]

    monkeypatch.setattr(watched.host, "preview", drawn)
    for module in (run, previewing):
        monkeypatch.setattr(module, "forget_peak", lambda device: peak.update(bytes=0))
    monkeypatch.setattr(loop, "peak_bytes", stepped)
    watched.run(pictures, training__max_steps=3, preview__prompt="x", preview__every=1, preview__steps=1)
    assert len(watched.of(ev.PreviewMade)) == 3
    assert [done.memory_bytes for done in watched.of(ev.StepDone)] == [1_000] * 3


def test_sample_on_demand(watched: Watched, pictures: Path) -> None:
    watched.react = at_step(1, watched.runner.sample)
    watched.run(pictures, training__max_steps=2, training__precision="bf16", training__gradient_checkpointing=True)
    assert [(preview.step, preview.prompt) for preview in watched.of(ev.PreviewMade)] == [(1, "zork")]


def test_a_preview_that_raises_is_a_warning(watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(request: object) -> None:
        raise RuntimeError("no more memory for pictures")

    monkeypatch.setattr(watched.host, "preview", broken)
    view = watched.run(pictures, training__max_steps=3, preview__prompt="x", preview__every=1)
    assert (view.state, view.step) == ("finished", 3)
    warnings = [str(message.text) for message in watched.of(ev.Message) if message.level == "warning"]
    assert len(warnings) == 3 and "no more memory for pictures" in warnings[0]


@pytest.mark.parametrize("fails", [False, True])
def test_the_optimizers_state_is_gone_when_the_model_is_put_back(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """It is the largest thing beside the weights, and putting them back needs room on a card."""
    made: list[torch.optim.Optimizer] = []
    seen: list[tuple[int, int]] = []
    adamw, leave, step = preparation.make_optimizer, run.Session.__exit__, loop._step

    def kept(*args: Any) -> torch.optim.Optimizer:
        made.append(adamw(*args))
        return made[-1]

    def stepped(*args: Any) -> Any:
        done = step(*args)
        seen.append((len(made[0].state), -1))
        if fails and len(seen) == 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:83] DefaultCPUAllocator: can't allocate memory")
        return done

    def left(self: Any, *args: Any) -> None:
        seen.append((-1, len(made[0].state)))
        leave(self, *args)

    monkeypatch.setattr(preparation, "make_optimizer", kept)
    monkeypatch.setattr(run.Session, "__exit__", left)
    monkeypatch.setattr(loop, "_step", stepped)
    assert watched.run(pictures).state == ("failed" if fails else "finished")
    assert seen[0][0] > 0 and seen[-1] == (-1, 0)


def test_pictures_of_which_none_can_be_decoded_end_the_run(watched: Watched, tmp_path: Path) -> None:
    """Where others remain, those before a difference, say: an epoch without pictures would never end."""
    after, before = draw_pictures(tmp_path / "after"), draw_pictures(tmp_path / "before")
    for path in before.glob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    view = watched.run(after, network__kind="difference", difference__before=str(before))
    assert view.state == "failed" and "None of the 6 pictures can be read" in view.error


def test_previews_and_files_are_of_the_average_and_learning_does_not_feel_them(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a schedule-free optimizer, whose own way back from its average would change the run."""
    changes = {
        "optimizer__name": "by path",
        "optimizer__class_path": averaging.PATH,
        "optimizer__unet_lr": 0.5,
        "training__max_steps": 4,
    }
    assert watched.run(pictures, output__name="alone", **changes).state == "finished"
    seen: list[list[torch.Tensor]] = []
    made: list[Any] = []
    preview, make = type(watched.host).preview, preparation.make_optimizer

    def noted(host: Any, request: PreviewRequest) -> Any:
        (optimizer,) = made[-1:]
        seen.append([place.detach().clone() for place in optimizer.places])
        assert all(torch.equal(one, optimizer.state[place]["mean"]) for one, place in zip(seen[-1], optimizer.places))
        return preview(host, request)

    monkeypatch.setattr(type(watched.host), "preview", noted)
    monkeypatch.setattr(preparation, "make_optimizer", lambda *given: made.append(make(*given)) or made[-1])
    looking = {"preview__prompt": "a thing", "preview__every": 1, "output__save_every": 2}
    assert watched.run(pictures, output__name="watched", **changes, **looking).state == "finished"
    assert len(seen) == 4
    alone, whole = watched.tensors("alone.safetensors"), watched.tensors("watched.safetensors")
    assert alone.keys() == whole.keys() and all(torch.equal(alone[name], whole[name]) for name in alone)
    last = torch.cat([one.flatten() for one in seen[-1]])
    between = torch.cat([one.flatten() for one in seen[1]])
    for name, places in (("watched", last), ("watched-step00000002", between)):
        tensors = [one for key, one in watched.tensors(f"{name}.safetensors").items() if not key.endswith("alpha")]
        found = torch.cat([one.flatten() for one in tensors])
        torch.testing.assert_close(found.sort().values, places.sort().values, rtol=0, atol=0)


def test_a_picture_before_the_first_step(watched: Watched, pictures: Path) -> None:
    """It is what the checkpoint draws by itself, it changes nothing, and it stands for nothing that was learned."""
    assert watched.run(pictures, output__name="plain").state == "finished"
    changes = {"preview__prompt": "a disc", "preview__at_start": True, "preview__steps": 2, "preview__every": 0}
    drawn: list[PreviewRequest] = []
    real = watched.host.preview

    def preview(request: PreviewRequest) -> Image.Image:
        drawn.append(request)
        return real(request)

    watched.host.preview = preview  # type: ignore[method-assign]
    assert watched.run(pictures, **changes).state == "finished"
    (made,) = watched.of(ev.PreviewMade)
    assert made.step == 0 and len(drawn) == 1
    assert made.image.tobytes() == real(drawn[0]).tobytes(), "the bare checkpoint draws it"
    plain, seen = watched.tensors("plain.safetensors"), watched.tensors()
    assert all(torch.equal(plain[name], seen[name]) for name in plain)
    assert not list(watched.host.lora_folder().glob("*.preview.png")), "no card shows it"
    metadata = read_lora(watched.host.lora_folder() / "learned.safetensors").metadata
    assert "ssmd_cover_images" not in metadata


def test_all_desks_of_the_process_share_one_runner(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The WebUI's "Reload UI" makes its pages anew: they must find the run, and a tool must know of it."""
    monkeypatch.setattr(runner, "_kept", {})
    desk = process_desk(lambda: watched.host)
    assert process_desk(lambda: pytest.fail("a second host")) is desk
    assert runner.kept("training", lambda: pytest.fail("a second desk")) is desk
    assert tools.process_desk()._runner is desk.runner
