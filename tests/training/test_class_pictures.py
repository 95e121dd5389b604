"""Class pictures: what is drawn, what stays, and whose they are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from lib_trainer.dataset.scan import scan_folder
from lib_trainer.families.sd1 import SD1
from lib_trainer.families.sdxl import SDXL
from lib_trainer.kinds.registry import kind_of
from lib_trainer.ports import PreviewRequest
from lib_trainer.refusals import ModelError
from lib_trainer.training.prior import _draw, class_folder
from lib_trainer.work import events as ev
from tests.support import make_job
from tests.training.watched import Watched


def test_gaps_among_class_pictures_are_filled_and_nothing_of_the_users_is_replaced(
    watched: Watched, pictures: Path
) -> None:
    """Case 2: the number of usable pictures counts, and only names that are free are written to."""
    folder = watched.host.root / "class"
    changes = {
        "prior__class_prompt": "circle", "prior__class_folder": str(folder), "prior__class_pictures": 4,
        "preview__steps": 1, "training__max_steps": 1,
    }  # fmt: skip
    assert watched.run(pictures, **changes).error == ""
    drawn = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "class-00000.png").unlink()
    Image.new("RGB", (64, 64), "red").save(folder / "class-00003.PNG", "PNG")
    (folder / "class-00003.png").unlink()
    (folder / "class-00001.png").write_bytes(drawn["class-00001.png"][:300])
    mine = {name: (folder / name).read_bytes() for name in ("class-00003.PNG", "class-00001.png", "class-00002.png")}
    second = Watched(watched.host)
    view = second.run(pictures, **changes, output__name="again")
    assert (view.state, view.error) == ("finished", "")
    now = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(now) == [
        "class-00000.png",
        "class-00001.png",
        "class-00002.png",
        "class-00003.PNG",
        "class-00004.png",
    ]
    assert {name: now[name] for name in mine} == mine and now["class-00000.png"] == drawn["class-00000.png"]
    told = [str(message.text) for message in second.of(ev.Message)]
    assert any("class-00001.png cannot be read" in text and "does not count" in text for text in told)
    third = Watched(watched.host)
    third.run(pictures, **changes, output__name="third")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == now, "four are usable"


def test_class_pictures_are_drawn_as_the_job_says(tmp_path: Path) -> None:
    asked: list[PreviewRequest] = []

    def preview(request: PreviewRequest) -> Image.Image:
        asked.append(request)
        if len(asked) > 1:
            raise RuntimeError("no\n sampler")
        return Image.new("RGB", (64, 96))

    job = make_job(
        tmp_path, prior__class_prompt="a disc", prior__class_pictures=9, dataset__width=64, dataset__height=96,
        preview__steps=7, preview__cfg_scale=3.5, preview__sampler="LMS", training__seed=5, training__clip_skip=2,
        model__prediction="v", model__zero_terminal_snr="on",
    )  # fmt: skip
    host: Any = SimpleNamespace(preview=preview)
    _draw(job, host, tmp_path, 3)
    assert asked == [
        PreviewRequest(
            prompt="a disc", width=64, height=96, steps=7, cfg_scale=3.5, sampler="LMS", seed=8, clip_skip=2,
            prediction="v", zero_terminal_snr="on",
        )
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["class-00003.png"]
    with pytest.raises(ModelError, match=r"5 of 9.*no sampler"):
        _draw(job, host, tmp_path, 4)


def test_class_pictures_belong_to_the_model_and_not_to_its_name(watched: Watched, tmp_path: Path) -> None:
    """The review's 1a.9: another file under the same name has its own pictures, the same file under another has not."""

    def place(**facts: Any) -> Path:
        model = SimpleNamespace(**{"name": "a", "file": None, "file_hash": "", "family": SD1} | facts)
        model.vae_fingerprint = lambda: facts.get("vae", "v")
        model.own_parameters = list
        job = make_job(tmp_path, prior__class_prompt="x", training__clip_skip=facts.get("skip", 1))
        return class_folder(job, watched.host, model)  # type: ignore[arg-type]

    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    known = hashlib.sha256(b"weights").hexdigest()
    assert place(file_hash="1") != place(file_hash="2")
    assert place(file_hash="1", name="a") == place(file_hash="1", name="b")
    assert place(file=file) == place(file_hash=known), "the same once the host has computed it"
    assert place(file_hash="1") != place(file_hash="1", skip=2) != place(file_hash="1", skip=3)
    sdxl = {"file_hash": "1", "family": SDXL}
    assert place(**sdxl) == place(**sdxl, skip=2), "it is not heeded there"
    assert place(vae="1") != place(vae="2") != place(vae="2", name="b")


def test_the_picture_before_is_of_the_same_name_first(watched: Watched, pictures: Path, tmp_path: Path) -> None:
    root, before = tmp_path / "after", tmp_path / "before"
    for folder, names in ((root, ["a.png", "b.png"]), (before, ["a.jpg", "a.png", "b.webp"])):
        folder.mkdir()
        for name in names:
            Image.new("RGB", (64, 64)).save(folder / name)
    scan = scan_folder(root, trigger_word="t", repeats=1)
    job = make_job(root, network__kind="difference", difference__before=str(before))
    assert [sample.path.name for sample in kind_of(job).before(job, scan)] == ["a.png", "b.webp"]
