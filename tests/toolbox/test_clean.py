"""Cleaning: averages, junk and positions, names, precision, VAE; what is unknown stays, and twice is once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lib_trainer.cli.main import main
from lib_trainer.refusals import ConfigError, ModelError
from lib_trainer.toolbox.clean import prepare
from lib_trainer.toolbox.clean_settings import CleanSettings
from lib_trainer.toolbox.progress import Progress
from tests.toolbox.models import SD1, SDXL, Tensors, save, some

UNET = "model.diffusion_model.out.0.weight"
AVERAGE = "model_ema.diffusion_modelout0weight"
VAE = "first_stage_model.decoder.conv_in.weight"
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
EXTRA = {
    AVERAGE: torch.full((8,), 7.0), "model_ema.decay": torch.ones(1), "betas": torch.ones(3),
    "first_stage_model.loss.logvar": torch.ones(1), "v_pred": torch.empty(0), "who.knows": torch.ones(2),
}  # fmt: skip


def clean(path: Path, out: str = "out", **options: Any) -> tuple[Tensors, str]:
    target = path.with_name(f"{out}.safetensors")
    done = prepare(CleanSettings(file=str(path), output=str(target), **options)).work(Progress())
    return load_file(target), "\n".join(str(line) for line in (done.told, *done.notes))


def test_junk_is_left_out_by_a_list_and_the_unknown_stays(tmp_path: Path) -> None:
    made = some(SD1)
    found, told = clean(save(tmp_path / "a.safetensors", made | EXTRA, note="mine", sshs_model_hash="0"))
    assert found.keys() == made.keys() | {"v_pred", "who.knows"}
    assert all(torch.equal(found[name], one) for name, one in made.items())
    assert "2 tensors that no loader reads are left out: betas, first_stage_model.loss.logvar" in told
    assert "1 tensor is not known here and is kept: who.knows" in told
    assert "running average (EMA, 2 tensors) is left out" in told
    with safe_open(str(tmp_path / "out.safetensors"), framework="pt") as file:
        assert file.metadata() == {"note": "mine"}
    found, _ = clean(tmp_path / "a.safetensors", "all", junk=False, average="keep")
    assert found.keys() == made.keys() | EXTRA.keys()


def test_the_running_average_is_taken_where_there_is_one(tmp_path: Path) -> None:
    made = some(SD1)
    path = save(tmp_path / "a.safetensors", made | EXTRA)
    found, told = clean(path, average="take")
    assert torch.equal(found[UNET], EXTRA[AVERAGE]) and not any(name.startswith("model_ema") for name in found)
    assert all(torch.equal(found[name], one) for name, one in made.items() if name != UNET)
    assert "1 tensor of the UNet is that of the running average" in told
    plain = save(tmp_path / "b.safetensors", made)
    with pytest.raises(ConfigError, match="holds no running average"):
        clean(plain, "none", average="take")


@pytest.mark.parametrize("family", [SD1, SDXL], ids=lambda one: one.word)
def test_positions_are_set_right(family: Any, tmp_path: Path) -> None:
    made = some(family)
    name = next(name for name in made if name.endswith("position_ids"))
    wrong = (torch.arange(77) * 0.9999).half()[None]
    found, told = clean(save(tmp_path / "a.safetensors", made | {name: wrong}))
    assert torch.equal(found[name], torch.arange(77)[None]) and found[name].dtype is torch.int64
    assert f"Positions of tokens are set right in {name}" in told
    _, told = clean(tmp_path / "out.safetensors", "again")
    assert "Positions" not in told


def test_cleaning_twice_changes_nothing(tmp_path: Path) -> None:
    made = some(SD1)
    wrong = {POSITIONS: torch.zeros(1, 77)}
    clean(save(tmp_path / "a.safetensors", made | EXTRA | wrong, note="x"), precision="fp16")
    clean(tmp_path / "out.safetensors", "again", precision="fp16")
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_what_overflows_is_counted_and_the_vae_may_keep_its_precision(tmp_path: Path) -> None:
    made = some(SD1)
    made |= {UNET: made[UNET].clone(), VAE: made[VAE].clone()}
    made[UNET].view(-1)[:2] = torch.tensor([1e6, -1e6])
    made[VAE].view(-1)[0] = 1e6
    path = save(tmp_path / "a.safetensors", made)
    found, told = clean(path, precision="fp16", vae_precision="keep")
    assert found[VAE].dtype is torch.float32 and torch.equal(found[VAE], made[VAE])
    assert found[UNET].view(-1)[:2].tolist() == [65504, -65504] and found[UNET].dtype is torch.float16
    assert f"2 numbers were beyond what the precision holds and became its largest, in {UNET}" in told
    assert clean(path, "both", precision="fp16")[0][VAE].dtype is torch.float16


def test_old_names_and_pickles_become_todays(tmp_path: Path) -> None:
    made = some(SD1)
    old = {name.replace(".text_model.", "."): one for name, one in made.items()}
    torch.save({"state_dict": old, "optimizer_states": [1], "callbacks": {}}, tmp_path / "a.ckpt")
    found, told = clean(tmp_path / "a.ckpt")
    assert found.keys() == made.keys() and all(torch.equal(found[name], made[name]) for name in made)
    assert "tensors get today's names" in told and "callbacks, optimizer_states" in told
    torch.save({"state_dict": {"a": clean}}, tmp_path / "code.ckpt")
    with pytest.raises(ModelError, match="it holds code"):
        clean(tmp_path / "code.ckpt", "code")


def test_the_vae_goes_out_in_and_elsewhere(tmp_path: Path) -> None:
    made, other = some(SD1), some(SD1, 1)
    path = save(tmp_path / "a.safetensors", made)
    without, told = clean(path, vae="Drop")
    assert not any(name.startswith("first_stage_model") for name in without) and "The VAE is left out" in told
    alone = {name.partition(".")[2]: one for name, one in other.items() if name.startswith("first_stage_model.")}
    vae = save(tmp_path / "v.safetensors", alone)
    found, told = clean(path, "exchanged", vae=str(vae))
    assert torch.equal(found[VAE], other[VAE]) and torch.equal(found[UNET], made[UNET])
    found, _ = clean(tmp_path / "out.safetensors", "in", vae=str(vae))
    assert torch.equal(found[VAE], other[VAE])
    with pytest.raises(ModelError, match="holds no VAE"):
        clean(path, "x", vae=str(save(tmp_path / "n.safetensors", {"n": torch.ones(1)})))


def test_a_lora_keeps_all_that_it_has(tmp_path: Path) -> None:
    tensors: Tensors = {f"lora_unet_mid_block_attentions_0_proj_in.lora_{one}.weight": torch.randn(4, 4) for one in
                        ("up", "down")} | {"betas": torch.ones(2)}  # fmt: skip
    found, _ = clean(save(tmp_path / "a.safetensors", tensors), precision="bf16")
    assert found.keys() == tensors.keys() and all(one.dtype is torch.bfloat16 for one in found.values())


def test_what_is_damaged_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", some(SD1) | {UNET: torch.full((8,), float("inf"))})
    with pytest.raises(ModelError, match=rf"a\.safetensors holds numbers that are none .*in {UNET}"):
        clean(path)
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.safetensors", some(SD1) | EXTRA)
    (tmp_path / "a.yaml").write_text("x: 1")
    command = ["model", "clean", str(path), "--ema", "take", "--precision", "fp16", "--output", str(tmp_path / "o")]
    assert main([*command, "--dry-run"]) == 0 and "left out: betas" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 2
    assert main(command) == 0 and "Written to" in capsys.readouterr().out
    assert load_file(tmp_path / "o.safetensors")[UNET].dtype is torch.float16
    assert (tmp_path / "o.yaml").read_text() == "x: 1"
