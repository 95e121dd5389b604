"""Words with rows for each text encoder: what learns, and the files of every family."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lib_trainer.config import from_values
from lib_trainer.families.family import Family
from lib_trainer.families.sd1 import SD1
from lib_trainer.families.sd2 import SD2
from lib_trainer.families.sdxl import SDXL
from lib_trainer.kinds.adapter_options import adapter_rates
from lib_trainer.kinds.adapters import rates_by_part
from lib_trainer.kinds.words import Words
from lib_trainer.networks.formats.embedding_file import read_embedding, write_embedding
from lib_trainer.networks.formats.lora_file import LoraFile, bundled
from lib_trainer.networks.formats.plain_pickle import read_plain
from lib_trainer.refusals import ModelError
from tests.encoders import texts_of
from tests.support import job_values

FACTS = {"ss_steps": "7", "ss_sd_model_name": "a.safetensors"}


def rows(family: Family, count: int = 3) -> dict[Any, torch.Tensor]:
    """Of the published widths."""
    generator = torch.Generator().manual_seed(0)
    return {one.part: torch.randn(count, one.width, generator=generator) for one in family.encoders}


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[part], other[part]) for part in one)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("family", [SD1, SD2, SDXL], ids=lambda one: one.word)
def test_an_embedding_comes_back_from_its_file(tmp_path: Path, family: Family, ending: str) -> None:
    path, own = tmp_path / f"zrk.{ending}", rows(family)
    write_embedding(path, own, FACTS, family, overwrite=False)
    assert same(read_embedding(path, family), own)


def test_files_of_sdxl_hold_two_tensors_and_nothing_else(tmp_path: Path) -> None:
    """The WebUI takes each value of such a file for a tensor (create_embedding_from_data)."""
    own = rows(SDXL)
    for ending, read in (("safetensors", load_file), ("pt", read_plain)):
        path = tmp_path / f"zrk.{ending}"
        write_embedding(path, own, FACTS, SDXL, overwrite=False)
        held = read(path)
        assert {name: tuple(one.shape) for name, one in held.items()} == {"clip_l": (3, 768), "clip_g": (3, 1280)}
        assert torch.equal(held["clip_l"], own["te1"]) and torch.equal(held["clip_g"], own["te2"])


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize(("there", "here"), list(itertools.permutations([SD1, SD2, SDXL], 2)), ids=lambda one: one.word)
def test_an_embedding_of_another_family_is_refused_by_both_names(
    tmp_path: Path, there: Family, here: Family, ending: str
) -> None:
    path = tmp_path / f"zrk.{ending}"
    write_embedding(path, rows(there), FACTS, there, overwrite=False)
    with pytest.raises(ModelError) as refused:
        read_embedding(path, here)
    said = str(refused.value)
    assert str(path) in said and there.word in said and here.word in said and "\n" not in said


def test_rows_of_different_counts_are_no_embedding(tmp_path: Path) -> None:
    path = tmp_path / "zrk.safetensors"
    write_embedding(path, rows(SDXL) | {"te2": rows(SDXL, 2)["te2"]}, FACTS, SDXL, overwrite=False)
    with pytest.raises(ModelError, match=r"zrk\.safetensors"):
        read_embedding(path, SDXL)


@pytest.mark.parametrize(
    ("family", "names"), [(SD1, ["string_to_param.*"]), (SD2, ["string_to_param.*"]), (SDXL, ["clip_l", "clip_g"])]
)
def test_words_that_a_lora_brings_along(family: Family, names: list[str]) -> None:
    own = {"zrk-a": rows(family), "zrk-b": rows(family, 1)}
    tensors = bundled(own, family, torch.float32)
    assert list(tensors) == [f"bundle_emb.{word}.{name}" for word in own for name in names]
    read = LoraFile(tensors, {}).embeddings(family)
    assert read.keys() == own.keys() and all(same(read[word], own[word]) for word in own)
    assert LoraFile(tensors, {}).embeddings(SD1 if family is SDXL else SDXL) == {}


def words_of(found: Any = None, **changes: Any) -> tuple[Words, Any]:
    texts = texts_of(SDXL, "transformers")
    model: Any = SimpleNamespace(tokens=lambda: texts, device=torch.device("cpu"), family=SDXL)
    job = from_values(job_values(Path(), network__kind="embedding", embedding__vectors=3, **changes))
    return Words(job, ["zrk-a", "zrk-b"], model, found or {}), texts


def test_both_encoders_start_from_the_text() -> None:
    words, texts = words_of(embedding__initial_text="red hat")
    known = texts.rows("red hat")
    for part, own in words.rows["zrk-a"].items():
        assert torch.equal(own, known[part][[0, 1, 0]])
    usual = texts.usual_norm()
    for part, own in words.rows["zrk-b"].items():
        torch.testing.assert_close(own.norm(dim=1), torch.full((3,), usual[part]))
    assert [tuple(one.shape) for one in words.group()["params"]] == [(3, 32), (3, 40)] * 2


def test_rows_of_each_encoder_move_to_its_own_norm() -> None:
    long = {"te1": torch.full((3, 32), 5.0), "te2": torch.full((3, 40), 7.0)}
    words, texts = words_of({"zrk-a": long}, embedding__norm_decay=1.0)
    words.after_step()
    for part, own in words.rows["zrk-a"].items():
        torch.testing.assert_close(own.norm(dim=1), torch.full((3,), texts.usual_norm()[part]))


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ModelError, match="768"):
        words_of({"zrk-a": {"te1": torch.zeros(3, 32), "te2": torch.zeros(3, 768)}})


def test_both_rows_learn() -> None:
    words, texts = words_of()
    with words.applied():
        texts.encode(["a zrk-a and a zrk-b"], 1, 1).context.square().mean().backward()
    for own in words.rows.values():
        assert all(one.grad is not None and bool((one.grad.norm(dim=1) > 0).all()) for one in own.values())


@pytest.mark.parametrize(
    ("rates", "family", "wanted"),
    [
        ((1e-4, 1e-5, -1), SD1, {"unet": 1e-4, "te1": 1e-5}),
        ((1e-4, 1e-5, 0.5), SD2, {"unet": 1e-4, "te1": 1e-5}),
        ((1e-4, 1e-5, -1), SDXL, {"unet": 1e-4, "te1": 1e-5, "te2": 1e-5}),
        ((1e-4, 0, 1e-6), SDXL, {"unet": 1e-4, "te1": 0, "te2": 1e-6}),
        ((1e-4, 1e-5, 0), SDXL, {"unet": 1e-4, "te1": 1e-5, "te2": 0}),
    ],
)
def test_each_text_encoder_has_its_rate(rates: tuple[float, ...], family: Family, wanted: dict[str, float]) -> None:
    unet, first, second = rates
    changes = {"optimizer__text_encoder_lr": first, "optimizer__text_encoder_2_lr": second}
    assert adapter_rates(from_values(job_values(Path(), optimizer__unet_lr=unet, **changes)), family) == wanted


@pytest.mark.parametrize(
    ("rates", "trained", "told"),
    [
        ({"unet": 1e-4, "te1": 1e-5}, "unet te1", 1e-5),
        ({"unet": 1e-4, "te1": 1e-5}, "unet", None),
        ({"unet": 1e-4, "te1": 1e-5, "te2": 1e-5}, "unet te1 te2", 1e-5),
        ({"unet": 1e-4, "te1": 1e-5, "te2": 1e-6}, "unet te1 te2", [1e-5, 1e-6]),
        ({"unet": 1e-4, "te1": 0.0, "te2": 1e-6}, "unet te2", [0.0, 1e-6]),
        ({"unet": 1e-4, "te1": 0.0, "te2": 0.0}, "unet", None),
    ],
)
def test_metadata_says_the_rate_of_each(rates: dict[Any, float], trained: str, told: Any) -> None:
    recipe: Any = SimpleNamespace(modules=lambda: dict.fromkeys(trained.split(), 3))
    said = rates_by_part(rates, recipe)
    assert said == {"ss_learning_rate": 1e-4, "ss_unet_lr": 1e-4, "ss_text_encoder_lr": told}
