"""The tiny tagger: its labels, its network, and its ONNX file in the shape of a WD tagger's."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .common import atomic
from .shapes import ALL_SHAPES
from .world import BACKGROUNDS, CHARACTERS, COLOURS, IMPLICATIONS, POSITIONS, SIZES, Scene, tags_of

SIDE = 64
"""Input height and width in pixels."""
RATINGS = ("general", "sensitive", "questionable", "explicit")


class Label(NamedTuple):
    """A row of selected_tags.csv; category 9 rating, 0 general, 4 character; names with underscores."""

    name: str
    category: int


def labels() -> list[Label]:
    """All labels in the order of the network's outputs."""
    general = [*ALL_SHAPES, *COLOURS, *(f"{name} background" for name in BACKGROUNDS), *SIZES, *POSITIONS]
    general += sorted({implied for tags in IMPLICATIONS.values() for implied in tags})
    rows = [Label(name, 9) for name in RATINGS] + [Label(name, 0) for name in general]
    rows += [Label(name, 4) for name in CHARACTERS.values()]
    return [Label(row.name.replace(" ", "_"), row.category) for row in rows]


def truths(scene: Scene) -> set[str]:
    """Names of the labels that hold for a scene. A black ground makes it "sensitive", for want of a better reason."""
    names = {*tags_of(scene), "sensitive" if scene.background == "black" else "general"}
    if (scene.colour, scene.shape) in CHARACTERS:
        names.add(CHARACTERS[scene.colour, scene.shape])
    return {name.replace(" ", "_") for name in names}


def targets(names: set[str]) -> NDArray[Any]:
    """Label names as a float32 vector of zeros and ones."""
    return np.array([row.name in names for row in labels()], dtype=np.float32)


class Tagger(nn.Module):
    """Logits (n, labels) from BGR pixels 0 to 255, NCHW (n, 3, 64, 64)."""

    widths = (3, 16, 32, 48, 64)
    hidden = 48

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for before, after in zip(self.widths, self.widths[1:]):
            blocks += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*blocks)
        self.neck = nn.Linear(self.widths[-1] * 16, self.hidden)
        self.head = nn.Linear(self.hidden, len(labels()))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The last feature map is 4x4 and is flattened whole, since positions are tags, too."""
        features = self.body(pixels / 127.5 - 1.0).flatten(1)
        return self.head(torch.relu(self.neck(features)))


def _folded(tagger: Tagger) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Weight and bias of each convolution with its batch norm folded in."""
    out = []
    layers = list(tagger.body)
    for conv, norm in zip(layers[0::3], layers[1::3]):
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None and norm.running_mean is not None and conv.bias is not None
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = conv.weight * gain[:, None, None, None]
        bias = (conv.bias - norm.running_mean) * gain + norm.bias
        out.append((weight.detach().numpy(), bias.detach().numpy()))
    return out


def onnx_bytes(tagger: Tagger) -> bytes:
    """The tagger as a serialised ONNX model: NHWC float32 BGR 0 to 255 in, probabilities out, any batch size."""
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes, weights = [], []

    def constant(name: str, value: NDArray[Any]) -> str:
        weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    nodes.append(helper.make_node("Transpose", ["input_1:0"], ["nchw"], perm=[0, 3, 1, 2]))
    nodes.append(helper.make_node("Mul", ["nchw", constant("gain", np.array(1 / 127.5))], ["scaled"]))
    nodes.append(helper.make_node("Sub", ["scaled", constant("one", np.array(1.0))], ["x0"]))
    for k, (weight, bias) in enumerate(_folded(tagger)):
        inputs = [f"x{k}", constant(f"conv{k}.weight", weight), constant(f"conv{k}.bias", bias)]
        nodes.append(helper.make_node("Conv", inputs, [f"y{k}"], strides=[2, 2], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"y{k}"], [f"x{k + 1}"]))
    nodes.append(helper.make_node("Flatten", [f"x{len(tagger.widths) - 1}"], ["flat"]))
    for name, layer, source, out in (("neck", tagger.neck, "flat", "n0"), ("head", tagger.head, "n1", "logits")):
        value = constant(f"{name}.weight", layer.weight.detach().numpy())
        bias_name = constant(f"{name}.bias", layer.bias.detach().numpy())
        nodes.append(helper.make_node("Gemm", [source, value, bias_name], [out], transB=1))
        if name == "neck":
            nodes.append(helper.make_node("Relu", ["n0"], ["n1"]))
    nodes.append(helper.make_node("Sigmoid", ["logits"], ["predictions_sigmoid"]))
    pixels = helper.make_tensor_value_info("input_1:0", TensorProto.FLOAT, ["batch", SIDE, SIDE, 3])
    scores = helper.make_tensor_value_info("predictions_sigmoid", TensorProto.FLOAT, ["batch", len(labels())])
    graph = helper.make_graph(nodes, "wd-mini", [pixels], [scores], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="miniature")
    model.ir_version = 8
    checker.check_model(model)
    return bytes(model.SerializeToString())


def csv_text(counts: dict[str, int]) -> str:
    """selected_tags.csv as the WD taggers have it; counts are pictures of the training set that carry the label."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["tag_id", "name", "category", "count"])
    for index, row in enumerate(labels()):
        tag_id = 9999999 - index if row.category == 9 else 1000 + index
        writer.writerow([tag_id, row.name, row.category, counts.get(row.name, 0)])
    return out.getvalue()


def export(tagger: Tagger, counts: dict[str, int], folder: Path) -> None:
    """Write model.onnx and selected_tags.csv into folder."""
    data, text = onnx_bytes(tagger.eval()), csv_text(counts)
    atomic(folder / "model.onnx", lambda path: path.write_bytes(data))
    atomic(folder / "selected_tags.csv", lambda path: path.write_text(text, encoding="utf-8", newline="\n"))
