"""Names of modules in LoRA files and checkpoints, against published lists and against the modules of others."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.shapes import DIFFUSERS_UNETS, SD1_UNET
from lib_trainer.families.family import Family
from lib_trainer.families.known import FAMILIES
from lib_trainer.families.sd1 import SD1
from lib_trainer.families.sd2 import SD2
from lib_trainer.families.sdxl import SDXL
from lib_trainer.toolbox.layers import SCHEMES, by_name, by_tensor, layers_of

KEYS = Path(__file__).parents[1] / "data" / "lora_keys.json.gz"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.word)
def test_names_are_unique_and_lead_back(family: Family) -> None:
    layers = layers_of(family)
    for scheme in SCHEMES:
        names = Counter(layer.name(scheme) for layer in layers)
        assert max(names.values()) == 1
        assert all(by_name(family)[layer.name(scheme)] is layer for layer in layers)
    fused = [own for own in by_tensor(family).values() if len(own) > 1]
    assert all([layer.third for layer in own] == [0, 1, 2] for own in fused)
    assert len(fused) == sum(one.layers for one in family.encoders if one.layout == "open_clip")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.word)
def test_peft_names_are_those_of_diffusers_and_transformers(family: Family) -> None:
    """Every module with weights of diffusers' UNet and of transformers' encoders is in the list, and no other."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**DIFFUSERS_UNETS[family.word])
    theirs = {f"unet.{name}" for name, one in unet.named_modules() if getattr(one, "weight", None) is not None}
    mine = {layer.name("peft") for layer in layers_of(family) if layer.part == "unet"}
    assert theirs <= mine
    assert {name.rpartition(".")[2] for name in mine - theirs} <= {"conv_shortcut", "linear_1", "linear_2"}
    for encoder, component in zip(family.encoders, ("text_encoder", "text_encoder_2")):
        config = CLIPTextConfig(hidden_size=64, num_hidden_layers=encoder.layers, num_attention_heads=1)
        with torch.device("meta"):
            text = CLIPTextModel(config)
        weights = {f"{component}.{n}" for n, one in text.named_modules() if getattr(one, "weight", None) is not None}
        tables = {name for name in weights if "embedding" in name}
        assert {one.name("peft") for one in layers_of(family) if one.part == encoder.part} == weights - tables


PUBLISHED = [("sd15_locon_r4_c2", SD1), ("sd2_lora_r4", SD2), ("sdxl_locon_r4_c2", SDXL)]


@pytest.mark.parametrize(("name", "family"), PUBLISHED)
def test_kohya_names_are_the_published_ones(name: str, family: Family) -> None:
    published = {key.partition(".")[0] for key in json.loads(gzip.decompress(KEYS.read_bytes()))[name]}
    mine = {layer.name("kohya") for layer in layers_of(family) if layer.adapted}
    assert published <= mine
    if "locon" in name:
        beyond = {key for key in mine - published if not key.endswith(("skip_connection", "conv_shortcut"))}
        assert beyond == set()


def test_checkpoint_names_are_those_of_ldm() -> None:
    """ldm's own UNet with SD 1.5's structure has every module of the list but shortcuts that it does not need."""
    openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel")
    with torch.device("meta"):
        unet = openaimodel.UNetModel(**SD1_UNET)
    theirs = {f"{SD1.unet.prefix}{name}" for name in unet.state_dict() if name.endswith("weight")}
    mine = {layer.tensor() for layer in layers_of(SD1) if layer.part == "unet" and "label_emb" not in layer.home}
    assert theirs <= mine
    assert all("skip_connection" in name for name in mine - theirs)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.word)
def test_kernels_are_those_of_diffusers(family: Family) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        modules: dict[str, Any] = dict(UNet2DConditionModel(**DIFFUSERS_UNETS[family.word]).named_modules())
    for layer in layers_of(family):
        module = modules.get(layer.published[1]) if layer.part == "unet" else None
        if module is not None:
            assert layer.kernel == getattr(module, "kernel_size", (0,))[0], layer
            if layer.kernel:
                assert layer.shape(module.out_channels, module.weight.numel()) == tuple(module.weight.shape)
