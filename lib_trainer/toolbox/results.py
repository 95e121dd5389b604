"""Writing a LoRA file that a tool has made: its metadata are true of its tensors, and say what was done."""

from __future__ import annotations

import contextlib
import json
import mmap
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from lib_trainer import __version__
from lib_trainer.networks.formats.lora_file import lora_metadata
from lib_trainer.networks.formats.tensor_file import pieces
from lib_trainer.refusals import SaveError
from lib_trainer.toolbox.output import Target
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.streaming import Tally, write_stream

RECIPE = "trainer_toolbox"
"""Metadata of what was done: tool, files with their strengths, rank, and what was lost, as JSON."""
LAYERS = "trainer_toolbox_layers"
"""{layer: [rank, share that is lost, rank that keeps 95 %]} as JSON."""
OLD_IDENTITY = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", LAYERS, "trainer_alphas")
OLD_NETWORK = ("ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_network_module", "ss_dim_from_weights")
ABOUT = ("ss_base_model_version", "ss_v2", "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash",
         "ss_clip_skip", "modelspec.architecture", "modelspec.prediction_type", "modelspec.sai_model_spec",
         "modelspec.resolution", "ss_zero_terminal_snr")  # fmt: skip
"""What holds for a file made of several, where they agree."""


class Spool:
    """Tensors that wait on the disk until their number and ranks are known."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._held: dict[str, tuple[int, tuple[int, ...], torch.dtype]] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        place = self._file.tell()
        place += -place % 64
        self._file.seek(place)
        for piece in pieces(tensor, tensor.dtype):
            self._file.write(piece)
        self._held[name] = (place, tuple(tensor.shape), tensor.dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Views of the file, which must not be changed."""
        self._file.flush()
        if not self._held:
            return {}
        buffer = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        found = {}
        for name, (place, shape, dtype) in self._held.items():
            count = torch.Size(shape).numel()
            whole = torch.frombuffer(buffer, dtype=dtype, count=count, offset=place) if count else torch.empty(0)
            found[name] = whole.to(dtype).reshape(shape)
        return found


@contextlib.contextmanager
def spooled(path: Path) -> Iterator[Spool]:
    """A spool beside the file that will be written. Raises `SaveError` naming that."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as file:
            yield Spool(file)
    except OSError as error:
        raise SaveError("file.not_written", path=path, reason=error) from error


def write_result(
    target: Target,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    progress: Progress,
    named: Mapping[str, str],
    tally: Tally | None = None,
) -> Path:
    """Write a LoRA file whole or not at all. Raises as `write_stream`.

    `named`: {a tensor: its name in sd-scripts' scheme}, where that is another.
    """
    layout = {name: (tuple(one.shape), one.dtype) for name, one in tensors.items()}
    described = lora_metadata(tensors, metadata, {named.get(name, name): one for name, one in tensors.items()})
    return write_stream(target, layout, tensors.__getitem__, described, progress, tally=tally)


def one_files(metadata: Mapping[str, str], *, same_kind: bool) -> dict[str, str]:
    """What still holds of a file that was changed: all of its training, and its network where the kind is the same."""
    gone = (*OLD_IDENTITY, *(() if same_kind else OLD_NETWORK))
    return {name: one for name, one in metadata.items() if name not in gone}


def shared(several: list[Mapping[str, str]]) -> dict[str, str]:
    """What holds of a file made of several: what they agree on, of what is about the model."""
    found = {}
    for name in ABOUT:
        told = {metadata[name] for metadata in several if name in metadata}
        if len(told) == 1:
            found[name] = told.pop()
    return found


def recipe(tool: str, **facts: object) -> dict[str, str]:
    """Metadata of what was done."""
    told = {"tool": tool, "version": __version__, **facts}
    return {RECIPE: json.dumps(told, ensure_ascii=False)}
