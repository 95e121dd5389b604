"""What a model is, told by its tensors' names and shapes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lib_trainer.families import detect
from lib_trainer.families.detect import LookedAt, embedding_of, folder_model, inpaints, lora_of, model_in, model_of
from lib_trainer.families.known import EDITING, FAMILIES, FLUX, REFINER, SD3, SSD, checked
from lib_trainer.families.sd1 import SD1
from lib_trainer.families.sd2 import SD2
from lib_trainer.families.sdxl import SDXL
from lib_trainer.refusals import ModelError

UNET = "model.diffusion_model."
FIRST = f"{UNET}input_blocks.0.0.weight"
READS = f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
CLIP_L = "transformer.text_model.encoder.layers.0.mlp.fc1.weight"
OPEN_CLIP = "model.transformer.resblocks.0.mlp.c_fc.weight"
CHOOSE = "which is not supported yet: choose one of SD 1.x, SD 2.x or SDXL."
KEYS = Path(__file__).parents[1] / "data" / "lora_keys.json.gz"


def shapes(*names: str, channels: int = 4, width: int = 768) -> dict[str, tuple[int, ...]]:
    return {FIRST: (320, channels, 3, 3), READS: (640, width), **dict.fromkeys(names, (8, 8))}


FILES: dict[str, tuple[dict[str, tuple[int, ...]], Any]] = {
    "sd1": (shapes(f"cond_stage_model.{CLIP_L}"), SD1),
    "sd1, a miniature": (shapes(f"cond_stage_model.{CLIP_L}", width=32), SD1),
    "sd2": (shapes(f"cond_stage_model.{OPEN_CLIP}", width=1024), SD2),
    "sdxl": (shapes(f"conditioner.embedders.0.{CLIP_L}", f"conditioner.embedders.1.{OPEN_CLIP}", width=2048), SDXL),
    "refiner": (shapes(f"conditioner.embedders.0.{OPEN_CLIP}", width=1280), REFINER),
    "sdxl, whole": (shapes(f"conditioner.embedders.0.{CLIP_L}", f"{UNET}middle_block.1.norm.weight"), SDXL),
    "ssd-1b": (shapes(f"conditioner.embedders.0.{CLIP_L}", f"{UNET}middle_block.0.in_layers.0.weight"), SSD),
    "sdxl, inpainting": (shapes(f"conditioner.embedders.0.{CLIP_L}", channels=9), SDXL),
    "sd2, inpainting": (shapes(f"cond_stage_model.{OPEN_CLIP}", channels=9), SD2),
    "inpainting": (shapes(f"cond_stage_model.{CLIP_L}", channels=9), SD1),
    "pix2pix": (shapes(f"cond_stage_model.{CLIP_L}", channels=8), EDITING),
    "depth": (shapes(f"cond_stage_model.{OPEN_CLIP}", channels=5), EDITING),
    "sd3": ({f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (8, 8)}, SD3),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": (8, 8)}, FLUX),
    "flux, whole": ({f"{UNET}double_blocks.0.img_attn.qkv.weight": (8, 8)}, FLUX),
    "a LoRA": ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)}, None),
    "sd1, no text": (shapes(), SD1),
    "sd2, no text": (shapes(width=1024), SD2),
    "sdxl, no text": (shapes(width=2048), SDXL),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_told(name: str) -> None:
    held, wanted = FILES[name]
    assert model_of(held) is wanted
    assert inpaints(held) == ("inpainting" in name)


def test_a_loaded_model_is_told_also_behind_the_webuis_wrappers() -> None:
    def nested(path: str, leaf: nn.Module) -> nn.Module:
        for name in reversed(path.split(".")):
            outer = nn.Module()
            outer.add_module(name, leaf)
            leaf = outer
        return leaf

    for text, wanted in (("cond_stage_model.wrapped.transformer", SD1), ("cond_stage_model.wrapped.model", SD2)):
        root = nested(text, nn.Linear(2, 2))
        unet = nested("diffusion_model.input_blocks.0.0", nn.Conv2d(4, 8, 3))
        root.add_module("model", unet)
        assert model_in(root) is wanted


def test_a_model_is_looked_at_again_when_another_file_is_loaded_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The WebUI loads SSD-1B into SDXL's modules, and takes two of the middle's blocks out."""
    middle = nn.Module()
    for name in ("0", "1", "2"):
        middle.add_module(name, nn.Linear(2, 2))
    root = nn.ModuleDict({"model": nn.ModuleDict({"diffusion_model": nn.ModuleDict({"middle_block": middle})})})
    root["conditioner"] = nn.ModuleDict({"embedders": nn.ModuleList([nn.Linear(2, 2)])})
    looks: list[nn.Module] = []
    monkeypatch.setattr(detect, "model_in", lambda root: (looks.append(root), model_in(root))[1])
    seen = LookedAt()
    assert [seen.model(root, "xl.safetensors"), seen.model(root, "xl.safetensors")] == [SDXL, SDXL]
    assert len(looks) == 1
    del middle._modules["1"], middle._modules["2"]
    assert seen.model(root, "ssd.safetensors") is SSD
    assert len(looks) == 2


def test_a_folder_is_told() -> None:
    assert folder_model({}, several=False) is SD1
    assert folder_model({}, several=True) is SDXL
    assert folder_model({"use_linear_projection": True}, several=False) is SD2
    assert folder_model({"in_channels": 9}, several=False) is SD1
    assert folder_model({"in_channels": 9, "addition_embed_type": "text_time"}, several=True) is SDXL
    assert folder_model({"in_channels": 8}, several=False) is EDITING
    assert folder_model({"addition_embed_type": "text_time"}, several=True) is SDXL
    assert folder_model({"addition_embed_type": "text_time"}, several=False) is REFINER


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (SSD, f"x.safetensors is of SSD-1B, {CHOOSE}"),
        (REFINER, f"x.safetensors is of the SDXL refiner, {CHOOSE}"),
        (FLUX, f"x.safetensors is of Flux, {CHOOSE}"),
        (EDITING, "x.safetensors is made for editing or depth: choose one for txt2img or inpainting."),
    ],
)
def test_what_cannot_be_trained_is_named(found: Any, sentence: str) -> None:
    with pytest.raises(ModelError) as caught:
        checked(found, Path("x.safetensors"))
    assert str(caught.value) == sentence
    assert all(checked(family) is family for family in FAMILIES)
    with pytest.raises(ModelError) as caught:
        checked(found)
    assert str(caught.value).startswith("The loaded checkpoint is ") and ": load one " in str(caught.value)


def test_lora_files_are_told_by_their_keys() -> None:
    lists = json.loads(gzip.decompress(KEYS.read_bytes()))
    assert lora_of(lists["sdxl_lora_r4"], {}) is SDXL
    assert lora_of([key for key in lists["sdxl_lora_r4"] if "lora_te" not in key], {}) is SDXL
    assert lora_of(lists["sd15_lora_r4"], {}) is SD1
    assert lora_of(lists["sd2_lora_r4"], {"ss_v2": "True"}) is SD2
    assert lora_of(lists["sd2_lora_r4"], {}, reads=1024) is SD2
    assert lora_of([], {"ss_base_model_version": "sdxl_base_v0-9"}) is SDXL
    assert lora_of(["lora_unet_output_blocks_1_1_proj_in.lora_down.weight"], {"ss_base_model_version": "sd_v1"}) is SD1
    assert lora_of(["lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"], {}) is None


def test_embeddings_are_told_by_their_tensors() -> None:
    assert embedding_of({"clip_l": 768, "clip_g": 1280}) is SDXL
    assert embedding_of({"emb_params": 768}) is SD1
    assert embedding_of({"any name": 1024}) is SD2
    assert embedding_of({"emb_params": 32}) is None
    assert all(encoder.rows for family in FAMILIES for encoder in family.encoders)


def test_encoders_decide_what_the_unet_reads() -> None:
    """Penultimate without a norm, and with one, against transformers' own hidden states."""
    import dataclasses

    from transformers import CLIPTextConfig, CLIPTextModel

    from lib_trainer.host.standalone.tokenizer import load_tokenizer
    from lib_trainer.host.text.texts import Texts

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = CLIPTextModel(CLIPTextConfig(**sizes)).eval()
    caption, tokenizer = ["a red hat"], load_tokenizer()
    ids = tokenizer(caption, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        for encoder, place, normed in ((SD1.encoders[0], -1, True), (SDXL.encoders[0], -2, False)):
            text = Texts([model], tokenizer, dataclasses.replace(SD1, encoders=(encoder,)))
            states = model(ids, output_hidden_states=True).hidden_states
            wanted = model.text_model.final_layer_norm(states[place]) if normed else states[place]
            with text.lean():
                lean = text.encode(caption, 1, 1).context
            torch.testing.assert_close(text.encode(caption, 1, 1).context, wanted)
            torch.testing.assert_close(lean, wanted, rtol=1e-4, atol=1e-5)
            deeper = text.encode(caption, 2, 1).context
            wanted = model.text_model.final_layer_norm(states[place - 1]) if normed else states[place - 1]
            torch.testing.assert_close(deeper, wanted)
        zeros = dataclasses.replace(SDXL.encoders[0], padding=0)
        padded = Texts([model], tokenizer, dataclasses.replace(SD1, encoders=(zeros,)))
        ids = torch.where(torch.arange(77) > 4, 0, ids)  # a begin mark, three words, an end mark
        torch.testing.assert_close(
            padded.encode(caption, 1, 1).context, model(ids, output_hidden_states=True).hidden_states[-2]
        )
