"""Reading checkpoints: both layouts give the same model, and what cannot be trained is refused in a sentence."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_trainer.cli import main as cli
from lib_trainer.host.standalone.checkpoint import load_checkpoint
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.networks.formats.checkpoint_file import count_parameters, read_checkpoint, read_state_dict
from lib_trainer.refusals import ModelError
from tests import smaller
from tests.support import ldm_config

shallow_models, tiny, diffusers_model = smaller.shallow_models, smaller.tiny, smaller.diffusers_model
Tensors = dict[str, torch.Tensor]
UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer."


@pytest.fixture(scope="module")
def tensors(tiny: Any) -> Tensors:
    return load_file(tiny.path)


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory, tensors: Tensors) -> tuple[Path, Tensors]:
    """A file of a few small tensors of every part: for what looks at names and numbers and builds no module."""
    small = dict([one for one in tensors.items() if one[1].numel() <= 2048][::6])
    for part in (UNET, TEXT, "first_stage_model."):
        assert any(name.startswith(part) for name in small)
    return written(tmp_path_factory.mktemp("thin"), small), small


def written(folder: Path, tensors: Tensors, config: Any = None) -> Path:
    path = folder / "model.safetensors"
    save_file(tensors, str(path))
    path.with_suffix(".yaml").write_text(json.dumps(config or ldm_config()))
    return path


def test_the_weights_are_the_files(tiny: Any, tensors: Tensors) -> None:
    parts = load_checkpoint(tiny.path)
    loaded = sum(p.numel() for part in (parts.unet, parts.vae, *parts.encoders) for p in part.parameters())
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
    assert parts.encoders[0].config.num_hidden_layers == 3


def test_a_diffusers_folder_is_the_same_model(tmp_path: Path, diffusers_model: Any, tiny: Any) -> None:
    folder = _diffusers_folder(tmp_path, tiny)
    model = DiffusersModel.load(folder, torch.device("cpu"))
    for mine, other in ((model.unet, diffusers_model.unet), (model.vae, diffusers_model.vae)):
        one, two = mine.state_dict(), other.state_dict()
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    torch.testing.assert_close(model.schedule.alphas_cumprod, diffusers_model.schedule.alphas_cumprod)
    assert model.latent_scale == diffusers_model.latent_scale == 0.18215
    assert model.file is None and model.file_hash == ""


def test_a_diffusers_folder_of_variants_alone_is_read(tmp_path: Path, tiny: Any) -> None:
    folder = _diffusers_folder(tmp_path, tiny)
    for name in ("unet", "vae", "text_encoder"):
        (whole,) = (folder / name).glob("*model.*")  # transformers writes either form, by its version
        whole.rename(whole.with_name(f"{whole.stem}.fp16{whole.suffix}"))
        whole.with_name(f"{whole.stem}.non_ema{whole.suffix}").write_bytes(b"other weights")
    model = DiffusersModel.load(folder, torch.device("cpu"))
    assert torch.equal(model.text.encoders[0].vocabulary, tiny.text.get_input_embeddings().weight)


def _diffusers_folder(folder: Path, tiny: Any) -> Path:
    from diffusers import DDIMScheduler

    parts = load_checkpoint(tiny.path)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    parts.unet.save_pretrained(folder / "unet")
    parts.vae.save_pretrained(folder / "vae")
    parts.encoders[0].save_pretrained(folder / "text_encoder")
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
    "sdxl's refiner": (
        lambda t: t | {"conditioner.embedders.0.model.ln_final.weight": torch.zeros(1280)},
        "is of the SDXL refiner, which is not supported",
    ),
    "sdxl without its second encoder": (
        lambda t: t | {"conditioner.embedders.0.transformer.x": torch.zeros(1)},
        "holds no text encoder (conditioner.embedders.1.model)",
    ),
    "sd2 with half an encoder": (
        lambda t: t | {"cond_stage_model.model.ln_final.weight": torch.zeros(1)},
        "does not fit",
    ),
    "editing": (lambda t: t | {UNET + "input_blocks.0.0.weight": torch.zeros(32, 8, 3, 3)}, "editing"),
    "a LoRA": (lambda t: {"lora_unet_x.lora_down.weight": torch.zeros(1)}, "holds no UNet"),
    "a VAE": (lambda t: {n: v for n, v in t.items() if n.startswith("first_stage")}, "holds no UNet"),
    "no text encoder": (lambda t: {n: v for n, v in t.items() if not n.startswith(TEXT)}, "text encoder"),
    "no VAE": (
        lambda t: {n: v for n, v in t.items() if not n.startswith("first_stage")},
        "holds no VAE (first_stage_model)",
    ),
    "an average alone": (lambda t: {"model_ema." + n.replace(".", ""): v for n, v in t.items()}, "running average"),
    "diffusers' layout": (lambda t: {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, "in diffusers' layout"),
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
    """What names and shapes tell is said by the page's line and before a run; the rest when the file is loaded."""
    shutil.copytree(tiny.path.parent / "clip", tmp_path / "clip")
    path = written(tmp_path, change(tensors))
    told = refused(path)
    assert said in told
    host = StandaloneHost(path, tmp_path, torch.device("cpu"))
    if said not in ("does not fit", "layers.1.mlp.fc1"):
        with pytest.raises(ModelError) as raised:
            host.check()
        assert str(raised.value) == told and told in host.describe()


def test_the_command_says_of_a_file_that_is_no_checkpoint_what_it_is_not(
    tmp_path: Path, tensors: Tensors, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, {"lora_unet_x.lora_down.weight": torch.zeros(1)})
    assert cli.main(["describe", str(path)]) == cli.BAD_JOB
    assert "holds no UNet" in capsys.readouterr().err
    bare = written(tmp_path, {n: v for n, v in tensors.items() if n.startswith(UNET)})
    assert cli.main(["describe", str(bare)]) == cli.DONE, "a UNet is enough to tell what it predicts"


def with_old_names(tensors: Tensors) -> Tensors:
    return {name.replace(f"{TEXT}text_model.", TEXT): tensor for name, tensor in tensors.items()}


def junk() -> dict[str, Any]:
    """What trainers leave beside the weights."""
    numbers = {"betas": torch.zeros(3), "model_ema.decay": torch.tensor(0.9), "optimizer.step": torch.tensor(1)}
    return numbers | {f"model_ema.{UNET[6:]}input_blocks00weight".replace(".", ""): torch.zeros(2)}


LAYOUTS: dict[str, Callable[[Tensors], Any]] = {
    "as it is": lambda t: t,
    "state_dict": lambda t: {"state_dict": t, "epoch": 3, "optimizer_states": [{"lr": 0.1}]},
    "model in state_dict": lambda t: {"state_dict": {"model": t}},
    "module": lambda t: {"module": t, "global_step": 7},
    "prefixed": lambda t: {f"module.{name}": tensor for name, tensor in t.items()},
    "old text encoder": lambda t: {"state_dict": with_old_names(t)},
    "mixed precision": lambda t: {n: v.double() if "attn" in n else v.float() for n, v in t.items()},
    "positions as numbers": lambda t: t | {f"{TEXT}text_model.embeddings.position_ids": torch.arange(77.0)[None] + 0.4},
    "positions in half": lambda t: t | {f"{TEXT}text_model.embeddings.position_ids": torch.arange(77)[None].half()},
    "junk": lambda t: t | junk() | {"note": "text", "callbacks": {"best": None}},
    "an ordered dictionary": lambda t: {"state_dict": OrderedDict(t)},
    "parameters": lambda t: {n: torch.nn.Parameter(v) if v.is_floating_point() else v for n, v in t.items()},
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_of_pickled_checkpoints(
    tmp_path: Path, thin: tuple[Path, Tensors], layout: Callable[[Tensors], Any], *, old: bool
) -> None:
    path = tmp_path / "model.CKPT"
    torch.save(layout(thin[1]), path, _use_new_zipfile_serialization=not old)
    assert_same_weights(path, thin[0])


@pytest.mark.parametrize("name", ["old text encoder", "prefixed", "mixed precision", "positions in half", "junk"])
def test_layouts_of_safetensors(tmp_path: Path, thin: tuple[Path, Tensors], name: str) -> None:
    laid_out = LAYOUTS[name](thin[1])
    laid_out = laid_out.get("state_dict", laid_out)
    path = written(tmp_path, {n: v for n, v in laid_out.items() if isinstance(v, torch.Tensor)})
    assert_same_weights(path, thin[0])


def assert_same_weights(path: Path, wanted: Path) -> None:
    """By name and value; the modules are made of nothing else."""
    ours, theirs = read_checkpoint(path), read_checkpoint(wanted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].float(), theirs[name].float()) for name in ours)
    counts = count_parameters(path)
    assert counts == count_parameters(wanted) and counts["unet"] and counts["te1"]


def test_a_pickled_checkpoint_is_the_same_model(tmp_path: Path, tensors: Tensors, tiny: Any) -> None:
    path = tmp_path / "[model] v1.5 (e\u0301).CKPT"
    laid_out = LAYOUTS["mixed precision"](with_old_names(tensors)) | LAYOUTS["positions as numbers"]({}) | junk()
    torch.save({"state_dict": laid_out}, path)
    path.with_suffix(".yaml").write_text(json.dumps(ldm_config()))
    shutil.copytree(tiny.path.parent / "clip", tmp_path / "clip")
    ours, theirs = load_checkpoint(path), load_checkpoint(tiny.path)
    pairs = ((ours.unet, theirs.unet), (ours.vae, theirs.vae), (ours.encoders[0], theirs.encoders[0]))
    for one, other in ((mine.state_dict(), loaded.state_dict()) for mine, loaded in pairs):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one if "position_ids" not in name)
    assert ours.file_names == theirs.file_names


NAMES = [
    "a.b.c.safetensors", "model.SAFETENSORS", "[brackets] (and) {more}.safetensors", "it's \"so\" & so.safetensors",
    "\u0438\u0306 e\u0301 \u65e5.safetensors", "  spaces  .safetensors", ".hidden.safetensors", "-n.safetensors",
    "x" * 243 + ".safetensors", "#1 100%.safetensors",
]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="Windows forbids some of these")
@pytest.mark.parametrize("name", NAMES)
def test_every_legal_name_of_a_checkpoint(tmp_path: Path, thin: tuple[Path, Tensors], name: str) -> None:
    for link in (False, True):
        folder = tmp_path / f"[folder] {link}"
        folder.mkdir()
        path = folder / name
        if link:
            path.symlink_to(thin[0])
        else:
            os.link(thin[0], path)
        composed = folder / unicodedata.normalize("NFC", name)  # what a keyboard gives
        assert count_parameters(composed) == count_parameters(path) != {}
        assert read_state_dict(composed).keys() == read_state_dict(path).keys()


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "There is no checkpoint" in refused(tmp_path / "gone.safetensors")
    pickled = tmp_path / "old.ckpt"
    pickled.write_bytes(b"\x80")
    assert "is not a file of tensors and plain values" in refused(pickled)
    for content in (b"", b"\0" * 100, b"\xff" * 100):
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(content)
        assert "is not a readable .safetensors file" in refused(broken)
        with pytest.raises(ModelError, match=r"is not a readable \.safetensors file"):
            StandaloneHost(broken, tmp_path, torch.device("cpu")).check()


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
    assert "could not be read as a diffusers folder" in refused(folder)
    (folder / "text_encoder_2").rmdir()
    refiner = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    refiner |= {"projection_class_embeddings_input_dim": 2560}
    for changes, said in ((refiner, "SDXL refiner"), ({"in_channels": 8}, "editing")):
        shutil.rmtree(folder / "unet")
        from diffusers import UNet2DConditionModel

        UNet2DConditionModel.from_config(config | changes).save_pretrained(folder / "unet")
        assert said in refused(folder)
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    shutil.rmtree(folder / "vae")
    assert "could not be read as a diffusers folder" in refused(folder)
