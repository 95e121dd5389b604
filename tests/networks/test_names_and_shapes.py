"""Keys and shapes of a LoRA of SD 1.5 on both hosts, against those of sd-scripts."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.shapes import SD1_UNET
from lib_trainer.families import names
from lib_trainer.families.family import Encoder, Family
from lib_trainer.families.known import DEFAULT, FAMILIES
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.standalone.checkpoint import Components
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.host.text.texts import Texts
from lib_trainer.networks.adapters import AdapterSpec
from lib_trainer.networks.lora import LoraAdapter, LoraNetwork, make_adapter
from lib_trainer.ports import AdaptableModule
from tests.support import tiny_schedule
from tests.tiny_families import sgm_unet

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
        unet, text = openaimodel.UNetModel(**SD1_UNET), _clip_l()
    return LdmModel(unet, torch.nn.Identity(), Texts([text], None), tiny_schedule(), 0.18215)


def _diffusers_sd15() -> DiffusersModel:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders import single_file_utils

    config = single_file_utils.create_unet_diffusers_config_from_ldm(DEFAULT.config, {})
    config["attention_head_dim"] = 8
    with torch.device("meta"):
        unet, text = UNet2DConditionModel.from_config(config), _clip_l()
    return DiffusersModel(Components(unet, torch.nn.Identity(), (text,), None, tiny_schedule()), torch.device("meta"))


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


@pytest.fixture(scope="module", params=["SD 2.x, diffusers", "SDXL, diffusers", "SD 2.x, ldm", "SDXL, sgm"])
def others(request: pytest.FixtureRequest) -> tuple[str, list[AdaptableModule]]:
    """The published lists' name, and what may be adapted of the other families at their full size."""
    word, _, host = request.param.partition(", ")
    family = next(family for family in FAMILIES if family.word == word)
    return ("sd2" if family.v2 else "sdxl"), list(_of_family(family, host).adaptable_modules())


def _of_family(family: Family, host: str) -> Any:
    texts = tuple(_encoder(encoder) for encoder in family.encoders)
    if host == "diffusers":
        from diffusers import UNet2DConditionModel

        from lib_trainer.host.standalone.single_file import described_unet

        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(described_unet(family.config, family))
        parts = Components(unet, torch.nn.Identity(), texts, None, tiny_schedule(), family)
        return DiffusersModel(parts, torch.device("meta"))
    unet_class: Any = sgm_unet() if host == "sgm" else None
    if host == "sgm" and unet_class is None:
        pytest.skip("sgm's sources are in requirements/test-no-deps.txt; or set SGM_DIR or WEBUI_DIR")
    if unet_class is None:
        unet_class = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel").UNetModel
    assert family.config is not None
    section = family.config["model"]["params"]["unet_config"]["params"]
    size = {} if host == "sgm" else {"image_size": 32}
    with torch.device("meta"), contextlib.redirect_stdout(None):
        unet = unet_class(**section, **size, use_spatial_transformer=True, legacy=False)
    model = torch.nn.Identity()
    return LdmModel(unet, model, Texts(list(texts), None, family), tiny_schedule(), family.latent_scale, family=family)


def _encoder(encoder: Encoder) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=encoder.width,
        intermediate_size=4 * encoder.width,
        num_hidden_layers=encoder.layers,
        num_attention_heads=encoder.width // 64,
    )
    with torch.device("meta"):
        return CLIPTextModel(config)


def plain(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """A 1×1 convolution and a Linear are the same here: the list of SD 2.x has the former for its projections."""
    return {key: [count for count in shape if count > 1] for key, shape in shapes.items()}


def test_other_families_have_the_published_keys_and_shapes(
    others: tuple[str, list[AdaptableModule]], published: dict[str, dict[str, list[int]]]
) -> None:
    """A LoRA of rank 4, and for SDXL a LoCon with rank 2 in its spatial convolutions."""
    name, modules = others
    mine: dict[str, dict[str, list[int]]] = {"transformer": {}, "convolution": {}}
    for target in modules:
        spatial = isinstance(target.module, torch.nn.Conv2d) and target.module.kernel_size != (1, 1)
        adapter = LoraAdapter(target, 2 if spatial else 4, 1.0)
        mine[target.group][f"{adapter.key}.alpha"] = []
        mine[target.group][f"{adapter.key}.lora_down.weight"] = list(adapter.down.shape)
        mine[target.group][f"{adapter.key}.lora_up.weight"] = list(adapter.up.shape)
    assert plain(mine["transformer"]) == plain(published[f"{name}_lora_r4"])
    if f"{name}_locon_r4_c2" in published:
        assert plain(mine["transformer"] | mine["convolution"]) == plain(published[f"{name}_locon_r4_c2"])
    assert [target.key for target in modules] == sorted({target.key for target in modules})


@pytest.mark.parametrize("kind", ["loha", "lokr", "lora"])
def test_other_kinds_and_dora_go_by_the_same_names(kind: Any, others: tuple[str, list[AdaptableModule]]) -> None:
    """LyCORIS' suffixes behind the published keys, and what is made can be read."""
    _, modules = others
    some = [target for target in modules if target.group == "transformer"][::40]
    spec = AdapterSpec(kind, 4, 1.0, dora=True)
    with torch.device("meta"):
        network = LoraNetwork([make_adapter(target, spec) for target in some])
    names = {f"{one.key}.{suffix}": tensor for one in network for suffix, tensor in one.file_tensors().items()}
    assert {name.partition(".")[0] for name in names} == {target.key for target in some}
    suffixes = {"loha": "hada_w2_b", "lokr": "lokr_w1", "lora": "lora_up.weight"}
    assert all(f"{target.key}.{suffixes[kind]}" in names and f"{target.key}.dora_scale" in names for target in some)
    for target in some:
        width = target.module.weight.shape[1]
        assert names[f"{target.key}.dora_scale"].shape[:2] == (1, width)


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
        state = openaimodel.UNetModel(**SD1_UNET).state_dict()
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
