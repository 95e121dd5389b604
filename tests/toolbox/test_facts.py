"""What a file is: diffusers' names against diffusers' own tables, kinds, predictions, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import save_file

from lib_trainer.families.family import Family
from lib_trainer.refusals import ModelError
from lib_trainer.toolbox import folders
from lib_trainer.toolbox.facts import check_alike, facts_of
from lib_trainer.toolbox.source import open_source
from tests.toolbox.models import SD1, SD2, SDXL, Tensors, checkpoint, parts_of, save, save_folder

FAMILIES = pytest.mark.parametrize("family", [SD1, SD2, SDXL], ids=lambda one: one.word)


@FAMILIES
def test_diffusers_own_tables_read_our_single_file_back(family: Family) -> None:
    """UNet and VAE: what we name in CompVis' way becomes diffusers' model again under its own conversion."""
    made, parts = checkpoint(family), parts_of(family)
    for part, convert in (("unet", theirs.convert_ldm_unet_checkpoint), ("vae", theirs.convert_ldm_vae_checkpoint)):
        config = dict(parts[part].config)
        back = convert(dict(made), config)
        wanted = parts[part].state_dict()
        assert back.keys() == wanted.keys()
        assert all(torch.equal(back[name], wanted[name]) for name in wanted)


def test_diffusers_own_table_reads_our_openclip_back() -> None:
    encoder, made = SDXL.encoders[1], checkpoint(SDXL)
    module = parts_of(SDXL)["text_encoder_2"]
    back = theirs.convert_open_clip_checkpoint(module, dict(made), prefix=encoder.prefix)
    wanted = {name: one for name, one in module.state_dict().items() if not name.endswith("position_ids")}
    assert back.keys() == wanted.keys() and all(torch.equal(back[name], wanted[name]) for name in wanted)


@FAMILIES
@pytest.mark.parametrize("ending", ["safetensors", "ckpt", "folder", "half"])
def test_a_model_is_the_same_in_every_container(family: Family, ending: str, tmp_path: Path) -> None:
    made = {name: one for name, one in checkpoint(family).items() if not name.endswith("position_ids")}
    if ending == "folder":
        path = save_folder(tmp_path / "folder", family)
    elif ending == "half":
        path = save(tmp_path / "x.safetensors", {name: one.half() for name, one in made.items()})
        made = {name: one.half() for name, one in made.items()}
    elif ending == "ckpt":
        path = tmp_path / "x.ckpt"
        torch.save({"state_dict": made, "global_step": 3}, path)
    else:
        path = save(tmp_path / "x.safetensors", made)
    source = open_source(path)
    assert source.tensors.keys() == made.keys()
    assert all(torch.equal(source.raw(name), made[name]) for name in made)
    facts = facts_of(source)
    assert (facts.kind, facts.family, facts.channels) == ("checkpoint", family, 4)
    assert facts.components == (*family.parts, "vae")


def lora(*names: str) -> Tensors:
    return {f"lora_unet_down_blocks_0_attentions_0_proj_in{name}": torch.ones(2, 2) for name in names}


KINDS: list[tuple[Tensors, str]] = [
    (lora(".lora_down.weight", ".lora_up.weight", ".alpha"), "LoRA"),
    ({"unet.down_blocks.0.attentions.0.to_q.lora_A.weight": torch.ones(2, 2)}, "LoRA"),
    ({"lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": torch.ones(2, 2, 3, 3)}, "LoCon"),
    (lora(".hada_w1_a", ".hada_w1_b"), "LoHa"),
    (lora(".lokr_w1", ".lokr_w2"), "LoKr"),
    (lora(".oft_blocks"), "OFT"),
    (lora(".diff"), "difference"),
    ({"emb_params": torch.ones(2, 768)}, "embedding"),
    ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, "embedding"),
    ({"control_model.time_embed.0.weight": torch.ones(2)}, "ControlNet"),
    ({"controlnet_cond_embedding.conv_in.weight": torch.ones(2), "conv_in.weight": torch.ones(2)}, "ControlNet"),
    ({"image_proj.proj.weight": torch.ones(2), "ip_adapter.1.to_k_ip.weight": torch.ones(2)}, "IP-Adapter"),
    ({"down_blocks.0.motion_modules.0.x": torch.ones(2)}, "motion module"),
    ({"encoder.conv_in.weight": torch.ones(2)}, "VAE"),
    ({"first_stage_model.decoder.conv_in.weight": torch.ones(2)}, "VAE"),
    ({"text_model.embeddings.token_embedding.weight": torch.ones(2)}, "text encoder"),
    ({"conv_in.weight": torch.ones(2), "down_blocks.0.resnets.0.conv1.weight": torch.ones(2)}, "UNet"),
    ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(8, 4, 3, 3)}, "UNet"),
    ({"anything": torch.ones(2)}, ""),
]


@pytest.mark.parametrize("tensors, kind", KINDS, ids=[f"{kind}-{number}" for number, (_, kind) in enumerate(KINDS)])
def test_kinds(tensors: Tensors, kind: str, tmp_path: Path) -> None:
    assert facts_of(open_source(save(tmp_path / "x.safetensors", tensors))).kind == kind


def test_kinds_of_pickles(tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": torch.ones(2, 1024)}, "name": "x"}, tmp_path / "e.pt")
    facts = facts_of(open_source(tmp_path / "e.pt"))
    assert (facts.kind, facts.family) == ("embedding", SD2)
    torch.save({768: [{"linear.0.weight": torch.ones(2, 2)}] * 2, "name": "h"}, tmp_path / "h.pt")
    assert facts_of(open_source(tmp_path / "h.pt")).kind == "hypernetwork"


def test_what_a_model_predicts(tmp_path: Path) -> None:
    def told(name: str, tensors: Tensors, yaml: str = "", **metadata: str) -> tuple[Any, bool]:
        path = save(tmp_path / f"{name}.safetensors", tensors, **metadata)
        if yaml:
            path.with_suffix(".yaml").write_text(yaml)
        facts = facts_of(open_source(path))
        return facts.prediction, facts.zero_terminal

    xl = {name: one for name, one in checkpoint(SDXL).items() if "time_embed" in name or "conditioner" in name}
    assert told("plain", xl) == ("epsilon", False)
    assert told("keys", xl | {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}) == ("v", True)
    assert told("metadata", xl, **{"modelspec.prediction_type": "v"}) == ("v", False)
    assert told("yaml", xl, 'model:\n  params:\n    parameterization: "v"\n') == ("v", False)
    telling = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    two = {name: one for name, one in checkpoint(SD2).items() if "time_embed" in name or "cond_stage" in name}
    assert told("two", two | {telling: torch.linspace(-0.05, 0.05, 8)}) == ("epsilon", False)
    assert told("two v", two | {telling: torch.linspace(-0.5, 0.5, 8)}) == ("v", False)
    folder = save_folder(tmp_path / "folder", SD2, v=True)
    assert facts_of(open_source(folder)).prediction == "v"


def test_models_that_do_not_go_together_are_refused_by_name(tmp_path: Path) -> None:
    one = open_source(save(tmp_path / "one.safetensors", checkpoint(SD1)))
    other = open_source(save(tmp_path / "xl.safetensors", checkpoint(SDXL)))
    with pytest.raises(ModelError, match=r"xl\.safetensors is of SDXL and .*one\.safetensors of SD 1\.x"):
        check_alike([one, other])
    v = open_source(save(tmp_path / "v.safetensors", checkpoint(SDXL) | {"v_pred": torch.empty(0)}))
    with pytest.raises(ModelError, match=r"predicts v and .* predicts epsilon"):
        check_alike([other, v])
    zero = open_source(save(tmp_path / "z.safetensors", checkpoint(SDXL) | {"ztsnr": torch.empty(0)}))
    with pytest.raises(ModelError, match="zero terminal SNR"):
        check_alike([other, zero])
    first = "model.diffusion_model.input_blocks.0.0.weight"
    for tensors, model in ((checkpoint(SD1), one), (checkpoint(SDXL), other)):
        paint = open_source(save(tmp_path / "p.safetensors", tensors | {first: torch.ones(8, 9, 3, 3)}))
        with pytest.raises(ModelError, match=r"p\.safetensors has 9 input channels and that of .* 4"):
            check_alike([model, paint])
    shape = open_source(save(tmp_path / "s.safetensors", checkpoint(SD1) | {first: torch.ones(9, 4, 3, 3)}))
    with pytest.raises(ModelError, match=r"input_blocks\.0\.0\.weight is 9×4×3×3 in"):
        check_alike([one, shape])
    save_file({"a": torch.ones(1)}, tmp_path / "no.safetensors")
    with pytest.raises(ModelError, match="is no checkpoint"):
        check_alike([one, open_source(tmp_path / "no.safetensors")])
    assert [facts.family for facts in check_alike([one, one])] == [SD1, SD1]


VARIANTS = [
    (["x", "x.fp16", "x.non_ema"], ["x"]),
    (["x.non_ema", "x.fp16", "x.bf16"], ["x.fp16"]),
    (["x.non_ema", "x.other"], ["x.other"]),
    (["x.non_ema"], ["x.non_ema"]),
    (["x-00001-of-00002", "x-00002-of-00002", "x-00001-of-00002.fp16", "x-00002-of-00002.fp16"],
     ["x-00001-of-00002", "x-00002-of-00002"]),
    (["x.fp16-00001-of-00002", "x.fp16-00002-of-00002", "x.non_ema"],
     ["x.fp16-00001-of-00002", "x.fp16-00002-of-00002"]),
    (["x.fp16", "x.fp16-00001-of-00002"], ["x.fp16"]),
    (["notes"], []),
]  # fmt: skip


@pytest.mark.parametrize(("names", "read"), VARIANTS)
def test_of_a_folders_variants_one_is_read(names: list[str], read: list[str], tmp_path: Path) -> None:
    """Weights of two variants, as those of `fp16` and `non_ema`, are not mixed."""
    called = "diffusion_pytorch_model"
    unet = save_folder(tmp_path / "folder", SD1) / "unet"
    whole = unet / f"{called}.safetensors"
    data = whole.read_bytes()
    whole.unlink()
    for name in names:
        (unet / f"{name.replace('x', called, 1)}.safetensors").write_bytes(data)
    seen: list[str] = []
    original = folders._read

    def noted(path: Path) -> Any:
        if path.parent == unet:
            seen.append(path.stem)
        return original(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "_read", noted)
        if read:
            open_source(tmp_path / "folder")
        else:
            with pytest.raises(ModelError, match="unet"):
                open_source(tmp_path / "folder")
    assert seen == [name.replace("x", called, 1) for name in read]
