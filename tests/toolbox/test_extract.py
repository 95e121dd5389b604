"""A LoRA out of two checkpoints, and back: what is lost is what is said."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lib_trainer.families.known import FAMILIES
from lib_trainer.refusals import TrainerError
from lib_trainer.toolbox import decompose
from lib_trainer.toolbox.decompose import ADVISED, Wanted, join, lost, lost_between, rank_keeping, split
from tests.toolbox.loras import adapted, read, run, weight
from tests.toolbox.models import Tensors, checkpoint, save
from tests.without_fp64 import OnArc

SD1, SD2, SDXL = FAMILIES


def tuned(model: Tensors, seed: int = 9) -> Tensors:
    """Every floating-point tensor a little different."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: one + 0.05 * torch.randn(one.shape, generator=draw) if one.is_floating_point() else one
        for name, one in model.items()
    }


def distance(one: Tensors, other: Tensors, names: Any) -> float:
    return float(sum((one[name].double() - other[name].double()).square().sum() for name in names)) ** 0.5


def facts(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize(("family", "rank"), [(SD1, 4), (SDXL, 3)], ids=lambda one: str(one)[:12])
def test_extracted_and_injected_again_the_tuned_model_comes_back_to_the_told_error(
    family: Any, rank: int, tmp_path: Path
) -> None:
    model = checkpoint(family)
    other = tuned(model)
    base, file = save(tmp_path / "base.safetensors", model), save(tmp_path / "tuned.safetensors", other)
    made = run("extract", base=str(base), tuned=str(file), rank=rank, output=str(tmp_path / "lora"))
    tensors = read(made.path)
    back = run("inject", model=str(base), loras=(str(made.path),), output=str(tmp_path / "back"))
    result = read(back.path)
    layers = [layer for layer, _ in adapted(family, model)]
    held = sorted({layer.tensor() for layer in layers})
    mine = [name for name in model if family.part_of(name) and "position_ids" not in name]
    recipe = json.loads(facts(made.path)["trainer_toolbox"])
    share = distance(result, other, held) / distance(model, other, held)
    assert recipe["lost"] == pytest.approx(share, rel=1e-3)
    assert recipe["lost_with_what_is_left_out"] == pytest.approx(
        distance(result, other, mine) / distance(model, other, mine), rel=1e-3
    )
    assert 0.3 < share < 0.95
    assert {name.partition(".")[0] for name in tensors} == {layer.name("kohya") for layer in layers}
    for layer in layers:  # no better approximation of that rank exists
        delta = (weight(other, layer) - weight(model, layer)).flatten(1)
        values = torch.linalg.svdvals(delta)
        key = layer.name("kohya")
        own = {name: tensors[f"{key}.{name}.weight"].double().flatten(1) for name in ("lora_up", "lora_down")}
        smallest = values[rank:].square().sum().sqrt()
        torch.testing.assert_close((delta - own["lora_up"] @ own["lora_down"]).norm(), smallest, rtol=2e-3, atol=2e-3)
        assert float(tensors[f"{key}.alpha"]) == min(rank, *delta.shape)
    assert facts(made.path)["ss_network_dim"] == str(rank) and facts(made.path)["ss_network_module"] == "networks.lora"


def test_whole_ranks_and_norms_leave_only_what_no_lora_holds(tmp_path: Path) -> None:
    model = checkpoint(SD1)
    other = tuned(model)
    base, file = save(tmp_path / "base.safetensors", model), save(tmp_path / "tuned.safetensors", other)
    made = run(
        "extract", base=str(base), tuned=str(file), rank=4096, norms=True, precision="fp32", output=str(tmp_path / "l")
    )
    result = read(run("inject", model=str(base), loras=(str(made.path),), output=str(tmp_path / "back")).path)
    held = {layer.tensor() for layer, _ in adapted(SD1, model)}
    for name in (*held, *(name for name in model if "norm" in name and SD1.part_of(name))):
        torch.testing.assert_close(result[name], other[name], rtol=1e-4, atol=1e-5)


def test_a_share_of_the_energy_decides_the_ranks_and_the_report_says_them(tmp_path: Path) -> None:
    model = checkpoint(SD1)
    other = tuned(model)
    base, file = save(tmp_path / "base.safetensors", model), save(tmp_path / "tuned.safetensors", other)
    report = tmp_path / "report.csv"
    made = run(
        "extract", base=str(base), tuned=str(file), rank=0, keep=0.9, conv_rank=-1, parts="unet", precision="fp32",
        report=str(report), output=str(tmp_path / "lora"),
    )  # fmt: skip
    tensors = read(made.path)
    rows = {row["layer"]: row for row in csv.DictReader(report.read_text().splitlines())}
    seen = 0
    for layer, shape in adapted(SD1, model):
        key = layer.name("kohya")
        if layer.part != "unet" or shape[2:] == (3, 3):
            assert f"{key}.alpha" not in tensors
            continue
        energies = torch.linalg.svdvals((weight(other, layer) - weight(model, layer)).flatten(1)).square()
        shares = energies.cumsum(0) / energies.sum()
        rank = int((shares < 0.9 - 1e-6).sum()) + 1
        assert tensors[f"{key}.lora_down.weight"].shape[0] == rank == int(rows[key]["rank"])
        assert int(rows[key]["rank for 95 %"]) == int((shares < 0.95 - 1e-6).sum()) + 1
        assert float(rows[key]["lost"]) == pytest.approx(max(0.0, float(1 - shares[rank - 1])) ** 0.5, abs=1e-3)
        seen += 1
    assert seen > 100 and len(rows) == seen
    assert facts(made.path)["ss_network_dim"] == "Dynamic"


def test_of_a_model_in_eight_bits_the_lora_is_in_half_precision(tmp_path: Path) -> None:
    model = checkpoint(SD1)
    eight = {
        name: one.to(torch.float8_e4m3fn) if one.is_floating_point() else one for name, one in tuned(model).items()
    }
    base, file = save(tmp_path / "base.safetensors", model), save(tmp_path / "tuned.safetensors", eight)
    made = run("extract", base=str(base), tuned=str(file), rank=4, precision="keep", output=str(tmp_path / "lora"))
    assert {one.dtype for one in read(made.path).values()} == {torch.float16}


def test_layers_without_a_difference_are_left_out(tmp_path: Path) -> None:
    model = checkpoint(SDXL)
    other = dict(model)
    fused = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    other[fused] = model[fused].clone()
    other[fused][:16] += 1.0  # the queries alone
    base, file = save(tmp_path / "base.safetensors", model), save(tmp_path / "tuned.safetensors", other)
    made = run("extract", base=str(base), tuned=str(file), rank=2, output=str(tmp_path / "lora"), names="peft")
    module = "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj"
    assert set(read(made.path)) == {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}
    assert facts(made.path)["ss_network_dim"] == "2"


@pytest.mark.parametrize("size", [(40, 30), (300, 400)])
@pytest.mark.parametrize("wanted", [Wanted(8), Wanted(0, 0.5), Wanted(0, 0.999), Wanted(20, 0.9)])
def test_split_is_the_best_of_its_rank(size: tuple[int, int], wanted: Wanted) -> None:
    draw = torch.Generator().manual_seed(3)
    left, right = torch.randn(size[0], 24, generator=draw), torch.randn(24, size[1], generator=draw)
    matrix = left @ right + 0.3 * torch.randn(size, generator=draw)
    energies = torch.linalg.svdvals(matrix.double()).square()
    parts = split(matrix, wanted)
    assert parts.total == pytest.approx(float(energies.sum()), rel=1e-5)
    assert parts.advised == rank_keeping(energies, parts.total, ADVISED)
    if wanted.keep < 1:
        needed = rank_keeping(energies, float(energies.sum()), wanted.keep)
        assert needed is not None and parts.rank == min(needed, wanted.rank or needed)
    else:
        assert parts.rank == wanted.rank
    assert lost(matrix, parts.up, parts.down) == pytest.approx(float(energies[parts.rank :].sum()), rel=2e-2, abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**31))
def test_join_is_the_product_and_its_best_part(out: int, inner: int, rank: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    up, down = torch.randn(out, rank, generator=draw), torch.randn(rank, inner, generator=draw)
    whole = join(up, down, Wanted())
    torch.testing.assert_close(whole.up @ whole.down, up @ down, rtol=1e-4, atol=1e-4)
    assert whole.rank <= min(out, inner, rank)
    half = join(up, down, Wanted(max(1, whole.rank // 2)))
    values = torch.linalg.svdvals(up.double() @ down.double())
    rest = float(values[half.rank :].square().sum())
    assert lost(up @ down, half.up, half.down) == pytest.approx(rest, rel=1e-3, abs=1e-6)
    assert lost_between((up, down), (half.up, half.down)) == pytest.approx(rest, rel=1e-3, abs=1e-6)


def refused(**values: Any) -> str:
    with pytest.raises(TrainerError) as caught:
        run("extract", **values)
    return str(caught.value)


def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(tmp_path: Path) -> None:
    model = checkpoint(SD1)
    base, same = save(tmp_path / "base.safetensors", model), save(tmp_path / "same.safetensors", model)
    broken = dict(model)
    name = "model.diffusion_model.middle_block.1.proj_in.weight"
    broken[name] = torch.full_like(model[name], float("nan"))
    nan = save(tmp_path / "nan.safetensors", broken)
    xl = save(tmp_path / "xl.safetensors", checkpoint(SDXL))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(base.read_bytes()[:-100])
    out = {"output": str(tmp_path / "out"), "base": str(base)}
    assert refused(tuned=str(xl), **out) == f"{base} is of SD 1.x and {xl} of SDXL: choose two files of one family."
    assert refused(tuned=str(same), **out).endswith("there is nothing to extract.")
    assert f"{nan} holds numbers that are none (NaN or infinite) in {name}" in refused(tuned=str(nan), **out)
    assert "cut.safetensors is not a readable .safetensors file" in refused(tuned=str(cut), **out)
    assert "There is no file" in refused(tuned=str(tmp_path / "none.safetensors"), **out)
    assert "no rank" in refused(tuned=str(same), rank=0, **out).lower().replace("neither a rank", "no rank")
    (tmp_path / "out.safetensors").write_bytes(b"mine")
    assert "out.safetensors exists already" in refused(tuned=str(same), **out)
    assert (tmp_path / "out.safetensors").read_bytes() == b"mine"
    left = {one.name for one in tmp_path.iterdir()}
    assert left == {f"{name}.safetensors" for name in ("base", "same", "nan", "xl", "cut", "out")}


def test_what_was_extracted_from_a_v_model_says_so(tmp_path: Path) -> None:
    model = checkpoint(SD1)
    base = save(tmp_path / "base.safetensors", model)
    file = save(tmp_path / "tuned.safetensors", tuned(model) | {"v_pred": torch.zeros(0)})
    made = facts(run("extract", base=str(base), tuned=str(file), rank=2, output=str(tmp_path / "lora")).path)
    assert (made["ss_base_model_version"], made["modelspec.prediction_type"]) == ("sd_v1_v", "v")
    save(file, tuned(model))
    plain = facts(run("extract", base=str(base), tuned=str(file), rank=2, output=str(tmp_path / "other")).path)
    assert plain["ss_base_model_version"] == "sd_v1" and "modelspec.prediction_type" not in plain


def test_a_device_without_float64_decomposes(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(1))
    wanted = Wanted(keep=0.8)
    expected = split(matrix, wanted)
    monkeypatch.setattr(decompose, "widest_float", lambda device: torch.float32)
    found = split(matrix.as_subclass(OnArc), wanted)
    assert (found.rank, found.advised) == (expected.rank, expected.advised)
    assert found.total == pytest.approx(expected.total, rel=1e-6)
    torch.testing.assert_close(found.up.cpu() @ found.down.cpu(), expected.up @ expected.down)
