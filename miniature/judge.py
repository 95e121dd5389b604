"""Run the exported tagger: pictures in, label scores out, with the WD taggers' reference preprocessing."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .tagger_model import SIDE

DATA = Path(__file__).with_name("data")


def prepare(picture: Image.Image, side: int = SIDE) -> NDArray[Any]:
    """A picture as (side, side, 3) float32 BGR 0 to 255: on white, padded to a white square, bicubic."""
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture.convert("RGBA"))
    square = Image.new("RGB", (max(picture.size),) * 2, "white")
    square.paste(canvas.convert("RGB"), tuple((max(picture.size) - edge) // 2 for edge in picture.size))
    pixels = np.asarray(square.resize((side, side), Image.BICUBIC), dtype=np.float32)
    return np.ascontiguousarray(pixels[..., ::-1])


class Judge:
    """The tagger of a folder with model.onnx and selected_tags.csv."""

    def __init__(self, folder: Path = DATA / "wd-mini") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        with open(folder / "selected_tags.csv", encoding="utf-8", newline="") as handle:
            self.names = [row["name"].replace("_", " ") for row in csv.DictReader(handle)]

    def scores(self, pictures: Sequence[Image.Image]) -> NDArray[Any]:
        """Probabilities (n, labels) in the order of `names`, which have spaces."""
        batch = np.stack([prepare(picture) for picture in pictures])
        return np.asarray(self.session.run(None, {self.session.get_inputs()[0].name: batch})[0])

    def best(self, scores: NDArray[Any], among: Sequence[str]) -> tuple[str, float]:
        """The highest-scored of the given names in one picture's scores, and its score."""
        values = [float(scores[self.names.index(name)]) for name in among]
        return among[int(np.argmax(values))], max(values)
