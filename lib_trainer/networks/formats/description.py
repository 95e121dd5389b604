"""What lies beside a checkpoint to say what it is, the .yaml that hosts build a model from; and all that can be known
of what a checkpoint predicts without loading it.

Hosts of CompVis' and Stability's code (the WebUI) take a model for one that predicts the noise unless its .yaml says
otherwise, whatever its tensors are called.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lib_trainer.families.detect import inpaints
from lib_trainer.families.family import Family
from lib_trainer.families.prediction import SD2_BIAS, Clues, Prediction, Predicts, is_edm, predicts, said_in
from lib_trainer.files import found, plain, write_atomically
from lib_trainer.networks.formats import reading
from lib_trainer.networks.formats.checkpoint_file import read_shapes, read_state_dict
from lib_trainer.refusals import ConfigError, ModelError, SaveError, Sentence

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth")
"""Of checkpoints."""


def beside(checkpoint: Path) -> Path:
    """Where the description of a checkpoint lies."""
    return checkpoint.with_suffix(".yaml")


def described_by(yaml: Path, *without: Path) -> list[Path]:
    """The checkpoints that a .yaml describes, but for some: those that have its name, in any case of letters."""
    passed = {plain(path.name) for path in without}
    try:
        there = sorted(path for path in yaml.parent.iterdir() if path.suffix.lower() in ENDINGS)
    except OSError:
        return []
    return [path for path in there if plain(path.stem) == plain(yaml.stem) and plain(path.name) not in passed]


def predicted_by(
    checkpoint: Path,
    family: Family,
    tensors: Mapping[str, torch.Tensor] | None = None,
    tried: Prediction | None = None,
) -> Predicts:
    """What a checkpoint file, or a diffusers folder, predicts, and why.

    Of a file names are read, and one small tensor, unless it has been read already, as `tensors`. `tried` is what a
    host has found by trying the model.

    Raises `ModelError` for a model of another kind of diffusion altogether.
    """
    clues = replace(clues_of(checkpoint), tried=tried)
    if tensors is not None:
        clues = replace(clues, names=tensors.keys(), deviation=_deviation(tensors.get(SD2_BIAS)))
    if is_edm(clues.names):
        raise ModelError("prediction.edm", path=checkpoint)
    found = predicts(family, clues)
    return replace(found, file=checkpoint) if not checkpoint.is_dir() else found


def clues_of(checkpoint: Path) -> Clues:
    """Read once for each state of the file and its description: pages ask again and again."""
    path = found(checkpoint)
    if path.is_dir():
        return Clues(described=_scheduler(path))
    return _clues(path, _changed(path), _changed(beside(path)))


def _scheduler(folder: Path) -> Mapping[str, Any]:
    """What a diffusers folder says of its schedule."""
    try:
        said = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # who loads the folder says it
        return {}
    return said if isinstance(said, dict) else {}


def _deviation(bias: torch.Tensor | None) -> float | None:
    return None if bias is None else float(bias.to(torch.float32).std(unbiased=False))


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=8)
def _clues(path: Path, changed: int, described: int) -> Clues:
    """A file that cannot be read says so when it is loaded."""
    said = read_description(path)
    try:
        if reading.is_pickle(path):
            names = read_shapes(path).keys()
            tried = read_state_dict(path)[SD2_BIAS] if SD2_BIAS in names else None  # mapped, where the file is large
            return Clues(frozenset(names), {}, said, deviation=_deviation(tried))
        header = reading.read_header(path)
        bias = reading.read_tensor(path, SD2_BIAS) if SD2_BIAS in header.shapes else None
    except ModelError:
        return Clues(described=said)
    return Clues(frozenset(header.shapes), header.metadata, said, deviation=_deviation(bias))


def read_description(checkpoint: Path) -> Mapping[str, Any]:
    """The content of the .yaml beside a checkpoint; empty where there is none, or none that can be read."""
    path = beside(checkpoint)
    if not path.is_file():
        return {}
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception:  # OmegaConf passes on whatever its parsers raise; who loads the model says it
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def write_description(checkpoint: Path, family: Family, prediction: Prediction) -> Path:
    """Write the .yaml of a checkpoint of a published architecture beside it, never over one that is there.

    Raises `ConfigError` where there is one, and `SaveError` where it cannot be written.
    """
    path, content = beside(checkpoint), description(family, prediction)
    if content is None:
        raise ConfigError("description.unknown", family=family.word)
    if _inpaints(checkpoint):
        raise ConfigError("description.inpaints", path=checkpoint)
    if path.exists():
        raise ConfigError("description.exists", path=path, prediction=prediction)
    text = f"# {checkpoint.name} as its host is to build it\n{json.dumps(content, indent=2)}\n"  # JSON is YAML
    try:
        write_atomically(path, text.encode(), overwrite=False)
    except FileExistsError:
        raise ConfigError("description.exists", path=path, prediction=prediction) from None
    except OSError as error:
        raise SaveError("file.not_written", path=path, reason=error.strerror or error) from error
    return path


def carry_description(base: Path, result: Path, prediction: Prediction | None = None) -> Sentence | None:
    """The .yaml beside a base model, where there is one, under the name of what was made of it.

    It is the same file, unless what was made is known to predict something else than it says: then its word for that
    is another, where it has a place for it. One that is there stays, also the base's own. The result is there by now,
    and none the worse for a .yaml that could not be written: that is what the sentence says.
    """
    own = beside(base)
    if not own.is_file():
        return None
    told = read_description(base)
    try:
        same = prediction is None or not told or (said_in(told) or "epsilon") == prediction
        data = own.read_bytes() if same or prediction is None else _saying(own, prediction)
        write_atomically(beside(result), data, overwrite=False)
    except FileExistsError:
        return None
    except OSError as error:
        reason = error.strerror or error
        return Sentence("description.not_carried", path=result, yaml=beside(result), base=own, reason=reason)
    return None


def _saying(path: Path, prediction: Prediction) -> bytes:
    """A .yaml as it is, but for its word of what the model predicts; just as it is where that has no place in it."""
    try:
        config = OmegaConf.load(path)
        _say(config.model.params, prediction)
        text: str = OmegaConf.to_yaml(config)
    except (OmegaConfBaseException, AttributeError, TypeError, ValueError):  # it describes no model of ldm's or sgm's
        return path.read_bytes()
    return text.encode()


def _say(params: Any, prediction: Prediction) -> None:
    denoiser = params.get("denoiser_config")
    if denoiser is None:
        params.parameterization = "v" if prediction == "v" else "eps"
    else:
        for part in ("Scaling", "Weighting"):
            section = denoiser.params.get(f"{part.lower()}_config")
            if section is not None:
                section.target = f"{section.target.rpartition('.')[0]}.{'V' if prediction == 'v' else 'Eps'}{part}"


def _inpaints(checkpoint: Path) -> bool:
    """Whether a .safetensors file's UNet does: the published architecture is then another one."""
    try:
        return not reading.is_pickle(checkpoint) and inpaints(reading.read_header(checkpoint).shapes)
    except (ModelError, OSError):
        return False


def description(family: Family, prediction: Prediction) -> dict[str, Any] | None:
    """The published architecture of a family in the terms of CompVis' or Stability's code; None where it has none."""
    if family.config is None:
        return None
    params = copy.deepcopy(dict(family.config["model"]["params"]))
    unet, vae = params.pop("unet_config")["params"], params.pop("first_stage_config")["params"]
    ddconfig = vae["ddconfig"] | {"double_z": True, "resolution": 256, "attn_resolutions": [], "dropout": 0.0}
    vae = {"embed_dim": 4, "monitor": "val/rec_loss", "ddconfig": ddconfig}
    vae["lossconfig"] = {"target": "torch.nn.Identity"}
    unet |= {"use_spatial_transformer": True, "legacy": False, "use_checkpoint": False}
    whole = _sgm if family.sizes else _ldm
    return {"model": whole(family, prediction, params, unet, vae)}


Params = dict[str, Any]


def _ldm(family: Family, prediction: Prediction, params: Params, unet: Params, vae: Params) -> Params:
    """github.com/CompVis/latent-diffusion, github.com/Stability-AI/stablediffusion."""
    text: Params = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}
    if family.encoders[0].layout == "open_clip":
        text = {"target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder"}
        text["params"] = {"freeze": True, "layer": "penultimate"}
    params |= {
        "parameterization": "v" if prediction == "v" else "eps",
        "num_timesteps_cond": 1,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": family.latent_channels,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": {"image_size": 32} | unet,
        },
        "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": vae},
        "cond_stage_config": text,
    }
    return {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}


def _sgm(family: Family, prediction: Prediction, params: Params, unet: Params, vae: Params) -> Params:
    """github.com/Stability-AI/generative-models. Its discretisation has the family's numbers as defaults."""
    own = "sgm.modules.diffusionmodules"
    name = "V" if prediction == "v" else "Eps"
    encoders = "sgm.modules.encoders.modules"
    sizes = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    told = [
        _told("txt", f"{encoders}.FrozenCLIPEmbedder", layer="hidden", layer_idx=family.encoders[0].output),
        _told(
            "txt", f"{encoders}.FrozenOpenCLIPEmbedder2", arch="ViT-bigG-14", version="laion2b_s39b_b160k", freeze=True,
            layer="penultimate", always_return_pooled=True, legacy=False,
        ),
        *(_told(size, f"{encoders}.ConcatTimestepEmbedderND", outdim=256) for size in sizes),
    ]  # fmt: skip
    denoiser = {
        "num_idx": params["timesteps"],
        "weighting_config": {"target": f"{own}.denoiser_weighting.{name}Weighting"},
        "scaling_config": {"target": f"{own}.denoiser_scaling.{name}Scaling"},
        "discretization_config": {"target": f"{own}.discretizer.LegacyDDPMDiscretization"},
    }
    unet = unet | {"spatial_transformer_attn_type": "softmax-xformers"}
    vae["ddconfig"]["attn_type"] = "vanilla-xformers"
    return {
        "target": "sgm.models.diffusion.DiffusionEngine",
        "params": {
            "scale_factor": family.latent_scale,
            "disable_first_stage_autocast": True,
            "denoiser_config": {"target": f"{own}.denoiser.DiscreteDenoiser", "params": denoiser},
            "network_config": {"target": f"{own}.openaimodel.UNetModel", "params": unet},
            "conditioner_config": {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": told}},
            "first_stage_config": {"target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper", "params": vae},
        },
    }


def _told(key: str, target: str, **params: Any) -> Params:
    return {"is_trainable": False, "input_key": key, "target": target, "params": params}
