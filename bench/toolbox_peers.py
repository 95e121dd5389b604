"""The toolbox beside its peers on random tensors: how far each is from the formula in float64.

    python -m bench.toolbox_peers --supermerger FOLDER --sd-scripts FOLDER

The folders are checkouts of hako-mikan/sd-webui-supermerger and kohya-ss/sd-scripts; sd-mecha and what they import must
be importable. Their own code runs: of supermerger its `smerge`, which finds a handful of empty names where its host
would be, of sd-mecha the functions of its methods, of sd-scripts the programs. Printed is a Markdown table.

Checkpoints are tiny ones by the names of SDXL, in fp32 and fp16. Of merges the error is the largest of any number of
UNet and text encoder (an fp16 number near 1 is right to 5e-4); of LoRAs it is ‖what is off‖ / ‖what is right‖.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lib_trainer.toolbox.modes import MODES
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.tools import TOOLS
from tests.toolbox.models import SDXL, some
from tests.toolbox.test_merge import columns, cosine_b, expected, spread

Tensors = dict[str, torch.Tensor]
WEIGHT, SECOND = 0.3, 0.25
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
SUPERMERGER = {
    "weighted_sum": ("Weight sum", "normal"), "add_difference": ("Add difference", "normal"),
    "sum_twice": ("sum Twice", "normal"), "triple": ("Triple sum", "normal"),
    "train_difference": ("Add difference", "trainDifference"), "smooth_add": ("Add difference", "smoothAdd"),
    "cosine_a": ("Weight sum", "cosineA"), "cosine_b": ("Weight sum", "cosineB"),
}  # fmt: skip
"""Our modes by its two."""
MECHA = ("weighted_sum", "slerp", "average", "train_difference", "ties")
"""Those of them that mean the same there. Its cosine modes count similarities from 0 to 1 in place of their spread."""


def weights_of(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    return [name for name in tensors if not name.startswith("first_stage_model.")]


def model(number: int, dtype: torch.dtype) -> Tensors:
    tensors = {name: one for name, one in some(SDXL, number).items() if not name.endswith("position_ids")}
    told = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.weight"  # by which supermerger knows SDXL
    tensors[told] = torch.randn(8, 16, generator=torch.Generator().manual_seed(number))
    return {name: one.to(dtype) for name, one in tensors.items()}


def right(mode: str, models: list[Tensors], whole: bool = False) -> Tensors:
    """In float64. `whole`: TIES keeps every change."""
    a, b, c = ({name: one.double() for name, one in each.items()} for each in models)
    names = weights_of(a)
    similar = {"cosine_a": columns, "cosine_b": cosine_b}.get(mode)
    low, high = (0.0, 1.0) if similar is None else spread([(a[name], b[name]) for name in names], similar)
    if mode == "ties" and whole:
        return {name: _all_of_ties(a[name], b[name], c[name]) for name in names}
    return {name: expected(mode, a[name], b[name], c[name], WEIGHT, SECOND, low, high) for name in names}


def _all_of_ties(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    changes = torch.stack([b - a, c - a])
    agree = (changes.sign() == changes.sum(0).sign()) & (changes != 0)
    return a + WEIGHT * torch.nan_to_num((changes * agree).sum(0) / agree.sum(0))


def off(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> float:
    """The largest difference; NaN where there is one."""
    worst = [float((found[name].double() - one).abs().max()) for name, one in wanted.items()]
    return max(worst, key=lambda one: float("inf") if one != one else one)


def ours(mode: str, folder: Path, **more: Any) -> Tensors:
    two = MODES[mode].models == (2, 2)
    files = {name: str(folder / f"{name}.safetensors") for name in ("ab" if two else "abc")}
    out = folder / "ours.safetensors"
    values = {**files, "mode": mode, "weight": WEIGHT, "second": SECOND, "output": str(out), "existing": "replace"}
    tool = TOOLS["merge"]
    tool.prepare(tool.made(values | more)).work(Progress())
    return load_file(out)


# -- supermerger ---------------------------------------------------------------------------------------------------


class Empty(types.ModuleType):
    """A module of the host: whatever is asked of it is there, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Empty(name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return ""


@dataclass(frozen=True)
class File:
    """A checkpoint as the host tells of it."""

    model_name: str
    filename: str
    shorthash: str
    sha256: str
    hash: str = ""

    def calculate_shorthash(self) -> str:
        return self.shorthash


def supermerger(checkout: Path, folder: Path) -> Any:
    """Its module of merging, over a host that knows the files of a folder."""
    for name in ("launch", "modules", "modules.ui", "modules.shared", "modules.sd_models", "modules.processing",
                 "modules.generation_parameters_copypaste", "modules.scripts", "modules.sd_vae"):  # fmt: skip
        sys.modules[name] = Empty(name)
        if "." in name:
            setattr(sys.modules["modules"], name.partition(".")[2], sys.modules[name])
    host: Any = sys.modules["modules.sd_models"]

    def file_of(name: str) -> File:
        path = folder / f"{Path(name).stem}.safetensors"
        return File(path.stem, str(path), path.stem, path.stem)

    host.get_closet_checkpoint_match = file_of
    host.read_state_dict = lambda path, map_location="cpu": load_file(path)
    sys.modules["modules.scripts"].basedir = lambda: str(folder)  # type: ignore[attr-defined]
    sys.modules["modules.sd_vae"].vae_dict = {}  # type: ignore[attr-defined]
    sys.path.insert(0, str(checkout))
    return importlib.import_module("scripts.mergers.mergers")


def by_supermerger(module: Any, mode: str) -> Tensors:
    kind, how = SUPERMERGER[mode]
    lucks = {"seed": 0, "set": [], "upp": "", "low": "", "uppd": "", "lowd": "", "round": 2}
    with quiet():
        told = module.smerge(
            "", "", "a", "b", "c", WEIGHT, SECOND, kind, how, False, "", [], [], "", "", "0,0,0,0,0,0,0,0", "None", 1,
            "Off", [], "", [], lucks,
        )  # fmt: skip
    found: Tensors = told[3]
    return found


# -- sd-mecha ------------------------------------------------------------------------------------------------------


def by_mecha(mode: str, models: list[Tensors]) -> Tensors:
    mecha = importlib.import_module("sd_mecha")
    a, b, c = models
    alpha = torch.tensor(WEIGHT)

    def one(name: str) -> torch.Tensor:
        if mode == "weighted_sum":
            return mecha.weighted_sum.__wrapped__(a, b, alpha, key=name)
        if mode == "average":
            return mecha.n_average.__wrapped__(a, b, c, key=name)
        if mode == "slerp":
            return mecha.slerp.__wrapped__(a[name], b[name], alpha)
        if mode == "train_difference":
            mask = mecha.train_difference_mask.__wrapped__(a[name], b[name], c[name], alpha)
            return a[name] + (b[name] - c[name]) * mask
        mean = mecha.ties_sum.__wrapped__(b[name] - a[name], c[name] - a[name], k=1.0, vote_sgn=True)
        return a[name] + WEIGHT * mean

    return {name: one(name) for name in weights_of(a)}


# -- sd-scripts ----------------------------------------------------------------------------------------------------

LAYERS = ("down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", "mid_block_attentions_0_proj_in")


def write_lora(path: Path, rank: int, alpha: float, seed: int) -> Path:
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in LAYERS:
        tensors[f"lora_unet_{layer}.lora_down.weight"] = torch.randn(rank, 96, generator=draw)
        tensors[f"lora_unet_{layer}.lora_up.weight"] = torch.randn(128, rank, generator=draw)
        tensors[f"lora_unet_{layer}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha), "ss_v2": "False",
                              "ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora"})  # fmt: skip
    return path


def whole(path: Path) -> Tensors:
    """{layer: its difference} in float64."""
    tensors, found = load_file(path), {}
    for layer in LAYERS:
        name = f"lora_unet_{layer}"
        down, up = (tensors[f"{name}.lora_{side}.weight"].double().flatten(1) for side in ("down", "up"))
        found[layer] = up @ down * float(tensors[f"{name}.alpha"]) / len(down)
    return found


def share(found: Tensors, wanted: Tensors) -> float:
    missing = sum(float((found[layer] - wanted[layer]).square().sum()) for layer in LAYERS)
    return (missing / sum(float(one.square().sum()) for one in wanted.values())) ** 0.5


def script(checkout: Path, program: str, *given: object) -> None:
    environment = os.environ | {"PYTHONPATH": f"{checkout}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, f"networks/{program}.py", *map(str, given)]
    subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)  # fmt: skip


def by_tool(name: str, **values: Any) -> None:
    tool = TOOLS[name]
    tool.prepare(tool.made({**values, "existing": "replace"})).work(Progress())


def lora_rows(checkout: Path, folder: Path) -> Iterator[tuple[str, str, float, float]]:
    """(what, by whose program, its error, ours)."""
    one, other = write_lora(folder / "one.safetensors", 16, 8, 1), write_lora(folder / "other.safetensors", 12, 12, 2)
    theirs, own = folder / "theirs.safetensors", folder / "own.safetensors"
    delta, more = whole(one), whole(other)
    for rank in (4, 16):
        best = {}
        for layer, matrix in delta.items():
            u, s, v = torch.linalg.svd(matrix, full_matrices=False)
            best[layer] = u[:, :rank] * s[:rank] @ v[:rank]
        script(checkout, "resize_lora", "--model", one, "--save_to", theirs, "--new_rank", rank, "--save_precision",
               "float")  # fmt: skip
        by_tool("resize", lora=str(one), rank=rank, output=str(own), precision="fp32")
        yield (
            f"resize from 16 to {rank}, from the best of that rank",
            "resize_lora",
            share(whole(theirs), best),
            share(whole(own), best),
        )
    summed = {layer: 0.8 * delta[layer] + 0.5 * more[layer] for layer in LAYERS}
    loras = (f"{one}:0.8", f"{other}:0.5")
    files = ("--models", one, other, "--ratios", 0.8, 0.5, "--save_to", theirs, "--save_precision", "float",
             "--precision", "float")  # fmt: skip
    by_tool("combine", loras=loras, output=str(own), precision="fp32")
    exact = share(whole(own), summed)
    same = write_lora(folder / "same.safetensors", 16, 8, 2)
    both = {layer: 0.8 * delta[layer] + 0.5 * whole(same)[layer] for layer in LAYERS}
    script(checkout, "merge_lora", "--models", one, same, *files[3:])
    by_tool("combine", loras=(f"{one}:0.8", f"{same}:0.5"), output=str(own), precision="fp32")
    yield "0.8·one + 0.5·other", "merge_lora", share(whole(theirs), both), share(whole(own), both)
    script(checkout, "merge_lora", *files, "--concat")
    yield "0.8·one + 0.5·other, `--concat`", "merge_lora", share(whole(theirs), summed), exact
    script(checkout, "svd_merge_lora", *files, "--new_rank", 16, "--device", "cpu")
    by_tool("combine", loras=loras, rank=16, output=str(own), precision="fp32")
    yield "the same at rank 16", "svd_merge_lora", share(whole(theirs), summed), share(whole(own), summed)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def merge_rows(checkout: Path | None, folder: Path) -> Iterator[tuple[str, str, float, float]]:
    module = None
    for word, dtype in DTYPES.items():
        models = [model(number, dtype) for number in range(3)]
        for name, tensors in zip("abc", models, strict=True):
            save_file(tensors, folder / f"{name}.safetensors")
        if checkout is not None:
            module = module or supermerger(checkout, folder)
            for mode in SUPERMERGER:
                wanted = right(mode, models)
                theirs = {name: one.to(dtype) for name, one in by_supermerger(module, mode).items()}
                own = off(ours(mode, folder), wanted)
                yield f"{MODES[mode].label}, {word}", "supermerger", off(theirs, wanted), own
        if word == "fp32" and importlib.util.find_spec("sd_mecha"):
            for mode in MECHA:
                wanted = right(mode, models, whole=True)
                found = off(by_mecha(mode, models), wanted)
                own = off(ours(mode, folder, **({"kept": 1.0} if mode == "ties" else {})), wanted)
                yield f"{MODES[mode].label}, {word}", "sd-mecha", found, own


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--supermerger", type=Path)
    parser.add_argument("--sd-scripts", type=Path)
    options = parser.parse_args()
    print("| what | by | its error | ours |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        rows: list[Callable[[], Iterator[tuple[str, str, float, float]]]] = [
            partial(merge_rows, options.supermerger, Path(place))
        ]
        if options.sd_scripts:
            rows.append(partial(lora_rows, options.sd_scripts.absolute(), Path(place)))
        for each in rows:
            for what, by, theirs, own in each():
                print(f"| {what} | {by} | {theirs:.1e} | {own:.1e} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
