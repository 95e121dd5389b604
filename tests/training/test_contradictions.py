"""Options that contradict each other: refused by name with the reason, warned of, or told to have no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_trainer.config import field_specs, from_values
from lib_trainer.families.known import FAMILIES, SD1, SDXL
from lib_trainer.families.prediction import Predicts
from lib_trainer.refusals import Sentence, TrainerError
from lib_trainer.training.checks import idle_options
from lib_trainer.training.plan import Plan, prepare
from tests.support import draw_pictures
from tests.ui.fakes import FakeHost

V_TO_NOISE = Predicts("v", True, Sentence("prediction.by_family", family="SD 2.x"))


def plan(root: Path, host: FakeHost | None = None, **values: Any) -> Plan:
    if not (root / "set").exists():
        draw_pictures(root / "set", count=3)
    given = {"dataset.folder": str(root / "set"), "dataset.trigger_word": "zorb", "output.name": "x"} | values
    return prepare(from_values(given), host or FakeHost(root))


def refused(root: Path, **values: Any) -> dict[str, str]:
    """{field: sentence}"""
    with pytest.raises(TrainerError) as error:
        plan(root, **values)
    return {problem.field: str(problem.sentence) for problem in error.value.problems}


def test_a_class_prompt_must_not_call_what_is_learned(tmp_path: Path) -> None:
    told = refused(tmp_path, **{"prior.class_prompt": "photo of a Zorb dog"})
    assert told == {
        "prior.class_prompt": "prior.class_prompt has 'zorb', which calls what is to be learned: say only what it is "
        "one of, as in 'photo of a dog'."
    }
    assert plan(tmp_path, **{"prior.class_prompt": "photo of a zorba dog"}).steps
    told = refused(tmp_path, **{"network.kind": "pivotal", "embedding.names": "quux", "prior.class_prompt": "a quux"})
    assert "prior.class_prompt" in told


def test_there_are_no_more_cycles_than_steps_and_all_is_told_at_once(tmp_path: Path) -> None:
    values = {"optimizer.schedule": "cosine_with_restarts", "training.max_steps": 20}
    told = refused(tmp_path, **values, **{"optimizer.cycles": 21, "captions.warmup": 20})
    assert told["optimizer.cycles"] == (
        "optimizer.cycles = 21 is more than the run's 20 steps: lower it, or lengthen the run."
    )
    assert set(told) == {"optimizer.cycles", "captions.warmup"}
    assert plan(tmp_path, **values, **{"optimizer.cycles": 20}).steps == 20


@pytest.mark.parametrize(
    ("optimizer", "rate", "warned"),
    [("AdamW", 1.0, True), ("AdamW", 0.01, False), ("SGDNesterov", 1.0, False), ("Adafactor", 0.5, True)],
)
def test_a_rate_for_an_optimizer_that_finds_it_is_warned_of_with_others(
    tmp_path: Path, optimizer: str, rate: float, warned: bool
) -> None:
    found = plan(tmp_path, **{"optimizer.name": optimizer, "optimizer.unet_lr": rate})
    codes = [warning.code for warning in found.warnings]
    assert codes == (["rates.as_a_factor"] if warned else [])


def test_a_noise_offset_is_warned_of_where_pictures_end_as_noise(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, predicted=V_TO_NOISE)
    assert [one.code for one in plan(tmp_path, host, **{"noise.offset": 0.1}).warnings] == ["noise.offset_at_the_end"]
    assert plan(tmp_path, host).warnings == ()
    assert plan(tmp_path, **{"noise.offset": 0.1}).warnings == ()


def test_what_has_no_effect_with_the_others_is_told_of(tmp_path: Path) -> None:
    found = plan(tmp_path, **{"noise.offset_adaptive": 0.1, "optimizer.ema_decay": 0.9, "hypernetwork.sizes": "320"})
    told = [str(note) for note in found.notes if note.code == "option.unread"]
    assert told == ["Without effect, as the others are set: noise.offset_adaptive, optimizer.ema_decay."]
    found = plan(tmp_path, **{"noise.offset_adaptive": 0.1, "noise.offset": 0.1})
    assert [note for note in found.notes if note.code == "option.unread"] == []


def test_what_has_no_effect_on_the_model_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(**values: Any) -> list[str]:
        return [str(note) for note in plan(tmp_path, **values).notes if note.code == "option.unread_by_model"]

    values = {"inpainting.count": 9, "optimizer.text_encoder_2_lr": 1e-4, "training.clip_skip": 2}
    assert told(**values) == ["Without effect on the loaded model: inpainting.count, optimizer.text_encoder_2_lr."]
    assert told() == []
    monkeypatch.setattr(FakeHost, "inpaints", lambda self: True)
    assert told(**{"inpainting.count": 9}) == []


def test_options_that_a_family_does_not_read() -> None:
    second = {"optimizer.text_encoder_2_lr", "finetune.text_encoder_2_lr", "dataset.second_captions"}
    holes = {"inpainting.holes", "inpainting.count"}
    assert set(idle_options(SD1)) == second | holes
    assert set(idle_options(SD1, inpaints=True)) == second
    assert set(idle_options(SDXL)) == {"training.clip_skip"} | holes
    for path, spec in field_specs().items():
        for family in FAMILIES:
            assert not spec.family or isinstance(getattr(family, spec.family), bool), path
