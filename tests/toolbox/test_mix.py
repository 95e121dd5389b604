"""LoRAs with each other: exactly, smaller, repaired; against the weights that they make one after another."""

from __future__ import annotations

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
from lib_trainer.toolbox.adapters import difference
from lib_trainer.toolbox.factors import factors, scaled
from tests.toolbox.loras import RANK, adapted, changed, lora, module, own_of, read, run, weight
from tests.toolbox.models import Tensors, checkpoint, save

SD1, SD2, SDXL = FAMILIES
PLAIN = ("lora", "core", "loha", "lokr", "diff")


@pytest.fixture(scope="module")
def model() -> Tensors:
    """Layers of one block and of both encoders are enough."""
    whole = checkpoint(SDXL)
    wanted = ("input_blocks.4.", "embedders.0.transformer.text_model.encoder.layers.0.", "resblocks.0.", "resblocks.1.")
    return {name: one for name, one in whole.items() if any(part in name for part in wanted)}


def facts(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def deltas(tensors: Tensors, model: Tensors) -> dict[str, torch.Tensor]:
    """What a file adds to each layer, in float64."""
    found = {}
    for layer, shape in adapted(SDXL, model):
        own = own_of(tensors, layer)
        if own:
            double = {name: one.double() for name, one in own.items()}
            found[layer.name("kohya")] = difference(double, weight(model, layer), shape)
    return found


@pytest.mark.parametrize("kinds", [("lora", "lora"), ("lora", "core"), ("loha", "lokr"), ("diff", "lora")])
def test_together_they_add_what_each_adds_at_its_strength(
    kinds: tuple[str, str], model: Tensors, tmp_path: Path
) -> None:
    files = [lora(SDXL, model, kind, seed=n) for n, kind in enumerate(kinds)]
    paths = [save(tmp_path / f"{n}.safetensors", one) for n, one in enumerate(files)]
    meant = (f"{paths[0]}:0.5:0.8", f"{paths[1]}:-0.3")
    done = run("combine", loras=meant, output=str(tmp_path / "sum"))
    result = read(done.path)
    one, other, found = (deltas(tensors, model) for tensors in (*files, result))
    assert found.keys() == one.keys()
    for name, delta in found.items():
        wanted = one[name] * (0.8 if "unet" in name else 0.5) - 0.3 * other[name]
        torch.testing.assert_close(delta, wanted, rtol=1e-4, atol=1e-5)
    if kinds == ("lora", "lora"):  # ranks add up
        downs = {name: one for name, one in result.items() if name.endswith("lora_down.weight")}
        assert downs and all(one.shape[0] == 2 * RANK for one in downs.values())
        assert facts(done.path)["ss_network_dim"] == str(2 * RANK) == facts(done.path)["ss_network_alpha"].split(".")[0]
    recipe = json.loads(facts(done.path)["trainer_toolbox"])
    assert [one["text"] for one in recipe["files"]] == [0.5, -0.3]


@pytest.mark.parametrize("kind", ["lora", "loha", "diff"])
def test_of_files_that_do_not_fit_each_other_the_odd_one_is_named(kind: str, tmp_path: Path) -> None:
    key, draw = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", torch.Generator().manual_seed(1)

    def made(name: str, width: int) -> str:
        own = module(kind, (8, width), draw)
        return str(save(tmp_path / name, {f"{key}.{suffix}": one for suffix, one in own.items()}))

    odd, first, second = made("odd.safetensors", 4), made("first.safetensors", 6), made("second.safetensors", 6)
    for files in ((first, odd, second), (odd, first, second), (first, odd)):
        with pytest.raises(TrainerError) as raised:
            run("combine", loras=files, output=str(tmp_path / "sum"))
        told = str(raised.value)
        assert told.startswith(f"{odd} does not fit {first}: its module {key} is for a weight of 8×4 numbers"), told
    assert not (tmp_path / "sum.safetensors").exists()


TORN = {
    "lora": {"lora_up.weight": (8, 3), "lora_down.weight": (2, 6)},
    "loha": {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 5)},
}


@pytest.mark.parametrize("kind", TORN)
@pytest.mark.parametrize("tool", ["combine", "resize", "convert"])
def test_a_module_whose_tensors_do_not_fit_each_other_is_named(tool: str, kind: str, tmp_path: Path) -> None:
    key, draw = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", torch.Generator().manual_seed(1)
    good, torn = (
        str(save(tmp_path / f"{name}.safetensors", {f"{key}.{suffix}": one for suffix, one in own.items()}))
        for name, own in (
            ("good", module("lora", (8, 6), draw)),
            ("torn", {suffix: torch.ones(shape) for suffix, shape in TORN[kind].items()}),
        )
    )
    asked: dict[str, Any] = {"combine": {"loras": (good, torn)}, "resize": {"lora": torn, "rank": 1}}
    with pytest.raises(TrainerError, match=rf"The module {key} of .*torn.safetensors is damaged"):
        run(tool, **asked.get(tool, {"lora": torn}), output=str(tmp_path / "made"))
    assert not (tmp_path / "made.safetensors").exists()


def test_differences_of_norms_stay_what_they_are(model: Tensors, tmp_path: Path) -> None:
    """Under either name: no low rank is made of a norm's weight, and there is a bias beside it, as the WebUI wants."""
    key = "lora_unet_input_blocks_4_1_transformer_blocks_0_norm1"
    own = {f"{key}.diff": torch.arange(4.0)}
    one = save(tmp_path / "one.safetensors", lora(SDXL, model) | own)
    smaller = read(run("resize", lora=str(one), rank=1, output=str(tmp_path / "smaller")).path)
    assert {name: part.tolist() for name, part in smaller.items() if name.startswith(key)} == {
        f"{key}.diff": [0.0, 1.0, 2.0, 3.0]
    }
    for rank in (0, 1):
        both = run("combine", loras=(str(one), f"{one}:0.5"), rank=rank, output=str(tmp_path / f"both{rank}")).path
        assert {name: part.tolist() for name, part in read(both).items() if name.startswith(key)} == {
            f"{key}.w_norm": [0.0, 1.5, 3.0, 4.5], f"{key}.b_norm": [0.0] * 4,
        }  # fmt: skip


def test_what_is_in_double_precision_is_not_written_in_half(model: Tensors, tmp_path: Path) -> None:
    """As a LoRA in fp32 is under peft's names, where its alpha has no exact place in one factor."""
    wide = {name: one.double() if "lora_up" in name else one for name, one in lora(SDXL, model).items()}
    file = save(tmp_path / "wide.safetensors", wide)
    asked: dict[str, dict[str, Any]] = {
        "resize": {"lora": str(file), "rank": 2}, "combine": {"loras": (str(file), f"{file}:0.5")},
    }  # fmt: skip
    for tool, values in asked.items():
        result = read(run(tool, **values, output=str(tmp_path / tool)).path)
        assert {one.dtype for name, one in result.items() if "lora_" in name} == {torch.float32}


def test_sd_scripts_cross_terms_are_not_there(model: Tensors, tmp_path: Path) -> None:
    """Its merge without --concat adds factors, which is (A₁+A₂)(B₁+B₂); two equal files come to four times the one."""
    file = save(tmp_path / "a.safetensors", lora(SDXL, model))
    copy = save(tmp_path / "b.safetensors", lora(SDXL, model))
    done = run("combine", loras=(str(file), str(copy)), rank=RANK, precision="fp32", output=str(tmp_path / "sum"))
    one, found = deltas(read(file), model), deltas(read(done.path), model)
    for name, delta in found.items():
        torch.testing.assert_close(delta, 2 * one[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "core", "loha", "lokr", "diff"])
def test_smaller_loses_what_is_said_and_no_more_than_it_must(kind: str, model: Tensors, tmp_path: Path) -> None:
    tensors = lora(SDXL, model, kind)
    file = save(tmp_path / "a.safetensors", tensors)
    report = tmp_path / "r.csv"
    done = run("resize", lora=str(file), rank=1, output=str(tmp_path / "small"), report=str(report))
    one, found = deltas(tensors, model), deltas(read(done.path), model)
    lost, whole = 0.0, 0.0
    for name, delta in found.items():
        rest = float((one[name] - delta).square().sum())
        best = float(torch.linalg.svdvals(one[name].flatten(1))[1:].square().sum())
        assert rest == pytest.approx(best, rel=1e-3, abs=1e-6)
        lost, whole = lost + rest, whole + float(one[name].square().sum())
    told = json.loads(facts(done.path)["trainer_toolbox"])
    assert told["lost"] == pytest.approx((lost / whole) ** 0.5, abs=1e-4) and told["lost"] > 0.1
    assert facts(done.path)["ss_network_dim"] == "1" and facts(done.path)["ss_network_module"] == "networks.lora"
    assert len(report.read_text().splitlines()) == len(found) + 1


def test_magnitudes_stay_as_exact_as_they_are(model: Tensors, tmp_path: Path) -> None:
    """They multiply the whole weight, and are no reason to write the factors in fp32."""
    own = {name: one if "dora_scale" in name else one.half() for name, one in lora(SDXL, model, "dora").items()}
    file = save(tmp_path / "dora.safetensors", own)
    for tool, values in (("resize", {"rank": 1}), ("convert", {"precision": "fp16"}), ("repair", {})):
        result = read(run(tool, lora=str(file), **values, output=str(tmp_path / tool)).path)
        for name, one in result.items():
            assert one.dtype is (torch.float32 if "dora_scale" in name else torch.float16)
            assert "dora_scale" not in name or torch.equal(one, own[name])


def test_dora_gets_smaller_and_keeps_its_magnitudes(model: Tensors, tmp_path: Path) -> None:
    tensors = lora(SDXL, model, "dora")
    file = save(tmp_path / "a.safetensors", tensors)
    kept = read(run("resize", lora=str(file), rank=RANK, output=str(tmp_path / "same")).path)
    small = read(run("resize", lora=str(file), rank=1, output=str(tmp_path / "small")).path)
    one, same = deltas(tensors, model), deltas(kept, model)
    for name, delta in same.items():
        torch.testing.assert_close(delta, one[name], rtol=1e-3, atol=1e-4)
        assert torch.equal(small[f"{name}.dora_scale"], tensors[f"{name}.dora_scale"])
        assert small[f"{name}.lora_down.weight"].shape[0] == 1


@pytest.mark.parametrize("kind", ["dora", "dora out", "oft"])
def test_what_depends_on_a_model_is_combined_for_that_model(kind: str, model: Tensors, tmp_path: Path) -> None:
    whole = checkpoint(SDXL)
    base = save(tmp_path / "base.safetensors", whole)
    first, second = lora(SDXL, model, kind), lora(SDXL, model, "lora", seed=2)
    files = save(tmp_path / "a.safetensors", first), save(tmp_path / "b.safetensors", second)
    meant = (f"{files[0]}:0.5", str(files[1]))
    with pytest.raises(TrainerError, match=r"depends on the model .* give the checkpoint it was made for as --base"):
        run("combine", loras=meant, output=str(tmp_path / "sum"))
    assert not (tmp_path / "sum.safetensors").exists()
    done = run("combine", loras=meant, base=str(base), output=str(tmp_path / "sum"))
    found = deltas(read(done.path), model)
    for layer, _ in adapted(SDXL, model):
        before = weight(model, layer)
        wanted = 0.5 * (changed(kind, own_of(first, layer), before) - before)
        wanted = wanted + changed("lora", own_of(second, layer), before) - before
        torch.testing.assert_close(found[layer.name("kohya")], wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", PLAIN)
def test_repaired_it_is_weaker_where_that_was_asked_and_keeps_its_kind(
    kind: str, model: Tensors, tmp_path: Path
) -> None:
    tensors = lora(SDXL, model, kind)
    told = {"ss_output_name": "zorb", "ss_network_args": '{"algo": "x"}', "ss_num_train_images": "7",
            "sshs_model_hash": "old"}  # fmt: skip
    file = save(tmp_path / "a.safetensors", tensors, **told)
    meant = f"{file}:te=0:unet=0.5:lbw=input_4=0.5"
    done = run("repair", lora=meant, output=str(tmp_path / "mended"))
    result = read(done.path)
    names = {name for name in tensors if "lora_te" not in name}
    assert set(result) == names
    one, found = deltas(tensors, model), deltas(result, model)
    for name, delta in found.items():
        torch.testing.assert_close(delta, 0.25 * one[name], rtol=1e-4, atol=1e-6)
    kept = facts(done.path)
    assert kept["ss_num_train_images"] == "7" and json.loads(kept["ss_network_args"])["algo"] == "x"
    assert kept["sshs_model_hash"] != "old" and kept["ss_output_name"] == "mended"
    assert json.loads(kept["trainer_toolbox"])["files"][0]["blocks"] == "input_4=0.5"


def test_text_encoders_come_from_another_file_or_are_left_out(model: Tensors, tmp_path: Path) -> None:
    first, second, third = (lora(SDXL, model, "lora", seed=seed) for seed in (1, 2, 3))
    paths = [save(tmp_path / f"{n}.safetensors", one) for n, one in enumerate((first, second, third))]
    one, two, three = (deltas(tensors, model) for tensors in (first, second, third))
    bare = read(run("repair", lora=str(paths[0]), text="drop", output=str(tmp_path / "bare")).path)
    assert bare.keys() == {name for name in first if name.startswith("lora_unet_")}
    assert all(torch.equal(bare[name], first[name]) for name in bare)
    taken = run("repair", lora=str(paths[0]), text_from=f"{paths[1]}:0.5", output=str(tmp_path / "taken"))
    for name, delta in deltas(read(taken.path), model).items():
        torch.testing.assert_close(delta, one[name] if "unet" in name else 0.5 * two[name], rtol=1e-4, atol=1e-5)
    both = run(
        "repair", lora=f"{paths[0]}:0.7", others=(f"{paths[2]}:0.2",), rank=2 * RANK, output=str(tmp_path / "both")
    )
    for name, delta in deltas(read(both.path), model).items():
        torch.testing.assert_close(delta, 0.7 * one[name] + 0.2 * three[name], rtol=1e-3, atol=1e-4)


def test_embeddings_go_along_and_two_of_one_name_are_refused(model: Tensors, tmp_path: Path) -> None:
    one, other = lora(SDXL, model), lora(SDXL, model, seed=2)
    one["bundle_emb.zorb.clip_l"] = torch.ones(2, 16)
    paths = [save(tmp_path / f"{n}.safetensors", tensors) for n, tensors in enumerate((one, other))]
    done = run("combine", loras=tuple(map(str, paths)), output=str(tmp_path / "sum"))
    assert torch.equal(read(done.path)["bundle_emb.zorb.clip_l"], torch.ones(2, 16))
    other["bundle_emb.zorb.clip_l"] = torch.zeros(2, 16)
    save(paths[1], other)
    with pytest.raises(TrainerError, match="bring different embeddings called 'zorb' along"):
        run("combine", loras=tuple(map(str, paths)), output=str(tmp_path / "two"))
    assert not (tmp_path / "two.safetensors").exists()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["lora", "core", "loha", "lokr"]),
    st.sampled_from([(32, 24), (24, 32), (16, 16, 3, 3), (24, 16, 1, 1)]),
    st.integers(0, 2**31),
)
def test_factors_multiply_to_the_difference(kind: str, shape: tuple[int, ...], seed: int) -> None:
    own = module(kind, shape, torch.Generator().manual_seed(seed))
    pair = factors(own)
    assert pair is not None and pair[0].shape[1] < min(pair[0].shape[0], pair[1].shape[1])
    torch.testing.assert_close((pair[0] @ pair[1]).reshape(shape), difference(own, None, shape), rtol=1e-4, atol=1e-5)
    half = scaled(own, 0.5)
    assert half is not None
    torch.testing.assert_close(difference(half, None, shape), 0.5 * difference(own, None, shape))


def refused(tool: str, **values: Any) -> str:
    with pytest.raises(TrainerError) as caught:
        run(tool, **values)
    return str(caught.value)


def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(model: Tensors, tmp_path: Path) -> None:
    file = save(tmp_path / "a.safetensors", lora(SDXL, model))
    small = save(tmp_path / "sd1.safetensors", lora(SD1, checkpoint(SD1)))
    glora = "lora_unet_mid_block_resnets_0_conv1"
    strange = save(
        tmp_path / "g.safetensors", {f"{glora}.a1.weight": torch.ones(2, 2), f"{glora}.alpha": torch.ones(())}
    )
    broken = lora(SDXL, model)
    name = next(iter(broken))
    broken[name] = torch.full_like(broken[name], float("inf"))
    nan = save(tmp_path / "nan.safetensors", broken)
    none = save(tmp_path / "none.safetensors", {"x": torch.ones(2)})
    out = {"output": str(tmp_path / "out")}
    assert refused("combine", loras=(str(file),), **out) == "Combining takes two LoRA files or more: name them."
    assert "of SDXL and" in refused("combine", loras=(str(file), str(small)), **out)
    assert "a kind that is not known here (lora_unet_mid_block_resnets_0_conv1" in refused(
        "resize", lora=str(strange), rank=1, **out
    )
    assert f"NaN or infinite) in {name}" in refused("resize", lora=str(nan), rank=1, **out)
    assert "none.safetensors holds no LoRA" in refused("resize", lora=str(none), rank=1, **out)
    assert refused("resize", lora=str(file), **out).startswith("Neither a rank nor a share to keep is given")
    assert "is not understood" in refused("repair", lora="x:0.1:0.2:0.3", **out)
    assert "17 block weights are for another family" in refused("repair", lora=f"{file}:lbw=MIDD", **out)
    assert "are no block weights" in refused("repair", lora=f"{file}:lbw=1,2", **out)
    assert refused("repair", lora=f"{file}:0", **out) == "Nothing is left of the LoRA at these strengths: correct them."
    assert "out.safetensors" not in {one.name for one in tmp_path.iterdir()}


def test_the_command_line_runs_the_tools(model: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lib_trainer.cli.main import main

    file = save(tmp_path / "a.safetensors", lora(SDXL, model))
    out = tmp_path / "small.safetensors"
    command = ["model", "resize", str(file), "--rank", "1", "--output", str(out)]
    assert main([*command, "--dry-run"]) == 0 and not out.exists()
    assert f"a.safetensors become {out}, with" in capsys.readouterr().out
    assert main(command) == 0 and out.exists()
    assert "% are lost (by norm), at ranks from 1 to 1" in capsys.readouterr().out
    assert main(command) == 2
    assert "small.safetensors exists already" in capsys.readouterr().err
    place = str(tmp_path / "b")
    assert main(["model", "repair", f"{file}:0.5", "--with", f"{file}:0.1", "--text", "drop", "--output", place]) == 0
    assert (tmp_path / "b.safetensors").exists()


def test_stopped_it_leaves_nothing(model: Tensors, tmp_path: Path) -> None:
    from lib_trainer.toolbox.progress import Progress, StopAsked
    from lib_trainer.toolbox.tools import TOOLS
    from lib_trainer.work.control import Control

    file = save(tmp_path / "a.safetensors", lora(SDXL, model))
    given: dict[str, dict[str, Any]] = {"resize": {"rank": 1}, "convert": {"names": "peft"}}
    for name, values in given.items():
        tool, control = TOOLS[name], Control()
        work = tool.prepare(tool.made({"lora": str(file), "output": str(tmp_path / "b"), **values})).work
        control.stop()
        with pytest.raises(StopAsked):
            work(Progress(control))
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]
