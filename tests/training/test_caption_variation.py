"""`captions.*` in whole runs: what is encoded and kept, what a file says, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lib_trainer.config import from_values
from lib_trainer.host.held import HeldModel
from lib_trainer.kinds.captions import captions_vary
from lib_trainer.kinds.registry import kind_of
from lib_trainer.networks.formats.lora_file import read_lora
from lib_trainer.refusals import ConfigError
from lib_trainer.training.captions import LiveCaptions
from tests.support import job_values
from tests.training.test_refused_jobs import refused
from tests.training.watched import Watched

MANY = 24
"""Steps: more than there are captions, however their tags are put."""
VARIED: list[tuple[dict[str, Any], bool, dict[str, str]]] = [
    (
        {"captions__shuffle": True, "captions__keep_tokens": 2, "captions__tag_dropout": 0.25},
        True,
        {"ss_shuffle_caption": "True", "ss_keep_tokens": "3", "ss_caption_tag_dropout_rate": "0.25"},
    ),
    (
        {"captions__dropout": 0.5, "captions__dropout_epochs": 3, "captions__prefix": "seen:"},
        False,
        {"ss_caption_dropout_rate": "0.5", "ss_caption_dropout_every_n_epochs": "3"},
    ),
    ({}, False, {}),
]


@pytest.mark.parametrize(("changes", "endless", "told"), VARIED, ids=["tags", "whole", "as they are"])
def test_encoders_stay_where_captions_are_endless_and_files_say_what_was_done(
    watched: Watched,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    endless: bool,
    told: dict[str, str],
) -> None:
    """The text encoder learns nothing, so that what is known beforehand is encoded once and the encoder goes."""
    stayed: list[bool] = []
    place, texts = HeldModel.train, LiveCaptions.texts
    encoded: list[str] = []

    def train(self: HeldModel, *, text_encoder: bool) -> None:
        stayed.append(text_encoder)
        place(self, text_encoder=text_encoder)

    def seen(self: LiveCaptions, captions: Any) -> Any:
        encoded.extend(captions)
        return texts(self, captions)

    monkeypatch.setattr(HeldModel, "train", train)
    monkeypatch.setattr(LiveCaptions, "texts", seen)
    view = watched.run(pictures, optimizer__text_encoder_lr=0, training__max_steps=MANY, **changes)
    assert view.state == "finished", view.error
    assert set(stayed[1:]) <= {endless} and stayed[-1] is endless
    assert len(encoded) == len(set(encoded)) < MANY, "nothing is encoded twice, and captions come again"
    metadata = read_lora(watched.host.lora_folder() / "learned.safetensors").metadata
    names = ("ss_shuffle_caption", "ss_keep_tokens", "ss_caption_")
    assert {name: value for name, value in metadata.items() if name.startswith(names)} == told
    job = from_values(job_values(pictures, **changes))
    assert captions_vary(kind_of(job), job) is endless, "the forecast of memory knows it"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"captions__dropout": 1.0}, "captions.dropout = 1 would leave out every caption"),
    ({"captions__dropout_epochs": 1}, "captions.dropout_epochs = 1 would leave out every caption"),
    (
        {"captions__tag_dropout": 0.1, "captions__never_drop": "Red_hair, hat", "captions__only_drop": "red hair"},
        "captions.only_drop and captions.never_drop both name 'red hair'",
    ),
    ({"captions__tag_dropout": 0.1, "captions__only_drop": "/(/"}, "captions.only_drop"),
    ({"captions__warmup": 9, "training__max_steps": 9}, "captions.warmup = 9 leaves none of 9 steps with all tags"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_cannot_hold_is_refused(watched: Watched, pictures: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refused(watched, pictures, ConfigError, **changes)


def test_a_template_leaves_no_caption_to_vary(watched: Watched, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("a photo of [name]\n", encoding="utf-8")
    job = {"network__kind": "hypernetwork", "dataset__template": str(path), "captions__shuffle": True}
    said = refused(watched, pictures, ConfigError, **job)
    assert "captions.shuffle has no meaning beside dataset.template" in said


def test_marks_are_read_in_files_and_never_trained(watched: Watched, pictures: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pictures, tmp_path / "marked")
    for path in folder.rglob("*.txt"):
        path.write_text("a ||| b, c ||| d\n", encoding="utf-8")
    encoded: list[str] = []
    texts = LiveCaptions.texts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveCaptions, "texts", lambda self, asked: encoded.extend(asked) or texts(self, asked))
        view = watched.run(folder, training__max_steps=6, captions__shuffle=True)
    assert view.state == "finished", view.error
    assert set(encoded) - {""} == {"zork, a, b, c, d", "zork, a, c, b, d"}
    metadata = read_lora(watched.host.lora_folder() / "learned.safetensors").metadata
    assert "|||" not in metadata["ss_tag_frequency"]
