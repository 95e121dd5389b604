"""Jobs of each kind that are refused before any model is touched, with a sentence that names the field or file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lib_trainer.families.known import FAMILIES
from lib_trainer.refusals import ConfigError, DatasetError, ModelError, TrainerError
from tests.training.test_refused_jobs import refused
from tests.training.watched import Watched

EMBEDDING = {"network__kind": "embedding", "output__name": "zrk-new"}
HYPERNETWORK = {"network__kind": "hypernetwork"}
CHECKPOINT = {"network__kind": "checkpoint"}
FIELDS: list[tuple[dict[str, Any], type[TrainerError], str]] = [
    (EMBEDDING | {"output__name": "cat"}, ConfigError, "'cat' is a word of the model's vocabulary"),
    (EMBEDDING | {"output__name": "zrk-style!"}, ConfigError, "'zrk-style!' begins or ends with a sign"),
    (EMBEDDING | {"embedding__vectors": 76}, ConfigError, "embedding.vectors = 76"),
    (
        EMBEDDING | {"embedding__initial_text": "a very long text here"},
        ConfigError,
        "has 5 tokens and there are 2 vectors",
    ),
    (EMBEDDING | {"embedding__initial_text": "a; b", "embedding__names": "zrk-a, zrk-b, zrk-a"}, ConfigError, "twice"),
    (EMBEDDING | {"embedding__learning_rate": 0}, ConfigError, "embedding.learning_rate = 0"),
    (EMBEDDING | {"dataset__template": "nowhere"}, ConfigError, "dataset.template = 'nowhere' is neither a file"),
    (HYPERNETWORK | {"hypernetwork__layer_structure": "2, 1"}, ConfigError, "must begin and end with 1"),
    (HYPERNETWORK | {"hypernetwork__layer_structure": "1, 2"}, ConfigError, "must begin and end with 1"),
    (
        HYPERNETWORK | {"hypernetwork__layer_structure": "1, x, 1"},
        ConfigError,
        "hypernetwork.layer_structure = '1, x, 1'",
    ),
    (HYPERNETWORK | {"hypernetwork__layer_structure": "1, -2, 1"}, ConfigError, "hypernetwork.layer_structure"),
    (HYPERNETWORK | {"hypernetwork__dropout_structure": "0, 1, 0"}, ConfigError, "hypernetwork.dropout_structure"),
    (HYPERNETWORK | {"hypernetwork__dropout_structure": "0, 0"}, ConfigError, "it must be 3 numbers"),
    (HYPERNETWORK | {"hypernetwork__sizes": "7.5"}, ConfigError, "hypernetwork.sizes = '7.5'"),
    (CHECKPOINT | {"finetune__unet_lr": 0}, ConfigError, "finetune.unet_lr and finetune.text_encoder_lr are both 0"),
    ({"network__kind": "difference"}, ConfigError, "difference.before is empty"),
    ({"network__kind": "difference", "difference__before": "/nowhere"}, ConfigError, "'/nowhere' does not exist"),
    ({"blocks__rates": "input_12=1"}, ConfigError, "blocks.rates: 'input_12=1' names a block that is not there"),
    ({"blocks__rates": "middle"}, ConfigError, "blocks.rates: 'middle' is not understood"),
    ({"blocks__rates": "middle=-1"}, ConfigError, "blocks.rates: 'middle=-1' is below 0"),
    ({"blocks__ranks": "middle=-4"}, ConfigError, "blocks.ranks: 'middle=-4' is below 0"),
    ({"dataset__trigger_word": "zork |||"}, ConfigError, "dataset.trigger_word holds the keep-token separator |||"),
    ({"prior__class_prompt": "a cat ||| x"}, ConfigError, "prior.class_prompt holds the keep-token separator |||"),
    ({"blocks__ranks": "middle=0.5"}, ConfigError, "blocks.ranks: middle = 0.5 is not a whole number"),
    ({"network__factor": 0, "network__kind": "lokr"}, ConfigError, "network.factor = 0"),
    ({"prior__class_folder": "/somewhere"}, ConfigError, "prior.class_prompt is empty"),
    (
        {"network__kind": "pivotal", "embedding__names": "zrk.x"},
        ConfigError,
        "embedding.names = 'zrk.x' has a dot, which ends a name inside a LoRA file",
    ),
]


@pytest.mark.parametrize(("changes", "kind", "said"), FIELDS, ids=lambda value: value if isinstance(value, str) else "")
def test_fields_that_cannot_be(
    watched: Watched, pictures: Path, changes: dict[str, Any], kind: type[TrainerError], said: str
) -> None:
    assert said in refused(watched, pictures, kind, **changes)


def test_a_template_without_the_name_teaches_nothing(watched: Watched, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a photo of a thing")
    said = refused(watched, pictures, ConfigError, **EMBEDDING, dataset__template=str(path))
    assert "has no [name] that stands alone" in said
    path.write_text("a photo of [name]\n[filewords]\ntwo [name]s")
    said = refused(watched, pictures, ConfigError, **EMBEDDING, dataset__template=str(path))
    assert "'two [name]s'" in said
    path.write_text(" \n\n")
    assert "is empty" in refused(watched, pictures, ConfigError, **EMBEDDING, dataset__template=str(path))


def test_a_partner_is_missing(watched: Watched, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    said = refused(
        watched, pictures, DatasetError, network__kind="difference", difference__before=str(tmp_path / "before")
    )
    assert "holds no partner of 0.png" in said


def test_a_hypernetwork_for_a_family_that_has_none(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xl = next(family for family in FAMILIES if not family.hypernetworks)
    monkeypatch.setattr(watched.host, "family", lambda: xl)
    said = refused(watched, pictures, ConfigError, **HYPERNETWORK)
    assert "network.kind: hosts cannot use a hypernetwork with SDXL: choose another kind" in said


def test_a_lora_of_another_family_is_told_by_its_widths_alone(watched: Watched, pictures: Path, tmp_path: Path) -> None:
    key, path = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", tmp_path / "v2.safetensors"
    save_file({f"{key}.lora_down.weight": torch.zeros(4, 1024), f"{key}.lora_up.weight": torch.zeros(64, 4)}, str(path))
    said = refused(watched, pictures, ConfigError, network__continue_from=str(path))
    assert "was made for SD 2.x: choose one for SD 1.x" in said


def lora_tensors(kind: str) -> dict[str, torch.Tensor]:
    key = "lora_unet_mid_block_attentions_0_proj_in"
    if kind == "loha":
        return {f"{key}.hada_{name}": torch.zeros(4, 4) for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    tensors = {f"{key}.lora_down.weight": torch.zeros(4, 64), f"{key}.lora_up.weight": torch.zeros(64, 4)}
    return tensors | ({f"{key}.dora_scale": torch.ones(1, 64)} if kind == "dora" else {})


@pytest.mark.parametrize(
    ("kind", "metadata", "job", "said"),
    [
        ("lora", {"ss_base_model_version": "sdxl_base_v1-0"}, {}, "was made for SDXL"),
        ("lora", {"ss_v2": "True"}, {}, "was made for SD 2.x"),
        ("loha", {}, {}, "is of the kind loha, and network.kind is lora"),
        ("lora", {}, {"network__kind": "lokr"}, "is of the kind lora, and network.kind is lokr"),
        ("dora", {}, {}, "is a DoRA: turn network.dora on"),
        ("lora", {}, {"network__dora": True}, "is not a DoRA: turn network.dora off"),
    ],
)
def test_a_file_to_continue_from_that_is_another(
    watched: Watched,
    pictures: Path,
    tmp_path: Path,
    kind: str,
    metadata: dict[str, str],
    job: dict[str, Any],
    said: str,
) -> None:
    path = tmp_path / "other.safetensors"
    save_file(lora_tensors(kind), str(path), metadata)
    assert said in refused(watched, pictures, ConfigError, network__continue_from=str(path), **job)


@pytest.mark.parametrize("kind", ["lora", "embedding", "hypernetwork", "checkpoint", "pivotal"])
def test_a_file_to_continue_from_that_is_broken_or_gone(
    watched: Watched, pictures: Path, tmp_path: Path, kind: str
) -> None:
    ending = ".pt" if kind in ("hypernetwork", "embedding") else ".safetensors"
    path, job = tmp_path / f"broken{ending}", {"network__kind": kind, "output__name": "zrk-new"}
    assert "There is no file" in refused(watched, pictures, ModelError, network__continue_from=str(path), **job)
    path.write_bytes(b"\0" * 64)
    assert str(path) in refused(watched, pictures, ModelError, network__continue_from=str(path), **job)


def test_files_that_hold_something_else(watched: Watched, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"a": 1}, path)
    for kind, said in (("hypernetwork", "is not a hypernetwork"), ("embedding", "is not an embedding")):
        job = {"network__kind": kind, "output__name": "zrk-new", "network__continue_from": str(path)}
        assert said in refused(watched, pictures, ModelError, **job)
    xl = tmp_path / "xl.safetensors"
    save_file({"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}, str(xl))
    said = refused(watched, pictures, ModelError, **EMBEDDING, network__continue_from=str(xl))
    assert "is an embedding for SDXL" in said


def test_class_pictures_that_cannot_be_made_end_the_run_in_a_sentence(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: object) -> None:
        raise RuntimeError("the sampler is broken")

    monkeypatch.setattr(watched.host, "preview", broken)
    view = watched.run(pictures, prior__class_prompt="disc", prior__class_pictures=2)
    assert view.state == "failed" and view.output is None
    assert "Class picture 1 of 2 could not be made (the sampler is broken)" in view.error


def test_a_file_is_never_overwritten(watched: Watched, pictures: Path) -> None:
    for kind, folder, name in (
        ("hypernetwork", watched.host.hypernetwork_folder(), "learned.pt"),
        ("checkpoint", watched.host.checkpoint_folder(), "learned.safetensors"),
        ("checkpoint", watched.host.lora_folder(), "learned.safetensors"),
    ):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"mine")
        said = refused(watched, pictures, ConfigError, network__kind=kind, finetune__difference_rank=4)
        assert f"{folder / name} exists already" in said
        (folder / name).unlink()
