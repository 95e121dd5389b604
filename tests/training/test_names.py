"""Names of results: one rule for all, taken names, and that nothing is overwritten unless it was asked for."""

from __future__ import annotations

import base64
import errno
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

from lib_trainer import files
from lib_trainer.files import TRASH, plain
from lib_trainer.kinds.registry import kind_of
from lib_trainer.networks.formats.lora_file import read_lora, write_lora
from lib_trainer.refusals import ConfigError, SaveError
from lib_trainer.training.checks import check_names
from lib_trainer.training.names import FORBIDDEN, LONGEST, check_name, numbered, what_is_wrong
from lib_trainer.training.results import check_replaced, next_free_name, settle, taken_files
from lib_trainer.work import events as ev
from tests.support import make_job
from tests.training.test_kinds import drawn
from tests.training.test_refused_jobs import refused
from tests.training.watched import Watched

BAD_NAMES = [
    "", "  ", "a/b", "a\\b", "..", "../x", ".hidden", "a:b", "a<b", "a>b", "a|b", 'a"b', "a?", "a*", "a\n", "a\0",
    "end.", " a", "a ", "x" * 300, "ü" * 130, "con", "NUL", "Aux.v2", "com1", "LPT9.safe", "COM¹", "conin$", "prn ",
    "lr=1e-4", "a\u200bb", "a\u202eb", "a\ud800", "\u0301a", "x" * (LONGEST + 1),
]  # fmt: skip
GOOD_NAMES = [
    "saber (fate) 日本語", "learned_v2", "a.b-c", "1", "ünïcode", "vrak A", "it's [so] & more, 100%", "con-1",
    "company", "x" * LONGEST, "ü" * (LONGEST // 2), "-dash",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_is_refused_by_one_rule_in_every_field(watched: Watched, pictures: Path, name: str) -> None:
    for field, job in (
        ("output.name", {"output__name": name}),
        ("output.name", {"output__name": name, "network__kind": "checkpoint"}),
        ("output.name", {"output__name": name, "network__kind": "hypernetwork"}),
        ("embedding.names", {"network__kind": "embedding", "embedding__names": f"zrk-a, x{name}" if name else ""}),
    ):
        if field == "embedding.names" and what_is_wrong(f"x{name}".strip()) is None:
            continue
        if field == "embedding.names" and not name.strip():
            continue
        said = refused(watched, pictures, ConfigError, **job)
        assert said.startswith(field)
        assert said.endswith(" ".join(FORBIDDEN) + ".") or not name.strip()


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_that_are_file_names_everywhere(name: str, pictures: Path) -> None:
    check_name("output.name", name)
    job = make_job(pictures, output__name=name)
    check_names(job, kind_of(job))


def test_the_longest_name_has_room_for_its_steps(watched: Watched, pictures: Path) -> None:
    for name in ("x" * LONGEST, "ü" * (LONGEST // 2)):
        view = watched.run(pictures, output__name=name, training__max_steps=2, output__save_every=1)
        assert view.state == "finished", view.error
        again = Watched(watched.host)
        view = again.run(
            pictures, output__name=name, training__max_steps=2, output__save_every=1, output__existing="replace"
        )
        assert view.state == "finished", view.error
    assert len(watched.files) == 4 + 1


def test_unicode_forms_of_a_name_are_one(pictures: Path) -> None:
    job = make_job(pictures, output__name="e\u0301", embedding__names="u\u0308-a, b")
    assert (job.output.name, job.embedding.names) == ("é", "ü-a, b")


@pytest.mark.parametrize("names", ["zrk-a, zrk-b, zrk-a", "zrk-a, ZRK-A", "zrk-ß, zrk-SS"])
def test_two_embeddings_of_one_name(watched: Watched, pictures: Path, names: str) -> None:
    said = refused(watched, pictures, ConfigError, network__kind="embedding", embedding__names=names)
    assert said.startswith("embedding.names has a name ")


@pytest.mark.parametrize("name", ["zrk(a)b", "zrk[a]b", "zrk\\(a\\)b"])
def test_an_embedding_whose_name_no_prompt_can_hold(watched: Watched, pictures: Path, name: str) -> None:
    assert "embedding.names" in refused(
        watched, pictures, ConfigError, network__kind="embedding", embedding__names=name
    )


def put(path: Path, content: bytes = b"precious") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("there", "offered"),
    [
        (["learned-best", "learned-step00000001", "learned-step00000012", "learned"], "learned"),
        (["learned-best", "learned-step00000001", "learned-step00000012"], "learned-step00000012"),
        (["learned-best"], "learned-best"),
    ],
)
def test_what_is_offered_to_go_on_from_is_the_newest(
    watched: Watched, pictures: Path, there: list[str], offered: str
) -> None:
    for name in there:
        put(watched.host.lora_folder() / f"{name}.safetensors")
    job = make_job(pictures, validation__pictures="share")
    with pytest.raises(ConfigError) as raised:
        settle(job, watched.host)
    assert raised.value.taken is not None and raised.value.taken.stem == offered


TAKEN: list[tuple[dict[str, Any], str]] = [
    ({}, "lora/learned.safetensors"),
    ({}, "lora/LEARNED.safetensors"),
    ({}, "lora/learned.SAFETENSORS"),
    ({}, "lora/learned-step00000012.safetensors"),
    ({"output__name": "é"}, "lora/e\u0301.safetensors"),
    ({"network__kind": "hypernetwork"}, "hypernetworks/learned.pt"),
    ({"network__kind": "hypernetwork"}, "hypernetworks/Learned-step00000001.pt"),
    ({"network__kind": "checkpoint"}, "checkpoints/learned.safetensors"),
    ({"network__kind": "checkpoint"}, "checkpoints/learned.yaml"),
    ({"network__kind": "checkpoint", "finetune__difference_rank": 4}, "lora/learned.safetensors"),
    ({"network__kind": "difference", "difference__before": "x"}, "lora/learned.safetensors"),
    ({"network__kind": "embedding", "output__name": "zrk-a"}, "embeddings/zrk-a.safetensors"),
    ({"network__kind": "embedding", "embedding__names": "zrk-b, zrk-a"}, "embeddings/zrk-a.safetensors"),
    ({"network__kind": "embedding", "output__name": "zrk-a"}, "embeddings/deeper/Zrk-A.PT"),
    ({"network__kind": "embedding", "output__name": "zrk-a"}, "embeddings/zrk-a.bin"),
    ({"network__kind": "pivotal", "output__name": "zrk-a"}, "embeddings/zrk-a.bin"),
]


@pytest.mark.parametrize(("job", "file"), TAKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_a_name_that_is_taken(watched: Watched, pictures: Path, job: dict[str, Any], file: str) -> None:
    path = put(watched.host.root / file)
    with pytest.raises(ConfigError, match="exists already: choose another name") as raised:
        watched.runner.start(make_job(pictures, **job), watched)
    assert str(path) in str(raised.value) and path.read_bytes() == b"precious"
    assert taken_files(make_job(pictures, **job), watched.host) == [path]
    free = settle(make_job(pictures, **job, output__existing="number"), watched.host)
    assert free.job.output.name == f"{job.get('output__name', 'learned')}-2" and free.replaced == ()
    assert taken_files(free.job, watched.host) == [] and str(path) in str(free.note)
    if "deeper" in file or ".bin" in file or "SAFETENSORS" in file or "LEARNED" in file:
        return
    replaced = settle(make_job(pictures, **job, output__existing="replace"), watched.host)
    assert replaced.replaced == (path,) and replaced.job.output.name == job.get("output__name", "learned")


@pytest.mark.parametrize("file", ["embeddings/deeper/zrk-a.pt", "embeddings/zrk-a.bin"])
def test_what_this_job_would_not_write_is_never_replaced(watched: Watched, pictures: Path, file: str) -> None:
    path = put(watched.host.root / file)
    job = {"network__kind": "embedding", "output__name": "zrk-a", "output__existing": "replace"}
    assert str(path) in refused(watched, pictures, ConfigError, **job)


def test_previews_are_no_embeddings(watched: Watched, pictures: Path) -> None:
    """Case 12: a picture of that name is one only where it carries an embedding, under the name that it carries."""
    folder = watched.host.embedding_folder()
    folder.mkdir()
    for name in ("zrk-a.png", "zrk-a.preview.png", "zrk-a.webp"):
        Image.new("RGB", (64, 64), (200, 100, 50)).save(folder / name)
    job = make_job(pictures, network__kind="embedding", output__name="zrk-a")
    assert taken_files(job, watched.host) == []
    text = PngImagePlugin.PngInfo()
    held = {"name": "zrk-a", "string_to_param": {"*": {"TORCHTENSOR": [[0.0] * 32]}}}
    text.add_text("sd-ti-embedding", base64.b64encode(json.dumps(held).encode()).decode())
    Image.new("RGB", (8, 8)).save(folder / "other.png", pnginfo=text)
    assert taken_files(job, watched.host) == [folder / "other.png"]


def test_the_next_free_name(watched: Watched, pictures: Path) -> None:
    job = make_job(pictures)
    assert next_free_name(job, watched.host) == "learned-2"
    put(watched.host.lora_folder() / "Learned-2.safetensors")
    put(watched.host.lora_folder() / "learned-3-step00000001.safetensors")
    assert next_free_name(job, watched.host) == "learned-4"
    assert next_free_name(make_job(pictures, output__name="learned-3"), watched.host) == "learned-4"
    assert [numbered(name, 12) for name in ("a", "a-2", "a-2026", "-2", "a.")] == [
        "a-12",
        "a-12",
        "a-2026-12",
        "-2-12",
        "a-12",
    ]
    assert numbered("x" * LONGEST, 2) == "x" * (LONGEST - 2) + "-2", "as long as a name may be"
    long = numbered("ü" * (LONGEST // 2), 12)
    assert len(long.encode()) <= LONGEST and long.endswith("ü-12")
    words = make_job(pictures, network__kind="embedding", embedding__names="zrk-a, zrk-b", output__existing="number")
    put(watched.host.embedding_folder() / "zrk-b.safetensors")
    assert settle(words, watched.host).job.embedding.names == "zrk-a-2, zrk-b-2"


def test_a_run_under_the_next_free_name(watched: Watched, pictures: Path) -> None:
    first = watched.run(pictures, training__max_steps=1)
    assert first.output is not None
    before = first.output.read_bytes()
    second = Watched(watched.host)
    view = second.run(pictures, training__max_steps=1, output__existing="number")
    assert view.state == "finished" and view.name == "learned-2"
    assert watched.files == ["learned-2.safetensors", "learned.safetensors"]
    assert first.output.read_bytes() == before
    assert any("this run writes 'learned-2'" in str(event.text) for event in second.of(ev.Message))


def test_a_run_that_replaces(watched: Watched, pictures: Path) -> None:
    """Until the new file is there the old ones stay; then they lie in the trash, byte for byte."""
    folder = watched.host.lora_folder()
    names = ("learned.safetensors", "learned-step00000001.safetensors", "learned.json", "learned.preview.png")
    old = {name: put(folder / name, name.encode()) for name in names}
    other = put(folder / "learned-2.safetensors")
    watched.react = lambda event: (
        seen.append(sorted(p.name for p in folder.iterdir())) if isinstance(event, ev.StepDone) else None
    )
    seen: list[list[str]] = []
    view = watched.run(pictures, training__max_steps=2, output__existing="replace", output__save_every=1)
    assert view.state == "finished", view.error
    assert seen[0] == sorted([*old, other.name])
    kept = {path.name.removesuffix(".old"): path.read_bytes() for path in (folder / TRASH).rglob("*.old")}
    assert kept == {name: name.encode() for name in old}
    assert read_lora(old["learned.safetensors"]).metadata["ss_steps"] == "2"
    assert read_lora(old["learned-step00000001.safetensors"]).metadata["ss_steps"] == "1"
    assert other.read_bytes() == b"precious"
    assert "activation text" in json.loads(old["learned.json"].read_text("utf-8")), "the new file's own card"


def test_what_an_earlier_run_left_is_discarded(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 27: stopped, discarded, and the same name is free again; nothing else moves, and all of it or nothing."""
    folder = watched.host.lora_folder()
    names = ("learned.safetensors", "Learned-step00000001.safetensors", "learned.json")
    for name in names:
        put(folder / name, name.encode())
    others = [put(folder / name) for name in ("learned-2.safetensors", "learned.txt", "other.json")]
    job = make_job(pictures)

    def full(paths: Any) -> list[Path]:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SaveError, match="could not be moved to the trash"):
        patch.setattr("lib_trainer.training.results.to_trash", full)
        watched.runner.discard(job)
    assert not (folder / TRASH).exists()
    assert sorted(path.name for path in watched.runner.discard(job)) == sorted(names)
    kept = {path.name.removesuffix(".old"): path.read_bytes() for path in (folder / TRASH).rglob("*.old")}
    assert kept == {name: name.encode() for name in names}
    assert sorted(path for path in folder.iterdir() if path.is_file()) == sorted(others)
    assert watched.runner.discard(job) == []
    said: list[str] = []

    def react(event: ev.Event) -> None:
        if isinstance(event, ev.StepDone) and not said:
            with pytest.raises(ConfigError) as raised:
                watched.runner.discard(job)
            said.append(str(raised.value))

    watched.react = react
    assert watched.run(pictures, training__max_steps=1).state == "finished"
    assert "under way" in said[0]


def test_what_no_run_of_this_name_left_is_not_discarded(watched: Watched, pictures: Path) -> None:
    word = put(watched.host.embedding_folder() / "mine" / "zrk-a.pt")
    job = {"network__kind": "embedding", "output__name": "zrk-a"}
    with pytest.raises(ConfigError, match="lies elsewhere and is left alone"):
        watched.runner.discard(make_job(pictures, **job))
    assert word.is_file()
    model: Any = watched.host.model()
    where = {"output__folder": str(model.file.parent), "output__name": model.file.stem}
    with pytest.raises(ConfigError, match="is the checkpoint that is being trained"):
        watched.runner.discard(make_job(pictures, network__kind="checkpoint", **where))
    assert model.file.is_file()


def test_a_run_that_dies_early_replaces_nothing(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(watched.host.lora_folder() / "learned.safetensors")

    def broken(*arguments: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("lib_trainer.training.preparation.encode_pictures", broken)
    view = watched.run(pictures, output__existing="replace")
    assert view.state == "failed" and path.read_bytes() == b"precious" and watched.files == ["learned.safetensors"]


@pytest.mark.parametrize("best", [False, True], ids=["the end", "the best"])
def test_what_is_replaced_comes_back_where_its_successor_cannot_be_written(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch, best: bool
) -> None:
    """The disk is full: neither the old file nor what was learned is lost."""
    folder = watched.host.lora_folder()
    full = f"learned{'-best' if best else ''}.safetensors"
    old = {name: put(folder / name, name.encode()) for name in (full, "learned.json")}
    rename, replace = files._rename_without_replacing, os.replace

    def without_room(name: str, path: Path) -> None:
        if Path(path).name == full:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(name, path)

    monkeypatch.setattr(files, "_rename_without_replacing", without_room)
    monkeypatch.setattr(files.os, "replace", lambda name, path: without_room(name, path) or replace(name, path))
    seen: list[bool] = []
    watched.react = lambda event: seen.append(old[full].exists()) if isinstance(event, ev.StepDone) else None
    job = {"validation__pictures": "share", "validation__every": 1} if best else {}
    view = watched.run(pictures, **job, training__max_steps=2, output__existing="replace")
    assert seen == [True, True], "the best is measured, and not written, after each step"
    if best:
        assert view.state == "finished" and read_lora(folder / "learned.safetensors").metadata["ss_steps"] == "2"
        return
    assert view.state == "failed" and "No space left" in str(view.error)
    assert {name: path.read_bytes().decode() for name, path in old.items()} == {name: name for name in old}
    assert not list((folder / TRASH).rglob("*.old"))
    assert read_lora(folder / "learned-step00000002.safetensors").metadata["ss_steps"] == "2"


def test_the_checkpoint_that_is_trained_is_not_replaced(watched: Watched, pictures: Path) -> None:
    model: Any = watched.host.model()
    folder = str(model.file.parent)
    view = watched.run(
        pictures,
        network__kind="checkpoint",
        output__folder=folder,
        output__name=model.file.stem,
        output__existing="replace",
    )
    assert view.state == "failed" and "is the checkpoint that is being trained" in view.error
    assert model.file.is_file()


def test_the_yaml_of_the_checkpoint_that_is_trained_is_not_replaced(watched: Watched) -> None:
    model: Any = watched.host.model()
    with pytest.raises(ConfigError, match="describes the checkpoint that is being trained"):
        check_replaced([model.file.with_suffix(".yaml")], model)
    check_replaced([model.file.with_name("other.yaml")], model)


def test_the_yaml_of_a_checkpoint_that_stays_is_not_replaced(watched: Watched, pictures: Path) -> None:
    folder = watched.host.checkpoint_folder()
    yaml, other = put(folder / "learned.yaml"), put(folder / "learned.ckpt")
    job = {"network__kind": "checkpoint", "output__name": "learned", "output__existing": "replace"}
    view = watched.run(pictures, **job)
    assert view.state == "failed" and "describes" in view.error and "learned.ckpt too" in view.error
    with pytest.raises(ConfigError, match=r"learned\.ckpt too, which would lose it"):
        watched.runner.discard(make_job(pictures, **job))
    assert yaml.is_file()
    other.unlink()
    assert watched.runner.discard(make_job(pictures, **job)) == [yaml]


def test_a_new_yaml_does_not_describe_a_checkpoint_of_the_same_name(watched: Watched, pictures: Path) -> None:
    """A base with a .yaml hands it on; without one, only a model that predicts v gets one."""
    folder, base = watched.host.checkpoint_folder(), watched.host.checkpoint.with_suffix(".yaml")
    put(folder / "learned-best.safetensors")
    for name in ("Learned.CKPT", "learned-step00000100.pt"):
        other = put(folder / name)
        said = refused(watched, pictures, ConfigError, network__kind="checkpoint")
        assert said.startswith("output.name") and f"{name} too: choose another name" in said
        other.unlink()
    other = put(folder / "learned.ckpt")
    watched.runner.check(make_job(pictures, network__kind="lora"))
    own = put(other.with_suffix(".yaml"))
    with pytest.raises(ConfigError, match="exists already"):
        watched.runner.check(make_job(pictures, network__kind="checkpoint"))
    own.unlink()
    before = base.read_bytes()
    base.unlink()
    try:
        watched.runner.check(make_job(pictures, network__kind="checkpoint"))
        said = refused(watched, pictures, ConfigError, network__kind="checkpoint", model__prediction="v")
        assert "learned.ckpt too" in said
    finally:
        base.write_bytes(before)


def test_no_yaml_of_others_is_written_over(watched: Watched, pictures: Path) -> None:
    """One of an earlier run goes to the trash before the new one is there; what comes meanwhile stays."""
    folder, base = watched.host.checkpoint_folder(), watched.host.checkpoint.with_suffix(".yaml").read_bytes()
    old = put(folder / "learned-step00000001.yaml")
    watched.react = lambda event: put(folder / "learned.yaml") and None if isinstance(event, ev.StepDone) else None
    job = {"network__kind": "checkpoint", "finetune__unet_lr": 1e-4, "finetune__text_encoder_lr": 0.0}
    view = watched.run(pictures, **job, training__max_steps=2, output__save_every=1, output__existing="replace")
    assert view.state == "finished", view.error
    assert old.read_bytes() == base and (folder / "learned.yaml").read_bytes() == b"precious"
    assert [path.read_bytes() for path in (folder / TRASH).rglob("*.yaml.old")] == [b"precious"]


def test_going_on_from_a_file_under_its_own_name(watched: Watched, pictures: Path) -> None:
    watched.run(pictures, training__max_steps=1)
    path = watched.host.lora_folder() / "learned.safetensors"
    for existing, name in (("number", "learned-2"), ("replace", "learned")):
        again = Watched(watched.host)
        view = again.run(pictures, training__max_steps=1, output__existing=existing, network__continue_from=str(path))
        assert view.state == "finished" and view.name == name, view.error


def test_an_output_folder_that_can_be_none(watched: Watched, pictures: Path, tmp_path: Path) -> None:
    for folder, said in (("x" * 300, "is no path"), (f"{tmp_path}/a\0b", "has control characters")):
        assert said in refused(watched, pictures, ConfigError, output__folder=folder)


def test_prompts_find_files_of_every_legal_name(watched: Watched, pictures: Path) -> None:
    watched.run(pictures, optimizer__unet_lr=0.02, optimizer__text_encoder_lr=0.02, training__max_steps=1)
    whole = read_lora(watched.host.lora_folder() / "learned.safetensors")
    wanted = drawn(watched, "zork <lora:learned:1>")
    for name in (
        "it's [so] (v1.5), e\u0301.SAFETENSORS",
        ".hidden.safetensors",
        "  spaces  .Safetensors",
        "x" * 240 + ".pt",
    ):
        path = watched.host.lora_folder() / name
        if name.endswith(".pt"):
            torch.save(whole.tensors, path)
        else:
            write_lora(path, whole.tensors, whole.metadata, overwrite=False)
        call = unicodedata.normalize("NFC", path.stem)
        assert call in watched.host.loras()
        assert drawn(watched, f"zork <lora:{call}:1>") == wanted
        assert plain(name).startswith(plain(call))
