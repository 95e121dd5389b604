"""Derive the other shapes of a checkpoint: a diffusers folder, and what the WebUI's model folder needs."""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lib_trainer.host.standalone.tokenizer import load_tokenizer, write_tokenizer

from .common import CLIP_CONFIG, UNET_CONFIG, VAE_CONFIG, atomic
from .recipes import RECIPES, Encoder, Recipe

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline

DATA = Path(__file__).with_name("data")
BUILT = Path(__file__).parents[1] / ".miniature"
"""Where `python -m miniature.build_family` puts what is not committed."""
COMMITTED = ("sd1", "sdxl")
FAMILIES = ("sd1", *RECIPES)
CHECKPOINT = DATA / "mini-sd1.safetensors"
CLIP_FOLDER = '"@CLIP_FOLDER@"'
"""In the .yaml files, where the folder of CLIP's text encoder comes."""


def checkpoint_of(family: str) -> Path:
    """The family's checkpoint. Raises `FileNotFoundError` with the command that makes it."""
    path = (DATA if family in COMMITTED else BUILT) / f"mini-{family}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: python -m miniature.build_family {family}")
    return path


def config_of(family: str) -> str:
    """The .yaml that hosts need beside the checkpoint, with CLIP_FOLDER in it."""
    text = (DATA / f"mini-{family.replace('sdxl-v', 'sdxl')}.yaml").read_text(encoding="utf-8")
    if family == "sdxl-v":
        text = text.replace("EpsWeighting", "VWeighting").replace("EpsScaling", "VScaling")
    return text


def open_clip_arch(config: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's description of a text encoder. It wants a picture encoder, too, which hosts throw away."""
    return {
        "embed_dim": config["projection_dim"],
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {
            "context_length": config["max_position_embeddings"],
            "vocab_size": config["vocab_size"],
            "width": config["hidden_size"],
            "heads": config["num_attention_heads"],
            "layers": config["num_hidden_layers"],
        },
    }


def read_checkpoint(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The tensors in float32."""
    from safetensors.torch import load_file

    return {key: value.float() if value.is_floating_point() else value for key, value in load_file(checkpoint).items()}


def build_pipeline(checkpoint: Path = CHECKPOINT) -> StableDiffusionPipeline:
    """The SD1 checkpoint as a diffusers pipeline in float32, by diffusers' own converters, every key accounted for."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.loaders import single_file_utils as convert
    from transformers import CLIPTextConfig, CLIPTextModel

    state = read_checkpoint(checkpoint)
    unet, vae = UNet2DConditionModel(**UNET_CONFIG), AutoencoderKL(**VAE_CONFIG)
    text = CLIPTextModel(CLIPTextConfig(**CLIP_CONFIG))
    unet.load_state_dict(convert.convert_ldm_unet_checkpoint(dict(state), UNET_CONFIG))
    vae.load_state_dict(convert.convert_ldm_vae_checkpoint(dict(state), VAE_CONFIG))
    text_state = convert.convert_ldm_clip_checkpoint(dict(state))
    if "text_model.embeddings.position_ids" not in text.state_dict():
        # transformers made this buffer non-persistent in 4.31.
        text_state.pop("text_model.embeddings.position_ids", None)
    text.load_state_dict(text_state)
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=load_tokenizer(),
        unet=unet.eval(),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _scheduler(prediction: str = "epsilon", zero_terminal: bool = False) -> DDIMScheduler:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_terminal,
        timestep_spacing="trailing" if zero_terminal else "leading",
    )


def pipeline_of(family: str, checkpoint: Path | None = None) -> Pipeline:
    """The family's checkpoint, or another file of that family, as a diffusers pipeline in float32."""
    path = checkpoint or checkpoint_of(family)
    return build_pipeline(path) if family == "sd1" else _family_pipeline(RECIPES[family], path)


def _family_pipeline(recipe: Recipe, checkpoint: Path) -> Pipeline:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from diffusers.loaders import single_file_utils as convert

    state = read_checkpoint(checkpoint)
    unet = UNet2DConditionModel(**recipe.unet)
    vae = AutoencoderKL(**{**VAE_CONFIG, "scaling_factor": recipe.scaling_factor})
    unet.load_state_dict(convert.convert_ldm_unet_checkpoint(dict(state), dict(recipe.unet)))
    vae.load_state_dict(convert.convert_ldm_vae_checkpoint(dict(state), VAE_CONFIG))
    texts = [_text(encoder, state) for encoder in recipe.encoders]
    tokenizers = [copy.deepcopy(load_tokenizer()) for _ in texts]  # the one loaded is shared
    for tokenizer, encoder in zip(tokenizers, recipe.encoders):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(encoder.pad)
    common = {"unet": unet.eval(), "vae": vae.eval(), "text_encoder": texts[0], "tokenizer": tokenizers[0]}
    common["scheduler"] = _scheduler(recipe.prediction, recipe.zero_terminal)
    if not recipe.sizes:
        return StableDiffusionPipeline(
            **common, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    return StableDiffusionXLPipeline(
        **common, text_encoder_2=texts[1], tokenizer_2=tokenizers[1], add_watermarker=False
    )


def _text(encoder: Encoder, state: dict[str, torch.Tensor]) -> CLIPTextModel | CLIPTextModelWithProjection:
    """One encoder as diffusers' folders have it: SD2's without the layer behind the penultimate output."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from .family_layout import fill, from_single_text

    found = from_single_text(encoder, state)
    if not encoder.open_clip:
        model = CLIPTextModel(CLIPTextConfig(**encoder.config))
    elif encoder.final_norm:
        layers = encoder.config["num_hidden_layers"] - 1
        model = CLIPTextModel(CLIPTextConfig(**{**encoder.config, "num_hidden_layers": layers}))
        found = {name: value for name, value in found.items() if f".layers.{layers}." not in name}
        found.pop("text_projection.weight", None)
    else:
        model = CLIPTextModelWithProjection(CLIPTextConfig(**encoder.config))
    fill(model, found)
    return model.eval()


def export_diffusers(dest: Path, family: str = "sd1") -> Path:
    """Write the family's checkpoint as a diffusers pipeline folder; dest must not exist yet."""
    dest = dest.absolute()
    if dest.exists():
        raise FileExistsError(f"{dest} exists already")
    temporary = dest.with_name(f".{dest.name}.{os.getpid()}.tmp")
    try:
        pipeline_of(family).save_pretrained(str(temporary), safe_serialization=True)
        os.replace(temporary, dest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return dest


def export_webui(dest: Path, family: str = "sd1") -> Path:
    """Write the family's checkpoint with what hosts need beside it into dest, a WebUI's model folder; returns its path.

    That is the .yaml, and of each text encoder: the folder clip/ that the .yaml points at for one in transformers'
    layout (the WebUI builds it from config.json and takes its weights from the checkpoint; those in clip/ are for
    hosts that insist on reading them there), and for one in open_clip's a description `<arch>.json`, which
    `open_clip.add_model_config` has to be told of before the WebUI loads the checkpoint.
    """
    dest = dest.absolute()
    dest.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoint_of(family)
    if family == "sd1":
        write_clip(dest / "clip", CLIP_CONFIG, "cond_stage_model.transformer.", checkpoint)
    else:
        for encoder in RECIPES[family].encoders:
            if encoder.open_clip:
                write_arch(dest, encoder)
            else:
                write_clip(dest / CLIP_NAMES[family], encoder.config, encoder.prefix, checkpoint)
    config = config_of(family).replace(CLIP_FOLDER, json.dumps(str(dest / CLIP_NAMES.get(family, "clip"))))
    atomic(dest / f"mini-{family}.yaml", lambda path: path.write_text(config, encoding="utf-8"))
    # The checkpoint last: the WebUI lists it as soon as it is there, and then wants the yaml beside it.
    atomic(dest / checkpoint.name, lambda path: shutil.copyfile(checkpoint, path))
    return dest / checkpoint.name


CLIP_NAMES = {"sd1": "clip", "sdxl": "clip-l", "sdxl-v": "clip-l-v"}
"""Of the folders of CLIP's text encoder: several families may lie in one model folder."""


def write_clip(folder: Path, config: Mapping[str, Any], prefix: str, checkpoint: Path) -> None:
    """CLIP's text encoder as a transformers folder."""
    from safetensors.torch import load_file, save_file

    write_tokenizer(folder)
    whole = {**config, "architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    whole |= {"layer_norm_eps": 1e-5, "attention_dropout": 0.0, "torch_dtype": "float32"}
    text = json.dumps(whole, indent=2)
    atomic(folder / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
    weights: dict[str, torch.Tensor] = {
        key[len(prefix) :]: value for key, value in load_file(checkpoint).items() if key.startswith(prefix)
    }
    atomic(folder / "model.safetensors", lambda path: save_file(weights, str(path), metadata={"format": "pt"}))


def write_arch(folder: Path, encoder: Encoder) -> None:
    """open_clip's description of a text encoder, under its arch's name."""
    text = json.dumps(open_clip_arch(encoder.config), indent=2)
    atomic(folder / f"{encoder.arch}.json", lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=("diffusers", "webui"))
    parser.add_argument("dest", type=Path)
    parser.add_argument("--family", choices=FAMILIES, default="sd1")
    options = parser.parse_args()
    print({"diffusers": export_diffusers, "webui": export_webui}[options.shape](options.dest, options.family))
