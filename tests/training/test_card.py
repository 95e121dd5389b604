"""What lies beside a result for the WebUI's cards."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from lib_trainer.config import from_values
from lib_trainer.families.sd1 import SD1
from lib_trainer.kinds.registry import kind_of
from lib_trainer.training.card import sidecars, write_card
from lib_trainer.training.place import Place
from tests.training.watched import Watched

COVER = Image.new("RGB", (700, 350), "red")


def job(**values: Any) -> Any:
    return from_values({"output.name": "zrk", **{name.replace("__", "."): value for name, value in values.items()}})


def test_a_card_has_the_words_and_the_picture(tmp_path: Path) -> None:
    result = tmp_path / "a.b.safetensors"
    write_card(result, ["zorb", "red hat"], SD1, COVER)
    facts, picture = sidecars(result)
    assert (facts.name, picture.name) == ("a.b.json", "a.b.preview.png")
    assert json.loads(facts.read_text("utf-8")) == {
        "sd version": "SD1", "activation text": "zorb, red hat", "preferred weight": 1.0,
    }  # fmt: skip
    with Image.open(picture) as image:
        assert image.size == (512, 256)


@pytest.mark.parametrize("there", ["zrk.png", "zrk.preview.jpg", "zrk.webp", "zrk.preview.png"])
def test_what_the_user_has_there_stays(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_bytes(b"mine")
    (tmp_path / "zrk.json").write_text("{}")
    write_card(tmp_path / "zrk.safetensors", ["zorb"], SD1, COVER)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([there, "zrk.json"])
    assert (tmp_path / there).read_bytes() == b"mine" and (tmp_path / "zrk.json").read_text() == "{}"


def test_nothing_is_written_where_there_is_nothing_to_say(tmp_path: Path) -> None:
    write_card(tmp_path / "zrk.safetensors", [], SD1, None)
    assert list(tmp_path.iterdir()) == []


def test_a_list_that_is_not_read_anew_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def added(path: Path) -> None:
        raise RuntimeError("no list")

    told: list[Any] = []
    host, model = SimpleNamespace(added=added), SimpleNamespace(device=torch.device("cpu"))
    Place(host, model, None, None, told.append).take_up(tmp_path / "zrk.safetensors")  # type: ignore[arg-type]
    (message,) = told
    assert message.level == "warning" and "zrk.safetensors is saved" in str(message.text)
    assert "no list" in str(message.text)
    (record,) = caplog.records
    assert "could not take up" in record.getMessage() and "zrk.safetensors" in record.getMessage()
    assert "RuntimeError: no list" in record.getMessage()


def test_a_card_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write_card(tmp_path / "file" / "zrk.safetensors", ["zorb"], SD1, COVER)


def test_the_words_of_each_kind() -> None:
    def trigger_words(job: Any) -> list[str]:
        return kind_of(job).trigger_words(job)

    assert trigger_words(job(dataset__trigger_word=" zorb ")) == ["zorb"]
    assert trigger_words(job()) == []
    several = job(network__kind="embedding", embedding__names="a, b", dataset__trigger_word="zorb")
    assert trigger_words(several) == ["b"], "the first one's name is its call"
    assert trigger_words(job(network__kind="pivotal", dataset__trigger_word="zorb")) == ["zrk", "zorb"]
    on_cards = {kind: job(network__kind=kind, dataset__trigger_word="z") for kind in ("checkpoint", "lora")}
    assert {kind: kind_of(one).card_words(one) for kind, one in on_cards.items()} == {"checkpoint": [], "lora": ["z"]}
    assert kind_of(several).card_words(several) == []


def test_a_run_leaves_a_card(watched: Watched, pictures: Path) -> None:
    changes = {
        "dataset__trigger_word": "zorb",
        "training__max_steps": 2,
        "preview__prompt": "zorb",
        "preview__every": 2,
    }
    view = watched.run(pictures, output__name="zrk", preview__steps=1, **changes)
    assert view.state == "finished"
    facts, picture = sidecars(watched.host.lora_folder() / "zrk.safetensors")
    assert json.loads(facts.read_text("utf-8"))["activation text"] == "zorb"
    assert picture.is_file()
