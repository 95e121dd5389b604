"""Keys and shapes of a LoRA of SD 1.5 on both hosts, against those of sd-scripts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer.families import names
from lib_trainer.families.known import DEFAULT
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.standalone.checkpoint import Components
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.host.text.texts import Texts
from lib_trainer.networks.lora import LoraAdapter, LoraNetwork
from lib_trainer.ports import AdaptableModule
from tests.support import SD15_UNET, tiny_schedule

KEYS = Path(__file__).parents[1] / "data" / "lora_keys.json.gz"


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, list[int]]]:
    families: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress(KEYS.read_bytes()))
    return families


def _clip_l() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    return CLIPTextModel(config)


def _ldm_sd15() -> LdmModel:
    openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel")
    with torch.device("meta"):
        unet, text = openaimodel.UNetModel(**SD15_UNET), _clip_l()
    return LdmModel(unet, torch.nn.Identity(), Texts([text], None), tiny_schedule(), 0.18215)


def _diffusers_sd15() -> DiffusersModel:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders import single_file_utils

    config = single_file_utils.create_unet_diffusers_config_from_ldm(DEFAULT.config, {})
    config["attention_head_dim"] = 8
    with torch.device("meta"):
        unet, text = UNet2DConditionModel.from_config(config), _clip_l()
    return DiffusersModel(Components(unet, torch.nn.Identity(), text, None, tiny_schedule()), torch.device("meta"))


@pytest.fixture(scope="module", params=[_ldm_sd15, _diffusers_sd15], ids=["ldm", "diffusers"])
def modules(request: pytest.FixtureRequest) -> list[AdaptableModule]:
    return list(request.param().adaptable_modules())


def test_a_lora_has_the_published_keys_and_shapes(
    modules: list[AdaptableModule], published: dict[str, dict[str, list[int]]]
) -> None:
    chosen = [target for target in modules if target.group == "transformer"]
    network = LoraNetwork([LoraAdapter(target, 4, 1.0) for target in chosen])
    mine = {}
    for adapter in network:
        mine[f"{adapter.key}.alpha"] = []
        mine[f"{adapter.key}.lora_down.weight"] = list(adapter.down.shape)
        mine[f"{adapter.key}.lora_up.weight"] = list(adapter.up.shape)
    assert (len(network), len(mine)) == (264, 792)
    assert network.parts() == {"unet": 192, "te1": 72}
    assert mine == published["sd15_lora_r4"]


def test_the_convolutions_are_those_that_locon_adds(
    modules: list[AdaptableModule], published: dict[str, dict[str, list[int]]]
) -> None:
    mine: dict[str, list[int]] = {}
    for target in modules:
        if target.group == "convolution":
            spatial = isinstance(target.module, torch.nn.Conv2d) and target.module.kernel_size != (1, 1)
            adapter = LoraAdapter(target, 2 if spatial else 4, 1.0)  # sd-scripts gives the others the linear rank
            mine[f"{adapter.key}.alpha"] = []
            mine[f"{adapter.key}.lora_down.weight"] = list(adapter.down.shape)
            mine[f"{adapter.key}.lora_up.weight"] = list(adapter.up.shape)
    added = {k: v for k, v in published["sd15_locon_r4_c2"].items() if k not in published["sd15_lora_r4"]}
    assert len(added) == 3 * (278 - 192)
    assert mine == added


def test_modules_come_sorted_by_key_and_are_all_different(modules: list[AdaptableModule]) -> None:
    keys = [target.key for target in modules]
    assert keys == sorted(set(keys))
    assert len({id(target.module) for target in modules}) == len(modules)


def test_both_hosts_name_the_same_blocks() -> None:
    ldm = {target.key: (target.block, target.group, target.part) for target in _ldm_sd15().adaptable_modules()}
    other = {target.key: (target.block, target.group, target.part) for target in _diffusers_sd15().adaptable_modules()}
    assert ldm == other
    unet_blocks = {block for block, _, part in ldm.values() if part == "unet"}
    numbered = {f"input_{i}" for i in range(1, 12)} | {f"output_{i}" for i in range(12)}
    assert unet_blocks == numbered | {"middle"}
    assert {block for block, _, part in ldm.values() if part == "te1"} == {f"layer_{i}" for i in range(12)}


def test_a_block_of_ldm_is_the_block_that_its_name_says() -> None:
    """`input_blocks.4…` must be said to stand in `input_4`: read off ldm's own module names."""
    model = _ldm_sd15()
    own = {id(module): name for name, module in model.unet.named_modules()}
    for target in model.adaptable_modules():
        if target.part == "unet":
            first, _, rest = own[id(target.module)].partition(".")
            number = rest.split(".")[0]
            said = "middle" if first == "middle_block" else f"{first.removesuffix('_blocks')}_{number}"
            assert target.block == said, target.key


@pytest.mark.parametrize(
    ("ldm", "diffusers"),
    [
        ("input_blocks.1.1.proj_in", "down_blocks.0.attentions.0.proj_in"),
        ("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks.4.0.skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
        ("input_blocks.11.0.out_layers.3", "down_blocks.3.resnets.1.conv2"),
        ("middle_block.0.in_layers.2", "mid_block.resnets.0.conv1"),
        ("middle_block.1.proj_out", "mid_block.attentions.0.proj_out"),
        ("middle_block.2.emb_layers.1", "mid_block.resnets.1.time_emb_proj"),
        ("output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
        (
            "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0",
            "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0",
        ),
    ],
)
def test_names_of_blocks(ldm: str, diffusers: str) -> None:
    assert names.diffusers_name(ldm) == diffusers


@pytest.mark.parametrize("name", ["input_blocks.0.0", "time_embed.0", "out.2", "input_blocks.3.0.other"])
def test_modules_outside_the_blocks_have_no_name(name: str) -> None:
    assert names.diffusers_name(name) is None


def test_names_agree_with_diffusers_own_converter() -> None:
    """Every weight of ldm's blocks is renamed as diffusers' converter of checkpoints renames it."""
    from diffusers.loaders import single_file_utils

    openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel")
    with torch.device("meta"):
        state = openaimodel.UNetModel(**SD15_UNET).state_dict()
    numbered = {f"model.diffusion_model.{name}": torch.full((1,), float(i)) for i, name in enumerate(state)}
    config = single_file_utils.create_unet_diffusers_config_from_ldm(DEFAULT.config, {})
    converted = single_file_utils.convert_ldm_unet_checkpoint(dict(numbered), config)
    theirs = {int(value): name for name, value in converted.items()}
    compared = 0
    for number, name in enumerate(state):
        module, _, leaf = name.rpartition(".")
        mine = names.diffusers_name(module)
        if mine is not None:
            assert f"{mine}.{leaf}" == theirs[number]
            compared += 1
    assert compared > 600


def test_a_module_outside_the_blocks_has_no_block() -> None:
    with pytest.raises(ValueError, match="conv_in"):
        DEFAULT.unet.block_of("conv_in")


def test_text_encoder_keys() -> None:
    key = DEFAULT.encoders[0].name_in_files("text_model.encoder.layers.11.self_attn.q_proj")
    assert key == "lora_te_text_model_encoder_layers_11_self_attn_q_proj"
