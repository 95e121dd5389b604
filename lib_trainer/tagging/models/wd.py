"""WD taggers through onnxruntime: (n, side, side, 3) blue-first pixels in, probabilities out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lib_trainer.refusals import Sentence, TaggerError
from lib_trainer.tagging.models import preprocess
from lib_trainer.tagging.models.files import WD_FILES, problem_of_files
from lib_trainer.tagging.models.labels import read_labels

PROVIDERS = {
    "CUDAExecutionProvider": "CUDA",
    "ROCMExecutionProvider": "ROCm",
    "MIGraphXExecutionProvider": "MIGraphX",
    "DmlExecutionProvider": "DirectML",
    "CoreMLExecutionProvider": "CoreML",
    "CPUExecutionProvider": "CPU",
}
"""In the order of preference. TensorRT is left out: it compiles for minutes at every new shape."""

BATCHES = {"CPU": 1}
"""Pictures at once: on a processor one picture's activations stay in its caches, and four at once take 10% longer."""

BATCH_ON_GPU = 16
SAMPLE, SAMPLES = 1 << 16, 64
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class WdTagger:
    """A folder with `model.onnx` and `selected_tags.csv`, opened.

    `threads`: of onnxruntime inside one picture, 0 for its own choice. `device`: 'auto', or 'cpu' to stay on the
    processor. Raises `TaggerError` in one sentence for whatever is wrong with the folder.
    """

    notes: Sequence[Sentence]

    def __init__(self, folder: Path, threads: int = 0, device: str = "auto") -> None:
        problem = problem_of_files(folder, WD_FILES)
        if problem:
            raise TaggerError("tagger.unusable", folder=folder, reason=problem)
        self.name = folder.name
        self.labels = read_labels(folder / "selected_tags.csv")
        self._session, self.notes = _open_session(folder / "model.onnx", threads, device)
        self.device = PROVIDERS.get(self._session.get_providers()[0], self._session.get_providers()[0])
        self._input, self._output, self.side, self._fixed = _checked_shape(self._session, folder, len(self.labels))
        self._type = TYPES[self._input.type]
        self.max_batch = self._fixed or BATCHES.get(self.device, BATCH_ON_GPU)
        self.fingerprint = fingerprint(folder)

    def load(self, path: Path, data: bytes | None = None) -> NDArray[np.uint8]:
        return preprocess.load(path, self.side, data)

    def fit(self, image: Image.Image) -> NDArray[np.uint8]:
        return preprocess.squared(image, self.side)

    def batch(self, pictures: Sequence[NDArray[np.uint8]]) -> Any:
        return preprocess.batched(pictures).astype(self._type, copy=False)

    def scores(self, batch: Any) -> NDArray[np.float32]:
        """Raises `TaggerError` where the provider gives up, for want of memory say, or what comes is no number: as a
        score it would say that nothing is on the picture."""
        count = len(batch)
        if count < self._fixed:  # the last pictures of a folder, or one alone
            batch = np.concatenate([batch, np.zeros((self._fixed - count, *batch.shape[1:]), batch.dtype)])
        try:
            result = self._session.run([self._output.name], {self._input.name: batch})[0][:count]
        except Exception as error:
            raise TaggerError("tagger.failed", name=self.name, device=self.device, reason=error) from error
        if result.shape[-1] != len(self.labels):  # a model whose output has no size in its file
            raise TaggerError("tagger.mismatch", folder=self.name, labels=len(self.labels), outputs=result.shape[-1])
        scores = np.asarray(result, dtype=np.float32)
        if not np.isfinite(scores).all():  # half precision that overflows, or a driver's fault
            raise TaggerError("tagger.not_numbers", name=self.name, device=self.device)
        return scores


def fingerprint(folder: Path) -> str:
    """32 hexadecimal digits that tell one model's files from another's: all of the list of tags, and of the network
    its size and 64 stretches of 64 KiB (a whole hash of a gigabyte would cost seconds at each start)."""
    digest = hashlib.sha256((folder / "selected_tags.csv").read_bytes())
    with (folder / "model.onnx").open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(str(size).encode())
        last = max(0, size - SAMPLE)
        for number in range(SAMPLES):
            file.seek(last * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE))
            if not last:
                break
    return digest.hexdigest()[:32]


def _open_session(path: Path, threads: int, device: str) -> tuple[Any, tuple[Sentence, ...]]:
    """The session, and sentences on what came otherwise than hoped."""
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # its own warnings are no help to a user; failures come as exceptions
    there = ort.get_available_providers()
    wanted = [name for name in PROVIDERS if name in there]
    if device == "cpu" or not wanted:
        wanted = ["CPUExecutionProvider"]
    notes: list[Sentence] = []
    try:
        session = ort.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:
        if wanted[0] == "CPUExecutionProvider":
            raise _unreadable(path, error) from error
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception:
            raise _unreadable(path, error) from error
        notes.append(Sentence("tagger.device_failed", device=PROVIDERS[wanted[0]], reason=error))
    running = session.get_providers()[0]
    if running != wanted[0]:
        offered, used = PROVIDERS[wanted[0]], PROVIDERS.get(running, running)
        notes.append(Sentence("tagger.slower_device", offered=offered, used=used))
    return session, tuple(notes)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise TaggerError("tagger.no_onnxruntime", reason=error) from error
    return onnxruntime


def _unreadable(path: Path, error: Exception) -> TaggerError:
    return TaggerError("tagger.no_onnx", path=path, reason=error)


def _checked_shape(session: Any, folder: Path, labels: int) -> tuple[Any, Any, int, int]:
    """Input, output, side and the fixed batch size (0 if it is free)."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    square = len(shape) == 4 and isinstance(shape[1], int) and shape[1] == shape[2] and shape[3] == 3
    if not square or inputs[0].type not in TYPES:
        raise TaggerError("tagger.not_wd", path=folder / "model.onnx", takes=str(shape or len(inputs)))
    # a network that gives what it has seen (an embedding), too, may give that first
    output = next((one for one in outputs if one.shape and one.shape[-1] == labels), outputs[0])
    width = output.shape[-1] if output.shape else None
    if isinstance(width, int) and width != labels:
        raise TaggerError("tagger.mismatch", folder=folder, labels=labels, outputs=width)
    return inputs[0], output, shape[1], shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 0
