"""Where a tool writes, settled before any tensor is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from lib_trainer.files import to_trash
from lib_trainer.refusals import ConfigError, Field, NameTaken, SaveError, Sentence
from lib_trainer.toolbox.writes import Precision

MOST = 10_000
"""Numbers that are tried for a free name."""
PRECISIONS: dict[Precision, torch.dtype | None] = {
    "keep": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32,
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A file that may be written. `replace`: what is there goes to the trash. `notes`: what the user is to know."""

    path: Path
    replace: bool = False
    notes: tuple[Sentence, ...] = ()


def settle(
    output: str, existing: str, inputs: Iterable[Path], ending: str = ".safetensors", field: str = "output"
) -> Target:
    """Raises `ConfigError` where no file is named, one of the inputs would be overwritten, or the name is taken.

    `field`: the option that names it.
    """
    if not output.strip():
        raise ConfigError("toolbox.no_output", field=field, output=Field(field, f"--{field}"))
    told = output.strip().strip('"')
    path = Path(told).expanduser().absolute()
    if told.endswith(("/", os.sep)):  # the file would get the folder's name, and lie beside it
        raise ConfigError("toolbox.output_is_folder", field=field, path=path)
    if path.suffix.lower() != ending:
        path = path.with_name(path.name + ending)
    if path.is_dir():
        raise ConfigError("toolbox.output_is_folder", field=field, path=path)
    if not os.path.lexists(path):
        return Target(path)
    free = _free(path, field)
    if existing == "number":
        return Target(free, notes=(Sentence("toolbox.numbered", path=path, name=free.name),))
    if any(os.path.realpath(one) == os.path.realpath(path) for one in inputs):
        raise ConfigError("toolbox.output_is_input", field=field, path=path)
    if existing == "replace":
        return Target(path, replace=True)
    raise NameTaken(
        "toolbox.taken", field=field, taken=path, free=free.name, existing=Field("existing", "--existing"),
        replaceable=True,
    )  # fmt: skip


def _free(path: Path, field: str) -> Path:
    for number in range(2, MOST):
        tried = path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not os.path.lexists(tried):
            return tried
    raise ConfigError("toolbox.no_number", field=field, path=path)


def discard(path: Path) -> Path:
    """Move a file into the trash folder beside it, and say where it is. Raises `SaveError`; then it is where it was."""
    try:
        return to_trash([path])[0]
    except OSError as error:
        raise SaveError("trash.failed", path=path, reason=error.strerror or error) from error


def stored_as(dtype: torch.dtype, precision: Precision) -> torch.dtype:
    """The type that a tensor gets. Whole numbers and truth values keep theirs."""
    wanted = PRECISIONS[precision]
    return dtype if wanted is None or not dtype.is_floating_point else wanted
