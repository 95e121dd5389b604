"""Merging: each mode against its formula in float64, weights by block, part and rule, chains, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor

from lib_trainer.cli.main import main
from lib_trainer.families.family import Family
from lib_trainer.refusals import ConfigError, ModelError, NameTaken
from lib_trainer.toolbox import modes as modes_module
from lib_trainer.toolbox.merge import prepare
from lib_trainer.toolbox.merge_settings import MergeSettings
from lib_trainer.toolbox.modes import MODES
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.shares import CURVES, LISTS, block_of, block_weights
from tests.toolbox.models import SD1, SD2, SDXL, Tensors, checkpoint, save, save_folder, some

ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
VAE = "first_stage_model.decoder.conv_in.weight"
TEXT = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for number, name in enumerate("abc"):
        save(tmp_path / f"{name}.safetensors", some(SD1, number), format="pt")
    return tmp_path


def merge(folder: Path, models: str = "ab", **options: Any) -> Tensors:
    named = {name: str(folder / f"{name}.safetensors") for name in models if name in "abc"}
    out = folder / f"out{len(list(folder.glob('out*')))}.safetensors"
    settings = MergeSettings(**{"output": str(out)} | named | options)
    done = prepare(settings).work(Progress())
    assert done.path == out
    return load_file(out)


def unet_of(tensors: Tensors) -> Tensors:
    return {name: one for name, one in tensors.items() if name.startswith("model.diffusion_model.")}


def spread(pairs: list[tuple[Tensor, Tensor]], similar: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    every = np.concatenate([similar(a, b).reshape(-1).numpy() for a, b in pairs])
    every = every[every >= np.percentile(every, 1, method="midpoint")]
    every = every[every <= np.percentile(every, 99, method="midpoint")]
    return every.min(), every.max()


def columns(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=0, eps=1e-30)


def cosine_a(a: Tensor, b: Tensor) -> Tensor:
    norm = torch.nn.functional.normalize
    one, other = norm(a, dim=0), norm(b, dim=0)
    return (columns(one, other) + (one * other).sum() / (one.norm() * other.norm())) / 2


def cosine_b(a: Tensor, b: Tensor) -> Tensor:
    return (columns(a, b) + (a * b).sum() / (a.norm() * b.norm())) / 2


def expected(mode: str, a: Tensor, b: Tensor, c: Tensor, w: float, v: float, low: float, high: float) -> Tensor:
    """Facts 4.1, in float64."""
    if mode == "train_difference":
        scale = torch.sign(b - c) * (b - a).abs() / ((b - c).abs() + (b - a).abs())
        return a + 1.8 * w * torch.nan_to_num(scale) * (b - c).abs()
    if mode == "smooth_add":
        return a + w * torch.from_numpy(ndimage.gaussian_filter(ndimage.median_filter((b - c).numpy(), 3), 1))
    if mode.startswith("cosine"):
        k = ((cosine_a if mode == "cosine_a" else cosine_b)(a, b) - low) / (high - low) - w
        return b + k.clamp(0, 1) * (a - b)
    if mode == "ties":
        kept = []
        for change in (b - a, c - a):
            size = change.abs().flatten()
            limit = size.sort(descending=True).values[math.ceil(0.2 * len(size)) - 1]
            kept.append(torch.where(change.abs() >= limit, change, 0.0))
        changes = torch.stack(kept)
        agree = (changes.sign() == changes.sum(0).sign()) & (changes != 0)
        return a + w * torch.nan_to_num((changes * agree).sum(0) / agree.sum(0))
    if mode == "slerp":
        angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
        length = (1 - w) * a.norm() + w * b.norm()
        turned = torch.sin((1 - w) * angle) * a / a.norm() + torch.sin(w * angle) * b / b.norm()
        return turned / torch.sin(angle) * length
    return {
        "weighted_sum": (1 - w) * a + w * b,
        "add_difference": a + w * (b - c),
        "sum_twice": (1 - v) * ((1 - w) * a + w * b) + v * c,
        "triple": (1 - w - v) * a + w * b + v * c,
        "average": (a + b + c) / 3,
    }[mode]


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "dare"])
@pytest.mark.parametrize("at_once", [1 << 18, 64])
def test_a_mode_is_its_formula(mode: str, at_once: int, three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes_module, "AT_ONCE", at_once)  # whole tensors, and row by row
    two = MODES[mode].models == (2, 2)
    found = merge(three, "ab" if two else "abc", mode=mode, weight=0.3, second=0.25)
    a, b, c = (some(SD1, number) for number in range(3))
    merged = [name for name in a if not name.startswith("first_stage_model.") and name != POSITIONS]
    similar = {"cosine_a": columns, "cosine_b": cosine_b}.get(mode)
    pairs = [(a[name].double(), b[name].double()) for name in merged]
    low, high = spread(pairs, similar) if similar else (0.0, 1.0)
    for name in merged:
        wanted = expected(mode, a[name].double(), b[name].double(), c[name].double(), 0.3, 0.25, low, high)
        torch.testing.assert_close(found[name].double(), wanted, rtol=2e-5, atol=2e-6, msg=name)
    assert torch.equal(found[VAE], a[VAE])


def test_dare_drops_at_random_and_what_is_left_grows(three: Path) -> None:
    found = merge(three, mode="dare", weight=0.5, dropped=0.75, seed=3)
    again = merge(three, mode="dare", weight=0.5, dropped=0.75, seed=3)
    other = merge(three, mode="dare", weight=0.5, dropped=0.75, seed=4)
    a, b = some(SD1, 0), some(SD1, 1)
    assert all(torch.equal(found[name], again[name]) for name in found)
    kept = total = 0
    for name in unet_of(a):
        change = (found[name] - a[name]).double()
        whole = (b[name] - a[name]).double() * 0.5 / 0.25
        assert bool(((change.abs() < 1e-6) | ((change - whole).abs() < 1e-5)).all())
        kept, total = kept + int((change.abs() > 1e-6).sum()), total + change.numel()
    assert abs(kept / total - 0.25) < 0.01
    assert not torch.equal(found[ATTENTION], other[ATTENTION])


ENDS = [
    ("weighted_sum", 0, 0, "a"), ("weighted_sum", 1, 0, "b"), ("add_difference", 0, 0, "a"), ("triple", 0, 0, "a"),
    ("triple", 1, 0, "b"), ("triple", 0, 1, "c"), ("sum_twice", 0, 0, "a"), ("sum_twice", 0.3, 1, "c"),
    ("train_difference", 0, 0, "a"), ("smooth_add", 0, 0, "a"), ("slerp", 0, 0, "a"), ("slerp", 1, 0, "b"),
    ("dare", 0, 0, "a"), ("ties", 0, 0, "a"), ("cosine_a", 1, 0, "b"), ("cosine_b", 1, 0, "b"),
]  # fmt: skip


@pytest.mark.parametrize("mode, weight, second, which", ENDS)
def test_at_its_ends_a_merge_is_a_model_byte_for_byte(
    mode: str, weight: float, second: float, which: str, tmp_path: Path
) -> None:
    for number, name in enumerate("abc"):
        half = {key: one.half() if one.is_floating_point() else one for key, one in some(SD1, number).items()}
        half[ATTENTION][0, 0] = -0.0
        save(tmp_path / f"{name}.safetensors", half)
    models = "ab" if MODES[mode].models == (2, 2) else "abc"
    found = merge(tmp_path, models, mode=mode, weight=float(weight), second=float(second), vae=which)
    wanted = load_file(tmp_path / f"{which}.safetensors")
    assert found.keys() == wanted.keys()
    assert all(
        torch.equal(found[name].view(torch.uint8), wanted[name].view(torch.uint8)) for name in found if found[name].ndim
    )


def test_each_number_is_rounded_once(tmp_path: Path) -> None:
    parts = [
        {name: one.to(torch.float16) if one.is_floating_point() else one for name, one in some(SD1, n).items()}
        for n in range(2)
    ]
    for name, tensors in zip("ab", parts, strict=True):
        save(tmp_path / f"{name}.safetensors", tensors)
    found, bf16, fp32 = (merge(tmp_path, weight=0.3, precision=one) for one in ("keep", "bf16", "fp32"))
    exact = {name: 0.7 * parts[0][name].double() + 0.3 * parts[1][name].double() for name in unet_of(parts[0])}
    assert found[ATTENTION].dtype is torch.float16 and bf16[ATTENTION].dtype is torch.bfloat16
    for name, wanted in exact.items():
        torch.testing.assert_close(fp32[name].double(), wanted, rtol=1e-6, atol=1e-7)
        assert torch.equal(found[name], fp32[name].half()) and torch.equal(bf16[name], fp32[name].bfloat16())


@pytest.mark.parametrize("family", [SD1, SD2, SDXL], ids=lambda one: one.word)
def test_every_block_has_its_weight(family: Family, tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", {n: torch.zeros_like(one) for n, one in some(family).items()})
    save(tmp_path / "b.safetensors", {n: torch.ones_like(one) for n, one in some(family).items()})
    blocks = family.unet.blocks
    numbers = [number / 64 for number in range(len(blocks) + 1)]
    found = merge(tmp_path, weight=0.9, blocks=", ".join(map(str, numbers)))
    prefix, last = family.unet.prefix, len(blocks)
    for inner, place in (
        ("time_embed.0.weight", 1), ("input_blocks.0.0.bias", 1), ("input_blocks.1.0.in_layers.0.bias", 2),
        ("middle_block.0.in_layers.0.bias", 1 + len(blocks) // 2 + 0), ("out.0.bias", last),
        ("output_blocks.0.0.in_layers.0.bias", 2 + len(blocks) // 2),
        (f"output_blocks.{family.unet.side - 1}.0.in_layers.0.bias", last),
    ):  # fmt: skip
        assert bool((found[prefix + inner] == numbers[place]).all()), inner
    if family.unet.vector:
        assert bool((found[f"{prefix}label_emb.0.0.weight"] == numbers[1]).all())
    for encoder in family.encoders:
        texts = [one for name, one in found.items() if name.startswith(encoder.root) and one.is_floating_point()]
        assert texts and all(bool((one == numbers[0]).all()) for one in texts)
    assert bool((found[VAE] == 0).all())


def test_lists_of_the_larger_unet_are_those_that_supermerger_takes() -> None:
    numbers = [float(number) for number in range(25)]
    assert block_weights("base=-1, input_0=-0.5", "blocks", SDXL.unet) == {"base": -1.0, "input_0": -0.5}
    found = block_weights(",".join(map(str, numbers)), "blocks", SDXL.unet)
    assert list(found) == list(SDXL.unet.blocks) and list(found.values()) == numbers[:9] + numbers[12:22]
    assert block_weights(",".join(map(str, [7.0, *numbers])), "blocks", SDXL.unet) == {"base": 7.0, **found}


def test_presets() -> None:
    """Against the numbers of merge-block-weighted's csv/preset.tsv."""
    sigmoid = [0, 0.00506365740740741, 0.0196759259259259, 0.04296875, 0.0740740740740741, 0.112123842592593, 0.15625]
    smooth = block_weights("smoothstep", "blocks", SD1.unet)
    assert smooth["base"] == 0 and list(smooth.values())[1:8] == pytest.approx(sigmoid)
    grad = block_weights("GRAD_V", "blocks", SD1.unet)
    assert list(grad.values())[1:4] == pytest.approx([1, 0.9166666667, 0.8333333333]) and grad["middle"] == 0
    assert LISTS["WRAP08"] == (1, 1, 1, 1, *[0] * 17, 1, 1, 1, 1)
    assert all(len(numbers) == 25 for numbers in LISTS.values())
    for name in (*CURVES, *LISTS):
        for unet in (SD1.unet, SDXL.unet):
            weights = block_weights(name, "blocks", unet)
            assert tuple(weights) == ("base", *unet.blocks)
            assert all(0 <= weight <= 1 for weight in weights.values())


SUPERMERGERS = {
    "R_SMOOTHSTEP*3": [1, 0.984809027777778, 0.940972222222222, 0.87109375, 0.777777777777778],
    "REVERSE-SMOOTHSTEP": [1, 0.994936342592593, 0.980324074074074, 0.95703125],
    "SMOOTHSTEP/3": [0, 0.04296875, 0.15625, 0.31640625, 0.5, 0.68359375, 0.84375, 0.95703125, 1, 0.95703125],
    "TRUE_CUBIC_HERMITE": [0, 0.199031876929012, 0.325761959876543, 0.424641927083333, 0.498456790123457],
    "TRUE_REVERSE_CUBIC_HERMITE": [1, 0.800968123070988, 0.674238040123457, 0.575358072916667, 0.501543209876543],
    "FAKE_CUBIC_HERMITE": [0, 0.157576195987654, 0.28491512345679, 0.384765625, 0.459876543209877, 0.512996720679012],
    "FAKE_REVERSE_CUBIC_HERMITE": [1, 0.842423804012346, 0.71508487654321, 0.615234375, 0.540123456790123],
}  # fmt: skip


@pytest.mark.parametrize("name", SUPERMERGERS)
def test_presets_by_the_names_and_with_the_numbers_of_supermerger(name: str) -> None:
    """Of its scripts/mbwpresets.txt, from IN00 on."""
    base, *numbers = block_weights(name, "blocks", SD1.unet).values()
    assert base == 0 and numbers[: len(SUPERMERGERS[name])] == pytest.approx(SUPERMERGERS[name])
    assert numbers[-1] == pytest.approx(1 - numbers[0])


def test_all_of_b_is_all_of_it() -> None:
    assert set(block_weights("ALL_B", "blocks", SD1.unet).values()) == {1.0}
    assert set(block_weights("ALL_A", "blocks", SD1.unet).values()) == {0.0}


def test_parts_and_rules(three: Path) -> None:
    a, b = some(SD1, 0), some(SD1, 1)
    found = merge(three, parts="unet=1, te=0", rules="*attn1.to_q*=0\n/.*input_blocks\\.0\\..*/ = 0.5")
    assert torch.equal(found[TEXT], a[TEXT]) and torch.equal(found[ATTENTION], a[ATTENTION])
    assert torch.equal(found[ATTENTION.replace("to_q", "to_k")], b[ATTENTION.replace("to_q", "to_k")])
    torch.testing.assert_close(found[FIRST], (a[FIRST] + b[FIRST]) / 2)
    found = merge(three, blocks="input_1=1, base=0.25", weight=0.0)
    assert torch.equal(found[ATTENTION], b[ATTENTION]) and torch.equal(found[FIRST], a[FIRST])
    torch.testing.assert_close(found[TEXT], 0.75 * a[TEXT] + 0.25 * b[TEXT])


def test_the_vae_is_chosen_and_blended_only_when_asked(three: Path, tmp_path: Path) -> None:
    a, b = some(SD1, 0), some(SD1, 1)
    assert torch.equal(merge(three)[VAE], a[VAE]) and torch.equal(merge(three, vae="b")[VAE], b[VAE])
    assert torch.equal(merge(three, vae=" ")[VAE], a[VAE])  # the field was emptied
    torch.testing.assert_close(merge(three, vae="blend")[VAE], (a[VAE] + b[VAE]) / 2)
    own = {name: torch.ones_like(one) for name, one in b.items() if name.startswith("first_stage_model.")}
    alone = save(tmp_path / "v.vae.safetensors", {name.partition(".")[2]: one for name, one in own.items()})
    assert bool((merge(three, vae=str(alone))[VAE] == 1).all())
    folder = save_folder(tmp_path / "folder", SD1)
    found = merge(three, vae=str(folder / "vae" / "diffusion_pytorch_model.safetensors"))
    assert all(torch.equal(found[name], one) for name, one in checkpoint(SD1).items() if name.startswith("first_stage"))
    with pytest.raises(ModelError, match="holds no VAE"):
        merge(three, vae=str(save(tmp_path / "x.safetensors", {"x": torch.ones(1)})))
    with pytest.raises(ModelError, match="is of another build"):
        merge(three, vae=str(save(tmp_path / "y.safetensors", {"decoder.conv_in.weight": torch.ones(1)})))
    with pytest.raises(ConfigError, match="There is no model c"):
        merge(three, vae="c")


def test_a_result_without_a_vae_is_said_where_another_model_has_one(three: Path, tmp_path: Path) -> None:
    without = {name: one for name, one in some(SD1, 0).items() if not name.startswith("first_stage_model.")}
    a = save(tmp_path / "without.safetensors", without)

    def told(**more: str) -> str:
        settings = MergeSettings(a=str(a), b=str(three / "b.safetensors"), output=str(tmp_path / "out"), **more)
        return " ".join(map(str, prepare(settings).lines))

    assert "The result has no VAE" in told() and "The result has no VAE" not in told(vae="b")


def test_whole_numbers_and_averages_are_no_weights(tmp_path: Path) -> None:
    a, b = some(SD1, 0), some(SD1, 1)
    a[POSITIONS] = torch.arange(77).half()[None] * 0.999
    more = {"model_ema.decay": torch.ones(1), "v_pred": torch.empty(0), "betas": torch.ones(3), "odd": torch.arange(2)}
    save(tmp_path / "a.safetensors", a | more, note="mine", sshs_model_hash="0")
    save(tmp_path / "b.safetensors", b | {"v_pred": torch.empty(0), "betas": torch.zeros(3)}, sd_merge_recipe="{}")
    found = merge(tmp_path)
    assert torch.equal(found[POSITIONS], torch.arange(77)[None]) and found[POSITIONS].dtype is torch.int64
    assert "model_ema.decay" not in found and "v_pred" in found
    assert torch.equal(found["betas"], torch.ones(3)) and torch.equal(found["odd"], torch.arange(2))
    with safe_open(str(tmp_path / "out0.safetensors"), framework="pt") as file:
        told = file.metadata()
    recipe = json.loads(told["sd_merge_recipe"])
    assert recipe["steps"] == [{"a": "a.safetensors", "b": "b.safetensors", "mode": "weighted_sum", "weight": 0.5}]
    assert told["note"] == "mine" and "sshs_model_hash" not in told and recipe["clamped"] == 0
    assert told["modelspec.merged_from"] == "a.safetensors, b.safetensors"
    assert json.loads(told["sd_merge_models"]) == {"b.safetensors": {"sd_merge_recipe": "{}"}}


CHAIN = """
[[step]]
a = "a.safetensors"
b = "b.safetensors"
weight = 0.25
[[step]]
mode = "add_difference"
a = "#1"
b = "c.safetensors"
c = "a.safetensors"
weight = 1
[[step]]
mode = "MODE"
a = "#2"
b = "#1"
weight = 0.5
"""


@pytest.mark.parametrize("mode", ["weighted_sum", "slerp", "cosine_b"])
def test_a_chain_is_its_steps_without_files_between(mode: str, three: Path) -> None:
    (three / "chain.toml").write_text(CHAIN.replace("MODE", mode))
    found = merge(three, "", chain=str(three / "chain.toml"))
    one = merge(three, weight=0.25)
    save(three / "one.safetensors", one)
    two = merge(three, "", mode="add_difference", a=str(three / "one.safetensors"), b=str(three / "c.safetensors"),
                c=str(three / "a.safetensors"), weight=1.0)  # fmt: skip
    save(three / "two.safetensors", two)
    last = {name: str(three / f"{name}.safetensors") for name in ("two", "one")}
    wanted = merge(three, "", mode=mode, a=last["two"], b=last["one"], weight=0.5)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_a_tensor_that_a_step_hands_on_may_lack_in_its_first_model(three: Path) -> None:
    own = "cond_stage_model.transformer.text_model.encoder.layers.0.extra.weight"
    for number, name in ((1, "b"), (2, "c")):
        save(three / f"{name}.safetensors", some(SD1, number) | {own: torch.full((2, 3), float(number))})
    (three / "chain.toml").write_text("""
        [[step]]
        a = "a.safetensors"
        b = "b.safetensors"
        parts = "te=1"
        [[step]]
        a = "#1"
        b = "c.safetensors"
        weight = 0.25
    """)
    found = merge(three, "", chain=str(three / "chain.toml"))
    assert torch.equal(found[own], torch.full((2, 3), 1.25))


def test_a_smoothed_step_within_a_chain_is_computed_as_a_whole(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes_module, "AT_ONCE", 16)
    text = CHAIN.replace("add_difference", "smooth_add").replace("MODE", "slerp")
    (three / "chain.toml").write_text(text)
    found = merge(three, "", chain=str(three / "chain.toml"))
    monkeypatch.setattr(modes_module, "AT_ONCE", 1 << 20)
    wanted = merge(three, "", chain=str(three / "chain.toml"))
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


def test_any_number_of_models(three: Path) -> None:
    save(three / "d.safetensors", some(SD1, 3))
    found = merge(three, "abc", mode="average", more=(str(three / "d.safetensors"),), shares="0.5, 0.25, 0.25, 0")
    a, b, c = (some(SD1, number)[FIRST] for number in range(3))
    torch.testing.assert_close(found[FIRST], a / 2 + b / 4 + c / 4)
    with pytest.raises(ConfigError, match="are not 3 numbers"):
        merge(three, "abc", mode="average", shares="0.5, 0.5")


def test_containers_do_not_matter(three: Path, tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        save(three / f"{name}.safetensors", checkpoint(SD1, number))
    wanted = merge(three)
    a = checkpoint(SD1, 0)
    torch.save({"state_dict": a, "global_step": 7}, tmp_path / "a.ckpt")
    found = merge(three, "b", a=str(tmp_path / "a.ckpt"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    found = merge(three, "b", a=str(save_folder(tmp_path / "folder", SD1)))
    assert found.keys() == wanted.keys() - {POSITIONS}
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_tensors_and_parts_that_one_model_lacks(three: Path) -> None:
    a, b = some(SD1, 0), some(SD1, 1)
    save(three / "b.safetensors", {name: one for name, one in b.items() if name != ATTENTION} | {
        "cond_stage_model.logit_scale": torch.tensor(3.0)})  # fmt: skip
    settings = MergeSettings(
        a=str(three / "a.safetensors"), b=str(three / "b.safetensors"), output=str(three / "out.safetensors")
    )
    told = [str(line) for line in prepare(settings).lines]
    assert any("2 tensors that not every model has" in line and ATTENTION in line for line in told)
    found = merge(three)
    assert torch.equal(found[ATTENTION], a[ATTENTION]) and found["cond_stage_model.logit_scale"] == 3
    save(three / "b.safetensors", {name: one for name, one in b.items() if not name.startswith("cond_stage")})
    with pytest.raises(ModelError, match=r"b\.safetensors has no te1"):
        merge(three)
    assert torch.equal(merge(three, parts="te=0")[TEXT], a[TEXT])


REFUSED = [
    ({"mode": "add_difference"}, "add difference needs a model C"),
    ({"b": ""}, "weighted sum needs a model B"),
    ({"c": "b"}, "weighted sum takes 2 models"),
    ({"blocks": "1,2,3"}, "has 3 numbers: write 26"),
    ({"blocks": "GRAD_X"}, "is neither numbers nor a preset"),
    ({"blocks": "1,2,nan"}, "'1,2,nan' has a number that is out of range: write numbers from -1000000 to 1000000"),
    ({"blocks": "input_1=2000000"}, "'input_1=2000000' has a number that is out of range"),
    ({"blocks": "base=2e6"}, "'base=2e6' has a number that is out of range"),
    ({"parts": "te=-2e6"}, "'te=-2e6' has a number that is out of range"),
    ({"rules": "*=2e6"}, r"'\*=2e6' has a number that is out of range"),
    ({"mode": "average", "shares": "2e6, 1"}, "'2e6, 1' has a number that is out of range"),
    ({"mode": "average", "shares": "1"}, "are not 2 numbers"),
    ({"blocks": "input_77=1"}, "names a block that is not there"),
    ({"blocks": "middle=1, layer_2-3=0"}, "names layers of a text encoder, which a merge takes together as base"),
    ({"blocks": "base=x"}, "has no number"),
    ({"parts": "te2=1"}, "names no part of this model"),
    ({"parts": "unet"}, "has no number"),
    ({"rules": "*"}, "has no number"),
    ({"rules": "=1"}, "is no rule"),
    ({"rules": "/(/=1"}, "is no regular expression"),
    ({"output": ""}, "No file is named for the result"),
    ({"output": "a"}, "is one of the files that are read"),
    ({"a": "nowhere"}, "There is no file"),
    ({"chain": "x"}, "leave A, B and C empty"),
]


@pytest.mark.parametrize("options, said", REFUSED, ids=[said[:50] for _, said in REFUSED])
def test_what_is_refused_is_told_in_one_sentence(options: dict[str, Any], said: str, three: Path) -> None:
    before = sorted(three.iterdir())
    given = {"a": "a", "b": "b", "output": "out", "existing": "replace"} | options
    paths = {
        name: str(three / f"{value}.safetensors") if value and name in ("a", "b", "c", "output") else value
        for name, value in given.items()
    }
    with pytest.raises((ConfigError, ModelError), match=said) as caught:
        prepare(MergeSettings(**paths))
    assert "\n" not in str(caught.value) and sorted(three.iterdir()) == before


@pytest.mark.parametrize(
    "text, said",
    [
        ("x = 1", "is no chain of merges"),
        ("[[step]]\noutput = 'x'", "output in step 1 of"),
        ("[[step]]\na = '#1'\nb = '#1'", "is no earlier step"),
        ("[[step]]\nmode = 'mix'", "mode = 'mix' is not allowed"),
        ("[[step]]\nweight = 'x'", "is not allowed"),
    ],
)
def test_a_chain_that_is_none(text: str, said: str, three: Path) -> None:
    (three / "chain.toml").write_text(text)
    with pytest.raises((ConfigError, ModelError), match=said):
        merge(three, "", chain=str(three / "chain.toml"))


def test_a_damaged_number_or_a_taken_name_leaves_nothing(three: Path) -> None:
    broken = some(SD1, 1)
    broken[FIRST] = broken[FIRST].clone()
    broken[FIRST][0, 0, 0, 0] = float("nan")
    save_file(broken, three / "b.safetensors")
    before = sorted(three.iterdir())
    with pytest.raises(ModelError, match=rf"b\.safetensors holds numbers that are none .*in {FIRST}"):
        merge(three)
    assert sorted(three.iterdir()) == before
    with pytest.raises(NameTaken):
        prepare(MergeSettings(a=str(three / "a.safetensors"), b=str(three / "c.safetensors"),
                              output=str(three / "b.safetensors")))  # fmt: skip


def test_the_yaml_beside_the_first_model_comes_along(three: Path) -> None:
    (three / "a.yaml").write_text("model: {}")
    merge(three)
    assert (three / "out0.yaml").read_text() == "model: {}"


def test_blocks_of_names() -> None:
    unet = SDXL.unet
    assert block_of("model.diffusion_model.label_emb.0.0.weight", unet) == "input_0"
    assert block_of("model.diffusion_model.out.2.weight", unet) == "output_8"
    assert block_of("conditioner.embedders.0.x", unet) == "base"


def test_from_the_command_line(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["model", "merge", str(three / "a.safetensors"), str(three / "b.safetensors"), "--weight", "1"]
    command += ["--rule", "*attn1*=0", "--rule", "*attn2*=0", "--output", str(three / "x.safetensors")]
    assert (
        main([*command, "--dry-run"]) == 0 and "weighted sum of a.safetensors, b.safetensors" in capsys.readouterr().out
    )
    assert main(command) == 0 and "Merged into" in capsys.readouterr().out
    found = load_file(three / "x.safetensors")
    assert torch.equal(found[ATTENTION], some(SD1, 0)[ATTENTION])
    assert torch.equal(found[FIRST], some(SD1, 1)[FIRST])


def with_channels(tensors: Tensors, channels: int) -> Tensors:
    generator = torch.Generator().manual_seed(channels)
    first = tensors[FIRST]
    return tensors | {FIRST: torch.randn(first.shape[0], channels, 3, 3, generator=generator).to(first.dtype)}


def test_a_model_that_inpaints_takes_over_the_difference_of_two_that_do_not(three: Path) -> None:
    """Inpainting model + (custom − base): what only the first one reads stays its own."""
    inpainting = {name: one.clone() for name, one in with_channels(load_file(three / "a.safetensors"), 9).items()}
    save(three / "a.safetensors", inpainting, format="pt")
    custom, base = load_file(three / "b.safetensors"), load_file(three / "c.safetensors")
    found = merge(three, "abc", mode="add_difference", weight=1.0)
    assert found[FIRST].shape[1] == 9 and torch.equal(found[FIRST][:, 4:], inpainting[FIRST][:, 4:])
    for name, own in ((FIRST, found[FIRST][:, :4]), (ATTENTION, found[ATTENTION])):
        first = inpainting[name][:, :4] if name == FIRST else inpainting[name]
        wanted = first.double() + custom[name].double() - base[name].double()
        assert torch.allclose(own.double(), wanted, atol=1e-6)
    for models, mode in (("ab", "weighted_sum"), ("bac", "add_difference"), ("abc", "sum_twice")):
        given = {letter: str(three / f"{one}.safetensors") for letter, one in zip("abc", models, strict=False)}
        with pytest.raises(ModelError, match=r"has \d input channels and that of"):
            prepare(MergeSettings(mode=mode, weight=0.5, output=str(three / "no.safetensors"), **given))  # type: ignore[arg-type]


def test_a_chain_from_the_command_line_names_no_models(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = three / "chain.toml"
    chain.write_text('[[step]]\na = "a.safetensors"\nb = "b.safetensors"\nweight = 0.5\n')
    assert main(["model", "merge", "--chain", str(chain), "--output", str(three / "chained")]) == 0
    assert (three / "chained.safetensors").is_file()
    assert main(["model", "merge", "--output", str(three / "none")]) == 2
    assert "weighted sum needs a model A" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["nan", "1e39"])
@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "average", "shares": "{}, 1"}, {"parts": "unet={}"}, {"rules": "*={}"}, {"blocks": "base={}"},
        {"blocks": "input_1={}"}, {"blocks": ",".join(["{}"] * 26)},
    ],
)  # fmt: skip
def test_weights_that_lead_out_of_all_numbers_are_refused(three: Path, changes: dict[str, str], number: str) -> None:
    with pytest.raises(ConfigError, match=number):
        merge(three, **{name: value.replace("{}", number) for name, value in changes.items()})
