"""Tiny LoRA files of every kind for the tiny checkpoints of `models`, and the weights that they make, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lib_trainer.families.family import Family
from lib_trainer.toolbox.layers import Layer, Scheme, layers_of
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.tools import TOOLS
from tests.toolbox.models import Tensors

RANK = 2
KINDS = ("lora", "core", "loha", "lokr", "dora", "dora out", "oft", "diff")


def run(name: str, **values: Any) -> Any:
    """Run a tool to its end."""
    tool = TOOLS[name]
    return tool.prepare(tool.made(values)).work(Progress())


def adapted(family: Family, model: Tensors) -> Iterator[tuple[Layer, tuple[int, ...]]]:
    """The layers that sd-scripts' networks have, and the shapes of their weights (a third of a fused one)."""
    for layer in layers_of(family):
        if layer.adapted and layer.tensor() in model:
            shape = tuple(model[layer.tensor()].shape)
            yield layer, shape if layer.third is None else (shape[0] // 3, *shape[1:])


def module(kind: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensors:
    """A module's tensors for a weight of this shape, as if trained."""

    def drawn(*sizes: int) -> torch.Tensor:
        return 0.3 * torch.randn(*sizes, generator=draw)

    out, inner, *kernel = shape
    numbers = int(torch.Size(shape).numel()) // out
    ones = [1] * len(kernel)
    alpha = {"alpha": torch.tensor(1.5)}
    if kind == "core" and kernel == [3, 3]:
        return {"lora_up.weight": drawn(out, RANK, 1, 1), "lora_mid.weight": drawn(RANK, RANK, 3, 3),
                "lora_down.weight": drawn(RANK, inner, 1, 1), **alpha}  # fmt: skip
    if kind in ("lora", "core", "dora", "dora out"):
        own = {"lora_up.weight": drawn(out, RANK, *ones), "lora_down.weight": drawn(RANK, inner, *kernel), **alpha}
        size = {"dora": (1, inner), "dora out": (out, 1)}.get(kind)
        return own | ({"dora_scale": 1 + drawn(*size, *ones)} if size else {})
    if kind == "loha":
        return {"hada_w1_a": drawn(out, RANK), "hada_w1_b": drawn(RANK, numbers), "hada_w2_a": drawn(out, RANK),
                "hada_w2_b": drawn(RANK, numbers), **alpha}  # fmt: skip
    if kind == "lokr":
        return {"lokr_w1": drawn(2, 2), "lokr_w2_a": drawn(out // 2, 1), "lokr_w2_b": drawn(1, numbers // 2), **alpha}
    if kind == "oft":
        return {"oft_blocks": drawn(4, out // 4, out // 4), "alpha": torch.tensor(0.0)}
    return {"diff": drawn(*shape)}


def lora(family: Family, model: Tensors, kind: str = "lora", seed: int = 1, scheme: Scheme = "kohya") -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    return {
        f"{layer.name(scheme)}.{suffix}": tensor
        for layer, shape in adapted(family, model)
        for suffix, tensor in module(kind, shape, draw).items()
    }


def weight(model: Tensors, layer: Layer) -> torch.Tensor:
    whole = model[layer.tensor()].double()
    return whole if layer.third is None else whole.unflatten(0, (3, -1))[layer.third]


def changed(kind: str, own: Tensors, before: torch.Tensor) -> torch.Tensor:
    """The weight at strength 1 in float64, by formulas that are written down anew."""
    one = {name: tensor.double() for name, tensor in own.items()}
    scale = 1.5 / (1 if kind == "lokr" else RANK)
    if kind == "diff":
        return before + one["diff"]
    if kind == "oft":
        skew = one["oft_blocks"] - one["oft_blocks"].transpose(1, 2)
        eye = torch.eye(skew.shape[1], dtype=torch.float64)
        turn = torch.block_diag(*[((eye + q) @ (eye - q).inverse()).T for q in skew])
        return (turn @ before.flatten(1)).reshape(before.shape)
    if "lora_mid.weight" in one:
        up, down, mid = (one[f"lora_{name}.weight"] for name in ("up", "down", "mid"))
        delta = torch.einsum("oa,abhw,bi->oihw", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    elif "lora_up.weight" in one:
        delta = (one["lora_up.weight"].flatten(1) @ one["lora_down.weight"].flatten(1)).reshape(before.shape)
    elif kind == "loha":
        delta = ((one["hada_w1_a"] @ one["hada_w1_b"]) * (one["hada_w2_a"] @ one["hada_w2_b"])).reshape(before.shape)
    else:
        delta = torch.kron(one["lokr_w1"], one["lokr_w2_a"] @ one["lokr_w2_b"]).reshape(before.shape)
    merged = before + delta * scale
    if "dora_scale" in one:
        axes = [axis for axis in range(before.ndim) if axis != (1 if kind == "dora" else 0)]
        merged = merged * one["dora_scale"] / merged.square().sum(axes, keepdim=True).sqrt()
    return merged


def own_of(tensors: Tensors, layer: Layer, scheme: Scheme = "kohya") -> Tensors:
    start = f"{layer.name(scheme)}."
    return {name[len(start) :]: one for name, one in tensors.items() if name.startswith(start)}


def read(path: Path) -> Tensors:
    return dict(load_file(path))
