"""LoRAs into checkpoints: every kind, family and block, against formulas in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_trainer.families.family import Family
from lib_trainer.families.known import FAMILIES
from lib_trainer.toolbox.tools import TOOLS
from tests.toolbox.loras import KINDS, adapted, changed, lora, own_of, read, run, weight
from tests.toolbox.models import checkpoint, save

SD1, SD2, SDXL = FAMILIES
UNET = SD1.unet.prefix


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((SDXL, kind) for kind in KINDS), (SD1, "core"), (SD1, "oft"), (SD2, "lokr"), (SD2, "dora")],
    ids=lambda one: getattr(one, "word", one),
)
def test_every_kind_makes_the_weight_of_its_formula(family: Family, kind: str, tmp_path: Path) -> None:
    model = checkpoint(family)
    tensors = lora(family, model, kind)
    base, file = save(tmp_path / "base.safetensors", model), save(tmp_path / "lora.safetensors", tensors)
    done = run("inject", model=str(base), loras=(f"{file}:0.4",), output=str(tmp_path / "out"))
    result = read(done.path)
    assert sorted(result) == sorted(model)
    touched = set()
    for layer, _ in adapted(family, model):
        before = weight(model, layer)
        wanted = before + 0.4 * (changed(kind, own_of(tensors, layer), before) - before)
        torch.testing.assert_close(weight(result, layer), wanted, rtol=1e-5, atol=1e-5)
        assert (wanted - before).abs().max() > 1e-3
        touched.add(layer.tensor())
    assert all(torch.equal(result[name], one) for name, one in model.items() if name not in touched)


def test_strengths_are_those_of_prompts_and_blocks(tmp_path: Path) -> None:
    model = checkpoint(SD1)
    tensors = lora(SD1, model)
    base, file = save(tmp_path / "base.safetensors", model), save(tmp_path / "lora.safetensors", tensors)
    meant = f"{file}:te=0.25:unet=0.5:lbw=middle=0, input_4=2"
    result = read(run("inject", model=str(base), loras=(meant,), output=str(tmp_path / "out")).path)
    for layer, _ in adapted(SD1, model):
        before = weight(model, layer)
        strength = 0.25 if layer.part == "te1" else {"middle": 0.0, "input_4": 1.0}.get(layer.block, 0.5)
        wanted = before + strength * (changed("lora", own_of(tensors, layer), before) - before)
        torch.testing.assert_close(weight(result, layer), wanted, rtol=1e-5, atol=1e-5)


def test_several_files_change_what_those_before_have_left(tmp_path: Path) -> None:
    model = checkpoint(SDXL)
    base = save(tmp_path / "base.safetensors", model)
    first, second = lora(SDXL, model, "loha"), lora(SDXL, model, "dora", seed=2)
    files = save(tmp_path / "a.safetensors", first), save(tmp_path / "b.safetensors", second)
    result = read(run("inject", model=str(base), loras=tuple(map(str, files)), output=str(tmp_path / "out")).path)
    for layer, _ in adapted(SDXL, model):
        between = changed("loha", own_of(first, layer), weight(model, layer))
        wanted = changed("dora", own_of(second, layer), between)
        torch.testing.assert_close(weight(result, layer), wanted, rtol=1e-5, atol=1e-5)


def test_norms_and_biases_are_added(tmp_path: Path) -> None:
    model = checkpoint(SD1)
    base = save(tmp_path / "base.safetensors", model)
    norm, linear = "down_blocks_0_resnets_0_norm1", "down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2"
    tensors = {
        f"lora_unet_{norm}.w_norm": torch.arange(8.0), f"lora_unet_{norm}.b_norm": torch.ones(8),
        f"lora_unet_{linear}.diff": torch.ones(8, 32), f"lora_unet_{linear}.diff_b": 2 * torch.ones(8),
    }  # fmt: skip
    file = save(tmp_path / "lora.safetensors", tensors)
    result = read(run("inject", model=str(base), loras=(f"{file}:0.5",), output=str(tmp_path / "out")).path)
    places = "input_blocks.1.0.in_layers.0", "input_blocks.1.1.transformer_blocks.0.ff.net.2"
    moved = {
        f"{place}.{name}": result[f"{UNET}{place}.{name}"] - model[f"{UNET}{place}.{name}"]
        for place in places for name in ("weight", "bias")
    }  # fmt: skip
    torch.testing.assert_close(moved[f"{places[0]}.weight"], 0.5 * torch.arange(8.0))
    torch.testing.assert_close(moved[f"{places[0]}.bias"], 0.5 * torch.ones(8))
    torch.testing.assert_close(moved[f"{places[1]}.weight"], 0.5 * torch.ones(8, 32))
    torch.testing.assert_close(moved[f"{places[1]}.bias"], torch.ones(8))


def test_what_a_checkpoint_has_no_place_for_is_said(tmp_path: Path) -> None:
    model = checkpoint(SD1)
    base = save(tmp_path / "base.safetensors", model)
    more = {"bundle_emb.zorb.clip_l": torch.ones(2, 8), "what.is.this": torch.ones(1)}
    file = save(tmp_path / "lora.safetensors", lora(SD1, model) | more)
    tool = TOOLS["inject"]
    settings = tool.made({"model": str(base), "loras": (str(file),), "output": str(tmp_path / "out")})
    told = "\n".join(map(str, tool.prepare(settings).lines))
    assert f"{file} brings the embeddings zorb along, which stay in it" in told and "what.is.this" in told


def test_the_result_is_rounded_once_and_says_what_it_is(tmp_path: Path) -> None:
    """In fp16 a hundred small changes that one by one are lost add up, and metadata, markers and yaml are carried."""
    model = {name: one.half() if one.is_floating_point() else one for name, one in checkpoint(SD1).items()}
    model["v_pred"] = torch.empty(0)
    base = save(tmp_path / "base.safetensors", model, note="kept", **{"modelspec.hash_sha256": "0x1"})
    base.with_suffix(".yaml").write_text("model: {}")
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    step = float(model[name].abs().max()) * 2**-14
    files = [save(tmp_path / f"{n}.safetensors", {f"{key}.diff": torch.full((8, 8), step)}) for n in range(100)]
    done = run("inject", model=str(base), loras=tuple(map(str, files)), output=str(tmp_path / "out"))
    result = read(done.path)
    assert result[name].dtype is torch.float16
    wanted = (model[name].double() + 100 * step).half()
    assert torch.equal(result[name], wanted) and not torch.equal(wanted, model[name])
    beside = done.path.with_suffix(".yaml")
    assert "v_pred" in result and beside.read_text() == "model: {}"
    beside.write_text("mine")
    run("inject", model=str(base), loras=(str(files[0]),), output=str(tmp_path / "out"), existing="replace")
    assert beside.read_text() == "model: {}", "what described the file that was replaced went to the trash with it"
    import json

    from safetensors import safe_open

    with safe_open(done.path, "pt") as file:
        metadata = file.metadata()
    assert metadata["note"] == "kept" and "modelspec.hash_sha256" not in metadata
    recipe = json.loads(metadata["trainer_toolbox"])
    assert recipe["tool"] == "inject" and recipe["model"] == "base.safetensors"
    assert recipe["loras"][0] == {"file": "0.safetensors", "text": 1.0, "unet": 1.0}
