"""Tiny text encoders of every family: transformers' classes, and open_clip's with the same weights."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lib_trainer.families.family import Family
from lib_trainer.families.sd1 import SD1
from lib_trainer.families.sd2 import SD2
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.host.text.texts import Texts

LAYERS = 4
CAPTION, LONG = "a red hat, saber_(fate)", "red disc, " * 40
PLACES = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
NORMS = {"layer_norm1": "ln_1", "layer_norm2": "ln_2"}


def open_clip_classes() -> Any:
    """open_clip's own module of transformers. Its package, and torchvision, bring far more than the text tower."""
    if "open_clip.transformer" not in sys.modules:
        spec = find_spec("open_clip")
        if spec is None or not spec.submodule_search_locations:
            pytest.skip("open_clip is in requirements/test-no-deps.txt")
        package, utils = types.ModuleType("open_clip"), types.ModuleType("open_clip.utils")
        package.__path__ = [str(Path(spec.submodule_search_locations[0]))]
        utils.to_2tuple = None  # type: ignore[attr-defined]  # of the picture tower
        sys.modules |= {"open_clip": package, "open_clip.utils": utils}
    return importlib.import_module("open_clip.transformer")


def transformers_encoder(width: int, *, act: str, projected: int = 0, seed: int = 0) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=LAYERS, num_attention_heads=4,
        hidden_act=act, projection_dim=projected or width,
    )  # fmt: skip
    model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()
    for name, parameter in model.named_parameters():  # transformers draws tiny numbers, and biases of 0
        if "embedding" not in name:
            nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.15)
    return model


def open_clip_encoder(like: Any, *, projected: int = 0) -> Any:
    """open_clip's text tower with the weights of one of transformers'."""
    text = like.text_model
    width = text.config.hidden_size
    tower = open_clip_classes().TextTransformer(width=width, heads=4, layers=LAYERS, output_dim=projected or width)
    state = {
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
        "ln_final.weight": text.final_layer_norm.weight,
        "ln_final.bias": text.final_layer_norm.bias,
        "text_projection": like.text_projection.weight.T if projected else tower.text_projection,
    }
    for number, layer in enumerate(text.encoder.layers):
        place = f"transformer.resblocks.{number}."
        for kind in ("weight", "bias"):
            parts = [getattr(getattr(layer.self_attn, name), kind) for name in ("q_proj", "k_proj", "v_proj")]
            state[f"{place}attn.in_proj_{kind}"] = torch.cat(parts)
            for ours, theirs in (PLACES | NORMS).items():
                state[f"{place}{theirs}.{kind}"] = getattr(layer.get_submodule(ours), kind)
    tower.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()})
    return tower.eval()


def encoders_of(family: Family, layout: str) -> list[Any]:
    """Roots in `family.encoders`' order; those of open_clip's layout in either of its classes."""
    if family is SD1:
        return [transformers_encoder(32, act="quick_gelu")]
    if family is SD2:
        own = [transformers_encoder(32, act="gelu")]
        return own if layout == "transformers" else [open_clip_encoder(own[0])]
    second = transformers_encoder(40, act="gelu", projected=24, seed=1)
    second = second if layout == "transformers" else open_clip_encoder(second, projected=24)
    return [transformers_encoder(32, act="quick_gelu"), second]


def tiny(family: Family) -> Family:
    """The family with as many layers as the tiny encoders have, the last one left out where the family leaves it."""
    encoders = tuple(
        dataclasses.replace(one, layers=LAYERS, output=LAYERS - one.skipped, adapted=LAYERS - one.layers + one.adapted)
        for one in family.encoders
    )
    return dataclasses.replace(family, encoders=encoders)


def texts_of(family: Family, layout: str) -> Texts:
    return Texts(encoders_of(family, layout), load_tokenizer(), tiny(family))
