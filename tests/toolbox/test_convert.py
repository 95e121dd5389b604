"""Names of LoRA files: there and back is exact, and peft loads what is written for it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lib_trainer.families.known import FAMILIES
from lib_trainer.refusals import TrainerError
from lib_trainer.toolbox.layers import SCHEMES, Scheme
from lib_trainer.toolbox.opened import open_lora, read_name
from lib_trainer.toolbox.spelling import from_peft, notes_in, to_peft, with_notes
from tests.toolbox.loras import KINDS, adapted, lora, read, run
from tests.toolbox.models import checkpoint, save, unet_of

SD1, SD2, SDXL = FAMILIES
WAYS = [(one, other) for one, other in itertools.permutations(SCHEMES, 2)]


@pytest.mark.parametrize(("one", "other"), WAYS)
def test_there_and_back_is_exact(one: Scheme, other: Scheme, tmp_path: Path) -> None:
    model = {name: tensor for name, tensor in checkpoint(SDXL).items() if "_blocks.4." in name or "resblocks.0" in name}
    tensors = {name: tensor.half() for name, tensor in lora(SDXL, model, scheme="kohya").items()}
    tensors["bundle_emb.zorb.clip_l"] = torch.ones(1, 4)
    start = save(tmp_path / "start.safetensors", tensors, ss_network_dim="2")
    first = run("convert", lora=str(start), names=one, output=str(tmp_path / "first")).path
    there = run("convert", lora=str(first), names=other, output=str(tmp_path / "there")).path
    back = run("convert", lora=str(there), names=one, output=str(tmp_path / "back")).path
    before, after = read(first), read(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(before[name].dtype is after[name].dtype for name in before)
    again = read(run("convert", lora=str(back), names="kohya", output=str(tmp_path / "again")).path)
    assert {name: one.dtype for name, one in again.items()} == {name: one.dtype for name, one in tensors.items()}
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert open_lora(there).scheme == ("kohya" if other == "sgm" else other)  # which of SDXL are the same
    with safe_open(there, "pt") as file:
        assert file.metadata()["ss_network_dim"] == "2"
        assert file.metadata()["ss_network_alpha"] == ("2.0" if other == "peft" else "1.5")  # peft's is in the numbers


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("lora", "dora")])
def test_other_kinds_keep_their_tensors(kind: str, tmp_path: Path) -> None:
    model = {name: one for name, one in checkpoint(SD1).items() if "middle_block" in name or "layers.0." in name}
    tensors = lora(SD1, model, kind)
    start = save(tmp_path / "start.safetensors", tensors)
    there = run("convert", lora=str(start), names="peft", output=str(tmp_path / "there")).path
    assert not {name for name in read(there) if not name.startswith(("unet.", "text_encoder."))}
    back = read(run("convert", lora=str(there), names="kohya", output=str(tmp_path / "back")).path)
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], one) for name, one in tensors.items())


def test_peft_has_no_magnitudes_for_inputs(tmp_path: Path) -> None:
    model = {name: one for name, one in checkpoint(SD1).items() if "ff.net.2" in name}
    file = save(tmp_path / "a.safetensors", lora(SD1, model, "dora"))
    with pytest.raises(TrainerError, match=r"cannot have peft's names .* a magnitude for each input"):
        run("convert", lora=str(file), names="peft", output=str(tmp_path / "b"))
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("kind", ["lora", "dora out"])
def test_peft_computes_with_the_file_what_the_tool_puts_into_the_weights(kind: str, tmp_path: Path) -> None:
    """peft's own layers, on diffusers' UNet, loaded from the converted file."""
    peft = pytest.importorskip("peft")
    model = checkpoint(SD1)
    wanted = ("transformer_blocks.0.attn1", "in_layers.2")
    tensors = lora(SD1, {name: one for name, one in model.items() if any(part in name for part in wanted)}, kind)
    start = save(tmp_path / "a.safetensors", tensors)
    file = run("convert", lora=str(start), names="peft", output=str(tmp_path / "b")).path
    merged = run("inject", model=str(save(tmp_path / "m.safetensors", model)), loras=(str(start),),
                 output=str(tmp_path / "merged")).path  # fmt: skip
    state = {name.removeprefix("unet."): one for name, one in read(file).items() if name.startswith("unet.")}
    unet = unet_of(SD1)
    torch.manual_seed(0)
    for one in unet.parameters():
        torch.nn.init.normal_(one, 0, 0.3)
    _load(unet, model)
    names = sorted({name.partition(".lora_")[0] for name in state})
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=names, use_dora=kind != "lora")
    adapted_unet = peft.inject_adapter_in_model(config, unet)
    told = peft.set_peft_model_state_dict(adapted_unet, state)
    assert not told.unexpected_keys
    plain = unet_of(SD1)
    _load(plain, read(merged))
    x, context = torch.randn(1, 4, 16, 16), torch.randn(1, 3, 768)
    with torch.no_grad():
        torch.testing.assert_close(
            adapted_unet(x, 5, context).sample, plain(x, 5, context).sample, rtol=1e-3, atol=1e-3
        )


def _load(unet: Any, model: dict[str, torch.Tensor]) -> None:
    """A checkpoint's UNet into diffusers' module, by the list of layers."""
    from lib_trainer.toolbox.layers import layers_of

    modules = dict(unet.named_modules())
    with torch.no_grad():
        for layer in layers_of(SD1):
            module = modules.get(layer.published[1]) if layer.part == "unet" else None
            if module is None:
                continue
            module.weight.copy_(model[layer.tensor()])
            if module.bias is not None:
                module.bias.copy_(model[layer.tensor("bias")])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    st.integers(1, 9),
    st.floats(0.01, 300),
    st.integers(0, 2**31),
)
def test_alphas_go_into_the_numbers_and_come_out_exactly(
    dtype: torch.dtype, rank: int, alpha: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    own = {"lora_up.weight": torch.randn(5, rank, generator=draw).to(dtype),
           "lora_down.weight": torch.randn(rank, 4, generator=draw).to(dtype),
           "alpha": torch.tensor(alpha, dtype=dtype),
           "dora_scale": torch.randn(5, 1, generator=draw).to(dtype)}  # fmt: skip
    there, noted = to_peft(own)
    assert noted is not None and "alpha" not in there and there["dora_scale"].shape == (5,)
    scale = float(own["alpha"]) / rank
    torch.testing.assert_close(
        there["lora_up.weight"].double(), own["lora_up.weight"].double() * scale, rtol=1e-6, atol=0
    )
    kept = notes_in(with_notes({"x": noted}))["x"]
    back = from_peft({**there, "dora_scale": there["dora_scale"].reshape(-1, 1)}, kept)
    assert back.keys() == own.keys()
    for name, one in own.items():
        assert torch.equal(back[name], one) and back[name].dtype is one.dtype


MID = "mid_block.attentions.0.transformer_blocks.0.attn1"
OLD = {
    f"unet.{MID}.processor.to_q_lora.down.weight": ("to_q", "lora_down.weight"),
    f"unet.{MID}.processor.to_out_lora.up.weight": ("to_out.0", "lora_up.weight"),
    f"unet.{MID}.to_k.lora.down.weight": ("to_k", "lora_down.weight"),
    "base_model.model.mid_block.attentions.0.proj_in.lora_A.default.weight": ("proj_in", "lora_down.weight"),
    "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora.up.weight": ("out_proj", "lora_up.weight"),
    "text_encoder.text_model.encoder.layers.1.mlp.fc1.lora_linear_layer.down.weight": ("fc1", "lora_down.weight"),
    "base_model.model.text_model.encoder.layers.1.self_attn.q_proj.lora_B.weight": ("q_proj", "lora_up.weight"),
    "oft_unet_mid_block_attentions_0_proj_in.oft_blocks": ("proj_in", "oft_blocks"),
    "lora_te1_text_model_encoder_layers_0_mlp_fc2.alpha": ("fc2", "alpha"),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_older_names_are_read(name: str) -> None:
    found = read_name(name, SD1)
    assert found is not None
    layer, suffix, _ = found
    assert layer.published[1].endswith(OLD[name][0]) and suffix == OLD[name][1]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.word)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_family_is_told_whatever_the_names(family: Any, scheme: Scheme, tmp_path: Path) -> None:
    model = checkpoint(family)
    tensors = lora(family, {name: one for name, one in model.items() if "attn" in name}, scheme=scheme)
    assert open_lora(save(tmp_path / "a.safetensors", tensors)).family is family
    unet = {name: one for name, one in tensors.items() if "unet" in name}
    opened = open_lora(save(tmp_path / "b.safetensors", unet))
    assert opened.family is family and opened.scheme in (scheme, "kohya")
    assert len(opened.modules) == sum("attn" in one.home for one, _ in adapted(family, model) if one.part == "unet")
