"""Tiny models of SDXL's and SD 2's topology: random weights in real modules, and the same as a single file.

sgm, whose classes SDXL is loaded into, is in no package index under a name of its own. imaginAIry has its sources
(requirements/test-no-deps.txt): names and forward of that UNet are those of the WebUI's, bit for bit. The environment
variables SGM_DIR, or WEBUI_DIR for its repositories/generative-models, name the originals, which are taken first.
Models that need no class of sgm's are of `bench/labelled.py`'s.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import json
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.labelled import labelled_unet
from lib_trainer.families.family import Family
from lib_trainer.families.prediction import Prediction
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.host.text.texts import Texts
from lib_trainer.ports import NoiseSchedule
from tests.encoders import open_clip_encoder
from tests.support import CLIP, UNET, VAE, LdmVae, drawn, ldm_config, scaled_linear, write_file

TE1, TE2 = 32, 48
POOLED = 40
XL_UNET: dict[str, Any] = UNET | {
    "channel_mult": [1, 2, 2],
    "attention_resolutions": [4, 2],
    "num_heads": -1,
    "num_head_channels": 16,
    "transformer_depth": 2,
    "context_dim": TE1 + TE2,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": POOLED + 6 * 256,
}
V2_UNET: dict[str, Any] = UNET | {
    "num_heads": -1,
    "num_head_channels": 16,
    "context_dim": TE2,
    "use_linear_in_transformer": True,
}
OPEN_CLIP: dict[str, Any] = {
    "hidden_size": TE2,
    "intermediate_size": 192,
    "projection_dim": POOLED,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
ARCH = {
    "embed_dim": POOLED,
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": TE2, "heads": 4, "layers": 4},
}


@dataclass
class TinyXl:
    """`texts` are transformers' modules, in the family's order."""

    path: Path
    unet: nn.Module
    vae: LdmVae
    texts: tuple[nn.Module, ...]


def in_ldm(tiny: TinyXl, family: Family, prediction: Prediction = "epsilon") -> LdmModel:
    """The same weights as the WebUI has them: ldm's or sgm's modules, and open_clip's text encoder."""
    last = tiny.texts[-1]
    own = open_clip_encoder(last, projected=POOLED if family.sizes else 0)
    texts = Texts([*tiny.texts[:-1], own], load_tokenizer(), family)
    schedule = NoiseSchedule(scaled_linear(), prediction)
    scale = family.latent_scale
    return LdmModel(tiny.unet, tiny.vae, texts, schedule, scale, "tiny", tiny.path, family=family)


@functools.cache
def sgm_unet() -> Any:
    """sgm's own UNetModel, or None where its sources are not at hand."""
    folders = [os.environ.get("SGM_DIR", "")]
    folders += [f"{os.environ['WEBUI_DIR']}/repositories/generative-models"] if os.environ.get("WEBUI_DIR") else []
    folder = next((Path(one) for one in folders if one and (Path(one) / "sgm").is_dir()), None)
    if folder is not None:
        _without_their_packages(folder, "sgm", "sgm.modules", "sgm.modules.diffusionmodules")
        with contextlib.redirect_stdout(None):
            return importlib.import_module("sgm.modules.diffusionmodules.openaimodel").UNetModel
    spec = importlib.util.find_spec("imaginairy")
    if spec is None or not spec.submodule_search_locations:
        return None
    root = "imaginairy.modules.sgm"
    folder = Path(spec.submodule_search_locations[0]).parent
    _without_their_packages(folder, "imaginairy", "imaginairy.modules", root, f"{root}.diffusionmodules")
    module = importlib.import_module(f"{root}.diffusionmodules.openaimodel")
    # It reaches for a transformer of ldm's, which knows less; sgm's lies beside it
    module.SpatialTransformer = importlib.import_module(f"{root}.attention").SpatialTransformer  # type: ignore[attr-defined]
    known = inspect.signature(module.UNetModel).parameters
    return lambda **shape: module.UNetModel(**{name: value for name, value in shape.items() if name in known})


def _without_their_packages(folder: Path, *names: str) -> None:
    """Packages that import nothing: the real ones import far more than the UNet."""
    for name in names:
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules.setdefault(name, package)


def text_model(config: dict[str, Any], *, pooled: bool) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    model = (CLIPTextModelWithProjection if pooled else CLIPTextModel)(CLIPTextConfig(**config))
    with torch.no_grad():
        model.text_model.embeddings.token_embedding.weight.normal_(0, 1)
        model.text_model.embeddings.position_embedding.weight.normal_(0, 0.3)
    return model.eval()


def in_open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformers text model's tensors as open_clip keeps them, written down a second time."""
    found: dict[str, torch.Tensor] = {}
    layers = 1 + max(int(name.split(".")[3]) for name in state if ".layers." in name)
    for layer in range(layers):
        old, new = f"text_model.encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            fused = [state[f"{old}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{new}attn.in_proj_{kind}"] = torch.cat(fused)
            found[f"{new}attn.out_proj.{kind}"] = state[f"{old}self_attn.out_proj.{kind}"]
            found[f"{new}ln_1.{kind}"] = state[f"{old}layer_norm1.{kind}"]
            found[f"{new}ln_2.{kind}"] = state[f"{old}layer_norm2.{kind}"]
            found[f"{new}mlp.c_fc.{kind}"] = state[f"{old}mlp.fc1.{kind}"]
            found[f"{new}mlp.c_proj.{kind}"] = state[f"{old}mlp.fc2.{kind}"]
    found["token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    found["positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    found["ln_final.weight"] = state["text_model.final_layer_norm.weight"]
    found["ln_final.bias"] = state["text_model.final_layer_norm.bias"]
    if "text_projection.weight" in state:
        found["text_projection"] = state["text_projection.weight"].T.contiguous()
    found["logit_scale"] = torch.tensor(4.6)
    return found


def build_sdxl(folder: Path, unet_class: Any = None) -> TinyXl:
    with torch.random.fork_rng(), contextlib.redirect_stdout(None):
        torch.manual_seed(11)
        shape = {name: value for name, value in XL_UNET.items() if name != "image_size"}
        unet, vae = labelled_unet(XL_UNET) if unet_class is None else unet_class(**shape), LdmVae()
        texts = (text_model(CLIP, pooled=False), text_model(OPEN_CLIP, pooled=True))
        drawn(unet, vae)
    prefixes = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
    states = (texts[0].state_dict(), in_open_clip(texts[1].state_dict()))
    path = _written(folder / "xl.safetensors", unet, vae, dict(zip(prefixes, states, strict=True)), sdxl_config())
    return TinyXl(path, unet.eval(), vae.eval(), texts)


def build_sd2(folder: Path, **params: Any) -> TinyXl:
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.random.fork_rng(), contextlib.redirect_stdout(None):
        torch.manual_seed(12)
        unet, vae, text = UNetModel(**V2_UNET), LdmVae(), text_model(OPEN_CLIP, pooled=False)
        drawn(unet, vae)
    state = in_open_clip(text.state_dict()) | {"text_projection": torch.randn(TE2, TE2)}
    path = _written(folder / "v2.safetensors", unet, vae, {"cond_stage_model.model.": state}, sd2_config(**params))
    return TinyXl(path, unet.eval(), vae.eval(), (text,))


def _written(path: Path, unet: nn.Module, vae: nn.Module, texts: dict[str, Any], config: dict[str, Any]) -> Path:
    """With open_clip's description of its encoder beside it."""
    (path.parent / "tiny-clip.json").write_text(json.dumps(ARCH), encoding="utf-8")
    return write_file(path, unet, vae, texts, config)


def sdxl_config(scaling: str = "EpsScaling") -> dict[str, Any]:
    """As sgm's sd_xl_base.yaml is laid out."""
    sgm = "sgm.modules."
    emb_models = [
        {"input_key": "txt", "target": f"{sgm}encoders.modules.FrozenCLIPEmbedder",
         "params": {"version": "clip", "layer": "hidden", "layer_idx": 2}},
        {"input_key": "txt", "target": f"{sgm}encoders.modules.FrozenOpenCLIPEmbedder2",
         "params": {"arch": "tiny-clip", "layer": "penultimate", "always_return_pooled": True, "legacy": False}},
        *({"input_key": key, "target": f"{sgm}encoders.modules.ConcatTimestepEmbedderND", "params": {"outdim": 256}}
          for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")),
    ]  # fmt: skip
    denoiser = {
        "num_idx": 1000,
        "scaling_config": {"target": f"{sgm}diffusionmodules.denoiser_scaling.{scaling}"},
        "discretization_config": {"target": f"{sgm}diffusionmodules.discretizer.LegacyDDPMDiscretization"},
    }
    return {
        "model": {
            "target": "sgm.models.diffusion.DiffusionEngine",
            "params": {
                "scale_factor": 0.13025,
                "denoiser_config": {"params": denoiser},
                "network_config": {"params": XL_UNET},
                "first_stage_config": {"params": {"embed_dim": 4, "ddconfig": VAE}},
                "conditioner_config": {"params": {"emb_models": emb_models}},
            },
        }
    }


def sd2_config(**params: Any) -> dict[str, Any]:
    clip = {"params": {"arch": "tiny-clip", "layer": "penultimate"}}
    return ldm_config(V2_UNET, **{"cond_stage_config": clip} | params)
