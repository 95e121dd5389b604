"""A job is resolved once, without a model: what a plan says is what the run then does."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer.families.family import Family
from lib_trainer.families.known import DEFAULT, SDXL
from lib_trainer.families.prediction import Predicts
from lib_trainer.kinds import captions
from lib_trainer.ports import HeldPart
from lib_trainer.refusals import JobErrors, Sentence
from lib_trainer.training import plan as plans
from lib_trainer.training.plan import prepare
from lib_trainer.work import events as ev
from tests.support import ModelHost, draw_pictures, make_job
from tests.training.test_metadata import metadata_of
from tests.training.watched import Watched

TWO = {"network__kind": "embedding", "embedding__names": "zrk-a, zrk-b", "embedding__format": "pt"}
FILES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["lora/learned.safetensors"]),
    (TWO, ["embeddings/zrk-a.pt", "embeddings/zrk-b.pt"]),
    ({"network__kind": "hypernetwork"}, ["hypernetworks/learned.pt"]),
    (
        {"network__kind": "checkpoint", "finetune__difference_rank": 2},
        ["checkpoints/learned.safetensors", "checkpoints/learned.yaml", "lora/learned.safetensors"],
    ),
]


def modelless(tmp_path: Path, family: Family = DEFAULT) -> Any:
    host = ModelHost(None, tmp_path)  # type: ignore[arg-type]
    host.family = lambda: family  # type: ignore[method-assign]
    host.parts = lambda: {"unet": HeldPart(1, torch.float32)}  # type: ignore[method-assign]
    predicts = Predicts("epsilon", False, Sentence("prediction.by_yaml"))
    host.predicts = lambda: predicts  # type: ignore[method-assign]
    return host


@pytest.mark.parametrize(("changes", "files"), FILES, ids=lambda value: "")
def test_what_a_run_writes_is_known_before(
    tmp_path: Path, pictures: Path, changes: dict[str, Any], files: list[str]
) -> None:
    plan = prepare(make_job(pictures, **changes), modelless(tmp_path))
    assert [path.relative_to(tmp_path).as_posix() for path in plan.outputs.all] == files
    steps = [path.name for path in plan.outputs.of_step(7).all]
    assert steps == [f"{path.stem}-step00000007{path.suffix}" for path in plan.outputs.results]
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.steps = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        (SDXL, {}, ["64 × 64 pixels are few for SDXL"]),
        (SDXL, {"dataset__width": 640, "dataset__height": 960}, []),
        (SDXL, {"dataset__width": 1024, "dataset__height": 1024, "training__clip_skip": 2}, ["has no effect on SDXL"]),
        (DEFAULT, {"training__clip_skip": 2}, []),
    ],
)
def test_what_the_family_makes_of_the_job_is_told(
    tmp_path: Path, pictures: Path, family: Family, changes: dict[str, Any], told: list[str]
) -> None:
    warnings = [str(one) for one in prepare(make_job(pictures, **changes), modelless(tmp_path, family)).warnings]
    assert len(warnings) == len(told)
    assert all(part in whole for part, whole in zip(told, warnings, strict=True))


def test_a_plan_reads_each_thing_once_and_names_it(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    for module, name in ((plans, "scan_folder"), (captions, "read_template")):
        own = getattr(module, name)

        def counted(*given: Any, _own: Any = own, _name: str = name, **options: Any) -> Any:
            read[_name] += 1
            return _own(*given, **options)

        monkeypatch.setattr(module, name, counted)
    template = tmp_path / "t.txt"
    template.write_text("a photo of [name]\n", encoding="utf-8")
    job = make_job(pictures, **TWO, dataset__template=str(template))
    plan = prepare(job, modelless(tmp_path))
    assert read == {"scan_folder": 1, "read_template": 1}
    assert plan.captions.names == ("zrk-a", "zrk-b") and plan.captions.lines == ("a photo of [name]",)
    assert set(plan.reads) == set(pictures.glob("*.png"))
    before = draw_pictures(tmp_path / "before")
    pair = prepare(make_job(pictures, network__kind="difference", difference__before=str(before)), modelless(tmp_path))
    assert set(pair.reads) == set(pictures.glob("*.png")) | set(before.glob("*.png"))
    assert {sample.role for sample in pair.before} == {"before"}


@pytest.mark.parametrize(
    "changes",
    [
        {"training__epochs": 3, "training__batch_size": 4, "training__max_steps": 0},
        {"training__epochs": 1, "training__max_steps": 0, "prior__class_prompt": "disc", "prior__class_pictures": 2},
        {"training__epochs": 3, "training__max_steps": 0, "training__batch_size": 4, "augment__mirror": True}
        | {"buckets__enabled": True, "buckets__low": 64, "buckets__resolutions": "128", "dataset__repeats": 1},
    ],
    ids=["epochs", "class pictures", "buckets"],
)
def test_the_steps_that_are_foreseen_are_done(watched: Watched, pictures: Path, changes: dict[str, Any]) -> None:
    foreseen = prepare(make_job(pictures, **changes), watched.host).steps
    watched.run(pictures, **changes)
    assert [event.total_steps for event in watched.of(ev.Started)] == [foreseen]
    assert len(watched.of(ev.StepDone)) == foreseen > 3


def test_a_file_says_how_its_pictures_were_made(watched: Watched, pictures: Path, tmp_path: Path) -> None:
    """And what is off is not mentioned, so that files are what they were before these options."""
    pictures = shutil.copytree(pictures, tmp_path / "set")
    draw_pictures(pictures, 1, size=(200, 64))
    named = ("ss_enable_bucket", "ss_bucket_no_upscale", "ss_max_bucket_reso", "ss_flip_aug", "ss_random_crop")
    watched.run(pictures, training__max_steps=1)
    folder = watched.host.lora_folder()
    assert not set(named) & set(metadata_of(folder / "learned.safetensors"))
    on = {"buckets__enabled": True, "buckets__low": 64, "buckets__enlarge": False, "augment__mirror": True}
    watched.run(pictures, training__max_steps=1, dataset__width=128, dataset__height=128, output__name="second", **on)
    said = metadata_of(folder / "second.safetensors")
    assert [said.get(name) for name in named] == ["True", "True", "2048", "True", None]
    buckets = json.loads(said["ss_bucket_info"])["buckets"].values()
    assert sorted((tuple(one["resolution"]), one["count"]) for one in buckets) == [((64, 64), 5), ((192, 64), 1)]


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("1girl, eyepatch, english text, left hand up", "(english text, eyepatch, left hand up)"),
        ("1girl, single_earring, asymmetrical hair", "(asymmetrical hair, single earring)"),
        ("1girl, leftovers, context", ""),
    ],
)
def test_mirroring_is_warned_of_where_captions_name_a_side(
    tmp_path: Path, pictures: Path, caption: str, told: str
) -> None:
    pictures = shutil.copytree(pictures, tmp_path / "set")
    (pictures / "0.txt").write_text(caption, encoding="utf-8")
    for mirror in (True, False):
        warnings = prepare(make_job(pictures, augment__mirror=mirror), modelless(tmp_path)).warnings
        said = [str(one) for one in warnings if str(one).startswith("augment.mirror")]
        assert len(said) == bool(mirror and told) and all(told in one for one in said)


def test_all_that_is_wrong_with_a_kind_is_told(tmp_path: Path, pictures: Path) -> None:
    job = make_job(
        pictures,
        network__kind="pivotal",
        embedding__names="zrk.a, zrk-(b)",
        embedding__learning_rate=0,
        optimizer__unet_lr=0,
        optimizer__text_encoder_lr=0,
        blocks__ranks="middle=0.5",
    )
    with pytest.raises(JobErrors) as told:
        prepare(job, modelless(tmp_path))
    fields = [problem.field for problem in told.value.problems]
    assert sorted(fields) == sorted(
        ["optimizer.unet_lr", "blocks.ranks", "embedding.learning_rate", "embedding.names", "embedding.names"]
    )
