"""The descriptions of families against published key lists and configurations, and against modules built by others."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.shapes import DIFFUSERS_UNETS
from lib_trainer.config import field_specs
from lib_trainer.families import names
from lib_trainer.families.family import Family
from lib_trainer.families.known import DEFAULT, FAMILIES
from lib_trainer.families.sd1 import SD1
from lib_trainer.families.sd2 import SD2
from lib_trainer.families.sdxl import SDXL
from lib_trainer.networks.blocks import PRESETS, learns, parse_blocks
from lib_trainer.refusals import ConfigError

KEYS = Path(__file__).parents[1] / "data" / "lora_keys.json.gz"
LISTS = {
    "sd15_lora_r4": SD1,
    "sd15_locon_r4_c2": SD1,
    "sd2_lora_r4": SD2,
    "sdxl_lora_r4": SDXL,
    "sdxl_locon_r4_c2": SDXL,
}
RESNETS = ("ResnetBlock2D", "Upsample2D", "Downsample2D")


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, list[int]]]:
    lists: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress(KEYS.read_bytes()))
    return lists


def unet_of(family: Family) -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**DIFFUSERS_UNETS[family.word])


def text_of(family: Family, part: str) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    own = family.encoder(part)  # type: ignore[arg-type]
    config = CLIPTextConfig(
        hidden_size=own.width, intermediate_size=4 * own.width, num_hidden_layers=own.adapted,
        num_attention_heads=own.width // 64,
    )  # fmt: skip
    with torch.device("meta"):
        return CLIPTextModel(config)


def adapted(family: Family) -> Iterator[tuple[str, str, Any]]:
    """(key, group, layer) of every layer that an adapter may wrap, from diffusers' and transformers' modules."""
    for prefix, owner in unet_of(family).named_modules():
        kind = type(owner).__name__
        if kind == "Transformer2DModel" or kind in RESNETS:
            for name, module in owner.named_modules(prefix=prefix):
                told = family.unet.published(name, "diffusers")
                if told is not None and isinstance(module, (nn.Linear, nn.Conv2d)):
                    yield family.unet.name_in_files(told), "convolution" if kind in RESNETS else "transformer", module
    for encoder in family.encoders:
        for name, module in text_of(family, encoder.part).named_modules():
            if isinstance(module, nn.Linear) and "encoder.layers." in name:
                yield encoder.name_in_files(name), "transformer", module


def shapes_of(key: str, layer: Any, spatial: int) -> dict[str, tuple[int, ...]]:
    kernel = getattr(layer, "kernel_size", (1, 1))
    rank = spatial if kernel != (1, 1) else 4
    inner, out = layer.weight.shape[1], layer.weight.shape[0]
    return {
        f"{key}.alpha": (),
        f"{key}.lora_down.weight": tuple(n for n in (rank, inner, *kernel) if n > 1),
        f"{key}.lora_up.weight": (out, rank),
    }


@pytest.mark.parametrize(("name", "group"), [("sd2_lora_r4", {"transformer"}), ("sdxl_lora_r4", {"transformer"}),
                                             ("sdxl_locon_r4_c2", {"transformer", "convolution"})])  # fmt: skip
def test_keys_and_shapes_are_the_published_ones(published: Any, name: str, group: set[str]) -> None:
    family = LISTS[name]
    mine: dict[str, tuple[int, ...]] = {}
    for key, kind, layer in adapted(family):
        if kind in group:
            mine |= shapes_of(key, layer, spatial=2)
    theirs = {key: tuple(n for n in shape if n > 1) for key, shape in published[name].items()}
    assert mine == theirs


@pytest.mark.parametrize("name", LISTS)
def test_every_published_key_is_of_a_block_or_an_encoder(published: Any, name: str) -> None:
    family, seen = LISTS[name], set()
    for key in {key.partition(".")[0] for key in published[name]}:
        block = family.unet.block_of_key(key)
        owners = [encoder.part for encoder in family.encoders if key.startswith(f"{encoder.key}_")]
        assert (block is None) == bool(owners) and len(owners) <= 1, key
        if block is not None:
            assert block in family.unet.blocks
            seen.add(block)
    if "locon" in name:
        assert seen == set(family.unet.blocks) - {"input_0"}  # a convolution before all blocks


@pytest.mark.parametrize("name", ["sd15_locon_r4_c2", "sdxl_locon_r4_c2"])
def test_convolutions_are_told_by_name(published: Any, name: str) -> None:
    down = {key.partition(".")[0]: shape for key, shape in published[name].items() if key.endswith("lora_down.weight")}
    plain = {key.partition(".")[0] for key in published[name.replace("locon_r4_c2", "lora_r4")]}
    for key, shape in down.items():
        assert names.is_spatial(key) == (shape[2:] == [3, 3]), key
        assert names.is_resnet(key) == (key not in plain), key


def test_both_layouts_name_the_same_module_of_sdxl() -> None:
    """ldm's names are made from diffusers', and diffusers' from those again."""
    compared = 0
    for module, _ in unet_of(SDXL).named_modules():
        own = names.ldm_name(module, [depth > 0 for depth in SDXL.unet.depths])
        if own is not None and own.count(".") > 2:
            assert names.diffusers_name(own) == module
            assert names.block_of(own) == names.block_of(module)
            compared += 1
    assert compared > 1800


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.word)
def test_blocks(family: Family, published: Any) -> None:
    sides = {"SD 1.x": 12, "SD 2.x": 12, "SDXL": 9}[family.word]
    assert family.unet.side == sides
    assert len(family.unet.blocks) == 2 * sides + 1
    assert family.stride == {12: 64, 9: 32}[sides]
    deep = {block for block in family.unet.blocks if learns("deep", block, family.unet)}
    numbers = (range(7, 12), range(5)) if sides == 12 else (range(7, 9), range(2))
    assert deep == {*(f"input_{n}" for n in numbers[0]), "middle", *(f"output_{n}" for n in numbers[1])}
    assert {block for block in family.unet.blocks if learns("shallow", block, family.unet)} == set(
        family.unet.blocks
    ) - deep
    assert all(learns(preset, "layer_11", family.unet) for preset in PRESETS)


def test_a_block_that_a_family_lacks_is_refused() -> None:
    assert parse_blocks("input_9=0.5", "blocks.rates", SD1.unet) == {"input_9": 0.5}
    with pytest.raises(ConfigError, match=r"blocks.rates: 'input_9=0.5' names a block that is not there"):
        parse_blocks("input_9=0.5", "blocks.rates", SDXL.unet)
    assert len(parse_blocks("output=0", "blocks.rates", SDXL.unet)) == 9


def test_the_help_names_the_blocks_that_each_family_has() -> None:
    """And what is named is what the check takes."""
    specs = field_specs()
    assert "N from 0 to 11 (SD 1.x, SD 2.x), 8 (SDXL)" in specs["blocks.rates"].help
    assert "N from 0 to 11 (SD 1.x), 22 (SD 2.x), 31 (SDXL)" in specs["blocks.rates"].help
    assert "input 7–8, middle, output 0–1 (SDXL)" in specs["blocks.preset"].help
    for family in FAMILIES:
        learn = [block for block in family.unet.blocks if learns("deep", block, family.unet)]
        sides = [[int(block.partition("_")[2]) for block in learn if side in block] for side in ("input", "output")]
        (first, *_, last), (low, *_, high) = sides
        assert family.unet.inner == f"input {first}–{last}, middle, output {low}–{high}"
        top = family.unet.side - 1
        assert parse_blocks(f"input_{top}=1, output_{top}=1", "blocks.rates", family.unet)
        with pytest.raises(ConfigError, match=rf"has input_0 to input_{top}, middle and output_0 to output_{top},"):
            parse_blocks(f"input_{top + 1}=1", "blocks.rates", family.unet)


def test_what_the_facts_say() -> None:
    """facts of the papers and of generative-models' configurations, written down a second time."""
    assert [(one.width, one.output, one.final_norm, one.padding, one.pooled) for one in SDXL.encoders] == [
        (768, 11, False, None, 0), (1280, 31, False, 0, 1280),
    ]  # fmt: skip
    assert sum(one.width for one in SDXL.encoders) == SDXL.unet.context == SDXL.width
    assert SDXL.unet.vector == SDXL.encoders[1].pooled + 6 * 256
    assert (SDXL.latent_scale, SD2.latent_scale, SD1.latent_scale) == (0.13025, 0.18215, 0.18215)
    assert SD2.encoders[0].width == SD2.unet.context
    assert (SD2.encoders[0].skipped, SD2.encoders[0].final_norm) == (1, True)
    assert SD1.encoders[0].skipped == 0
    assert SDXL.rates(1.0, 0.5, -1) == {"unet": 1.0, "te1": 0.5, "te2": 0.5}
    assert SDXL.rates(1.0, 0.5, 0.0) == {"unet": 1.0, "te1": 0.5, "te2": 0.0}
    assert SD1.rates(1.0, 0.5, -1) == {"unet": 1.0, "te1": 0.5}


def test_all_are_trained() -> None:
    assert [family.word for family in FAMILIES if family.trainable] == ["SD 1.x", "SD 2.x", "SDXL"]
    assert DEFAULT is SD1
    for family in FAMILIES:
        assert family.config is not None and family.config["model"]["params"]["scale_factor"] == family.latent_scale


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.word)
def test_tensors_of_a_file_belong_to_parts(family: Family) -> None:
    assert family.part_of("model.diffusion_model.out.0.weight") == "unet"
    assert family.part_of("first_stage_model.decoder.conv_in.weight") is None
    assert family.part_of("model_ema.decay") is None
    for encoder in family.encoders:
        assert encoder.prefix.startswith(encoder.root)
        assert family.part_of(f"{encoder.prefix}x.weight") == encoder.part
