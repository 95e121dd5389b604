"""Derive the other shapes of the committed checkpoint: a diffusers folder, and what the WebUI's model folder needs."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lib_trainer.host.standalone.tokenizer import load_tokenizer, write_tokenizer

from .common import CLIP_CONFIG, UNET_CONFIG, VAE_CONFIG, atomic

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

DATA = Path(__file__).with_name("data")
CHECKPOINT = DATA / "mini-sd1.safetensors"
CONFIG = DATA / "mini-sd1.yaml"


def build_pipeline(checkpoint: Path = CHECKPOINT) -> StableDiffusionPipeline:
    """The checkpoint as a diffusers pipeline in float32, through diffusers' own converters, every key accounted for."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.loaders import single_file_utils as convert
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel

    state = {key: value.float() if value.is_floating_point() else value for key, value in load_file(checkpoint).items()}
    unet, vae = UNet2DConditionModel(**UNET_CONFIG), AutoencoderKL(**VAE_CONFIG)
    text = CLIPTextModel(CLIPTextConfig(**CLIP_CONFIG))
    unet.load_state_dict(convert.convert_ldm_unet_checkpoint(dict(state), UNET_CONFIG))
    vae.load_state_dict(convert.convert_ldm_vae_checkpoint(dict(state), VAE_CONFIG))
    text_state = convert.convert_ldm_clip_checkpoint(dict(state))
    if "text_model.embeddings.position_ids" not in text.state_dict():
        # transformers made this buffer non-persistent in 4.31.
        text_state.pop("text_model.embeddings.position_ids", None)
    text.load_state_dict(text_state)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=load_tokenizer(),
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export_diffusers(dest: Path, checkpoint: Path = CHECKPOINT) -> Path:
    """Write the checkpoint as a diffusers StableDiffusionPipeline folder; dest must not exist yet."""
    dest = dest.absolute()
    if dest.exists():
        raise FileExistsError(f"{dest} exists already")
    temporary = dest.with_name(f".{dest.name}.{os.getpid()}.tmp")
    try:
        build_pipeline(checkpoint).save_pretrained(str(temporary), safe_serialization=True)
        os.replace(temporary, dest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return dest


def export_webui(dest: Path, checkpoint: Path = CHECKPOINT) -> Path:
    """Write mini-sd1.safetensors, its .yaml and the clip/ folder the yaml points at into dest, a WebUI's model folder.

    The WebUI builds the text encoder from clip/config.json and takes its weights from the checkpoint; the weights in
    clip/ are for hosts that insist on reading them there. Returns the checkpoint's path.
    """
    from safetensors.torch import load_file, save_file

    dest = dest.absolute()
    clip = write_tokenizer(dest / "clip")
    config = {**CLIP_CONFIG, "architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    config |= {"layer_norm_eps": 1e-5, "attention_dropout": 0.0, "torch_dtype": "float32"}
    text = json.dumps(config, indent=2)
    atomic(clip / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
    prefix = "cond_stage_model.transformer."
    weights: dict[str, torch.Tensor] = {
        key[len(prefix) :]: value for key, value in load_file(checkpoint).items() if key.startswith(prefix)
    }
    atomic(clip / "model.safetensors", lambda path: save_file(weights, str(path), metadata={"format": "pt"}))
    yaml = CONFIG.read_text(encoding="utf-8").replace('"@CLIP_FOLDER@"', json.dumps(str(clip)))
    atomic(dest / "mini-sd1.yaml", lambda path: path.write_text(yaml, encoding="utf-8"))
    # The checkpoint last: the WebUI lists it as soon as it is there, and then wants the yaml beside it.
    atomic(dest / "mini-sd1.safetensors", lambda path: shutil.copyfile(checkpoint, path))
    return dest / "mini-sd1.safetensors"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=("diffusers", "webui"))
    parser.add_argument("dest", type=Path)
    options = parser.parse_args()
    print({"diffusers": export_diffusers, "webui": export_webui}[options.shape](options.dest))
