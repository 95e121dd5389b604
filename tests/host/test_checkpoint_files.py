"""Reading checkpoints: both layouts give the same model, and what cannot be trained is refused in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_trainer.errors import ModelError
from lib_trainer.host.standalone.checkpoint import load_checkpoint
from lib_trainer.host.standalone.model import DiffusersModel
from tests.support import ldm_config

Tensors = dict[str, torch.Tensor]
UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer."


@pytest.fixture(scope="module")
def tensors(tiny: Any) -> Tensors:
    return load_file(tiny.path)


def written(folder: Path, tensors: Tensors, config: Any = None) -> Path:
    path = folder / "model.safetensors"
    save_file(tensors, str(path))
    path.with_suffix(".yaml").write_text(json.dumps(config or ldm_config()))
    return path


def test_the_weights_are_the_files(tiny: Any, tensors: Tensors) -> None:
    parts = load_checkpoint(tiny.path)
    loaded = sum(p.numel() for part in (parts.unet, parts.vae, parts.text_encoder) for p in part.parameters())
    assert loaded == sum(t.numel() for t in tensors.values() if t.is_floating_point())
    assert torch.equal(parts.unet.conv_in.weight, tensors[UNET + "input_blocks.0.0.weight"])
    assert parts.schedule.prediction == "epsilon"
    assert {p.dtype for p in parts.unet.parameters()} == {torch.float32} and not parts.unet.training


def test_half_precision_and_v_prediction(tmp_path: Path, tensors: Tensors, tiny: Any) -> None:
    config = ldm_config()
    config["model"]["params"]["parameterization"] = "v"
    config["model"]["params"]["cond_stage_config"]["params"]["version"] = str(tiny.path.parent / "clip")
    path = written(tmp_path, {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}, config)
    parts = load_checkpoint(path)
    assert parts.schedule.prediction == "v"
    assert torch.equal(parts.unet.conv_in.weight, tensors[UNET + "input_blocks.0.0.weight"].half().float())
    assert parts.text_encoder.config.num_hidden_layers == 3


def test_a_diffusers_folder_is_the_same_model(tmp_path: Path, diffusers_model: Any, tiny: Any) -> None:
    folder = _diffusers_folder(tmp_path, tiny)
    model = DiffusersModel.load(folder, torch.device("cpu"))
    for mine, other in ((model.unet, diffusers_model.unet), (model.vae, diffusers_model.vae)):
        one, two = mine.state_dict(), other.state_dict()
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    torch.testing.assert_close(model.schedule.alphas_cumprod, diffusers_model.schedule.alphas_cumprod)
    assert model.latent_scale == diffusers_model.latent_scale == 0.18215
    assert model.file is None and model.file_hash == ""


def _diffusers_folder(folder: Path, tiny: Any) -> Path:
    from diffusers import DDIMScheduler

    parts = load_checkpoint(tiny.path)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    parts.unet.save_pretrained(folder / "unet")
    parts.vae.save_pretrained(folder / "vae")
    parts.text_encoder.save_pretrained(folder / "text_encoder")
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text("{}")
    return folder


def test_the_hash_is_the_files(diffusers_model: Any, tiny: Any) -> None:
    import hashlib

    assert diffusers_model.file_hash == hashlib.sha256(tiny.path.read_bytes()).hexdigest()


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as raised:
        load_checkpoint(path)
    text = str(raised.value)
    assert "\n" not in text and len(text) < 500, text
    assert str(path) in text
    return text


FILES: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "sdxl": (
        lambda t: t | {"conditioner.embedders.0.transformer.x": torch.zeros(1)},
        "is an SDXL checkpoint, which is not",
    ),
    "sd2": (
        lambda t: t | {"cond_stage_model.model.ln_final.weight": torch.zeros(1)},
        "is an SD 2.x checkpoint, which is not",
    ),
    "inpainting": (lambda t: t | {UNET + "input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}, "inpainting"),
    "a LoRA": (lambda t: {"lora_unet_x.lora_down.weight": torch.zeros(1)}, "holds no UNet"),
    "a VAE": (lambda t: {n: v for n, v in t.items() if n.startswith("first_stage")}, "holds no UNet"),
    "no text encoder": (lambda t: {n: v for n, v in t.items() if not n.startswith(TEXT)}, "text encoder"),
    "no VAE": (lambda t: {n: v for n, v in t.items() if not n.startswith("first_stage")}, "does not fit"),
    "half a UNet": (lambda t: {n: v for n, v in t.items() if "output_blocks" not in n}, "does not fit"),
    "no first convolution": (lambda t: {n: v for n, v in t.items() if "input_blocks.0.0" not in n}, "holds no"),
    "another size": (lambda t: t | {UNET + "out.2.weight": torch.zeros(4, 16, 3, 3)}, "does not fit"),
    "a text encoder cut short": (
        lambda t: {n: v for n, v in t.items() if "layers.1.mlp.fc1.weight" not in n},
        "layers.1.mlp.fc1",
    ),
}


@pytest.mark.parametrize(("change", "said"), FILES.values(), ids=FILES.keys())
def test_files_that_cannot_be_trained(
    tmp_path: Path, tensors: Tensors, change: Callable[[Tensors], Tensors], said: str, tiny: Any
) -> None:
    shutil.copytree(tiny.path.parent / "clip", tmp_path / "clip")
    assert said in refused(written(tmp_path, change(tensors)))


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "There is no checkpoint" in refused(tmp_path / "gone.safetensors")
    pickled = tmp_path / "old.ckpt"
    pickled.write_bytes(b"\x80")
    assert "convert it first" in refused(pickled)
    for content in (b"", b"\0" * 100, b"\xff" * 100):
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(content)
        assert "is not a readable .safetensors file" in refused(broken)


@pytest.mark.parametrize("text", ["a: [", "just words", "model: {}", "", "model: {params: {unet_config: 3}}"])
def test_a_yaml_that_describes_no_model(tmp_path: Path, tensors: Tensors, text: str) -> None:
    path = written(tmp_path, tensors)
    path.with_suffix(".yaml").write_text(text)
    with pytest.raises(ModelError) as raised:
        load_checkpoint(path)
    assert "model.yaml" in str(raised.value) or "model.safetensors" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_folders_that_cannot_be_trained(tmp_path: Path, tiny: Any) -> None:
    assert "is not a diffusers folder" in refused(tmp_path)
    folder = _diffusers_folder(tmp_path / "sd", tiny)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "text_encoder_2").mkdir()
    assert "SDXL" in refused(folder)
    (folder / "text_encoder_2").rmdir()
    for changes, said in (({"use_linear_projection": True}, "SD 2.x"), ({"in_channels": 9}, "inpainting")):
        shutil.rmtree(folder / "unet")
        from diffusers import UNet2DConditionModel

        UNet2DConditionModel.from_config(config | changes).save_pretrained(folder / "unet")
        assert said in refused(folder)
    shutil.rmtree(folder / "vae")
    assert "could not be read as a diffusers folder" in refused(folder)
