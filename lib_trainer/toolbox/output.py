"""Where a tool writes, settled before any tensor is read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from lib_trainer.files import to_trash
from lib_trainer.networks.formats.description import beside, carry_description, described_by
from lib_trainer.networks.formats.writing import new_file
from lib_trainer.refusals import ConfigError, Field, Joined, NameTaken, SaveError, Sentence
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.writes import Precision
from lib_trainer.training.names import FORBIDDEN, what_is_wrong

MOST = 10_000
"""Numbers that are tried for a free name."""
PRECISIONS: dict[Precision, torch.dtype | None] = {
    "keep": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32,
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A file that may be written. `replace`: what is there goes to the trash, with its `.yaml` where one is named.
    `notes`: what the user is to know. `field`: the option that names it; `base`: the model whose .yaml it gets."""

    path: Path
    replace: bool = False
    notes: tuple[Sentence, ...] = ()
    yaml: Path | None = None
    field: str = "output"
    base: Path | None = None


@dataclass
class Written:
    """A result that is being written; `path` is where it lies when that is over."""

    file: BinaryIO
    path: Path


def settle(
    output: str,
    existing: str,
    inputs: Iterable[Path],
    ending: str = ".safetensors",
    field: str = "output",
    base: Path | None = None,
) -> Target:
    """Raises `ConfigError` where no file is named, or by what is no name on every system, one of the inputs would be
    overwritten, the name is taken, or what becomes a model would be described by a .yaml that is not its own.

    `field`: the option that names it. `base`: the model whose .yaml the result gets.
    """
    if not output.strip():
        raise ConfigError("toolbox.no_output", field=field, output=Field(field, f"--{field}"))
    told = output.strip().strip('"')
    path = Path(told).expanduser().absolute()
    if told.endswith(("/", os.sep)):  # the file would get the folder's name, and lie beside it
        raise ConfigError("toolbox.output_is_folder", field=field, path=path)
    if path.suffix.lower() != ending:
        path = path.with_name(path.name + ending)
    if (why := what_is_wrong(path.stem)) is not None:
        raise ConfigError("toolbox.no_file_name", field=field, name=path.stem, why=why, forbidden=Joined(FORBIDDEN))
    if path.is_dir():
        raise ConfigError("toolbox.output_is_folder", field=field, path=path)
    # the root of a drive that is away (Windows) is not there either
    above = next((folder for folder in path.parents if os.path.lexists(folder)), Path(path.anchor))
    if not above.is_dir():
        raise ConfigError("toolbox.in_a_file", field=field, path=path, file=above)
    taken, foreign = os.path.lexists(path), base is not None and _is_foreign(path, base)
    if not taken and not foreign:
        return Target(path, field=field, base=base)
    free = _free(path, field, base)
    if existing == "number":
        there = path if taken else beside(path)
        return Target(free, notes=(numbered(there, free),), field=field, base=base)
    if any(os.path.realpath(one) == os.path.realpath(path) for one in inputs):
        raise ConfigError("toolbox.output_is_input", field=field, path=path)
    if foreign and (not taken or (existing == "replace" and described_by(beside(path), path))):
        raise ConfigError("toolbox.described", field=field, yaml=beside(path))
    if existing == "replace":
        yaml = beside(path) if foreign else None
        return Target(
            path, True, () if yaml is None else (Sentence("toolbox.yaml_to_trash", yaml=yaml),), yaml, field, base
        )
    raise NameTaken(
        "toolbox.taken", field=field, taken=path, free=free.name, existing=Field("existing", "--existing"),
        replaceable=True,
    )  # fmt: skip


def numbered(path: Path, free: Path) -> Sentence:
    return Sentence("toolbox.numbered", path=path, name=free.name)


@contextlib.contextmanager
def written(target: Target, progress: Progress) -> Iterator[Written]:
    """A result to write into, whole or not there. What has cost a computation is not lost where another file has taken
    its name meanwhile: it gets the next free one, and the end says so. Raises `SaveError`."""

    def elsewhere() -> Path:
        result.path = _free(target.path, target.field, target.base)
        return result.path

    # never written through a link: what it leads to is another's file, and only the link would go to the trash
    with new_file(target.path, overwrite=False, otherwise=elsewhere) as file:
        result = Written(file, target.path)
        yield result
    if result.path != target.path:
        progress.notes.append(numbered(target.path, result.path))


def describe_result(progress: Progress, base: Path, result: Path) -> None:
    """A result gets the .yaml of the model that it is made of. It is there also where that fails: the end says so."""
    lacking = carry_description(base, result)
    if lacking is not None:
        progress.notes.append(lacking)


def _free(path: Path, field: str, base: Path | None) -> Path:
    for number in range(2, MOST):
        tried = path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not os.path.lexists(tried) and not (base is not None and _is_foreign(tried, base)):
            return tried
    raise ConfigError("toolbox.no_number", field=field, path=path)


def _is_foreign(path: Path, base: Path) -> bool:
    """Whether a .yaml lies where the result's would, and is another than that of the model that it is made of."""
    there, own = beside(path), beside(base)
    if not os.path.lexists(there):
        return False
    try:
        return not own.is_file() or (not there.samefile(own) and there.read_bytes() != own.read_bytes())
    except OSError:
        return True


def make_way(target: Target) -> None:
    """Move what is to be replaced into the trash: what of it is there by now. Raises `SaveError`, as `discard`."""
    replaced = [path for path in (target.path, target.yaml) if path is not None and os.path.lexists(path)]
    if target.replace and replaced:
        discard(*replaced)


def discard(path: Path, *more: Path) -> Path:
    """Move a file, and more beside it, into the trash folder beside it, and say where it is. Raises `SaveError`; then
    all is where it was."""
    try:
        return to_trash([path, *more])[0]
    except OSError as error:
        raise SaveError("trash.failed", path=path, reason=error.strerror or error) from error


def written_as(read: Collection[torch.dtype]) -> torch.dtype:
    """The type of what is computed of numbers of these types and has none of its own: fp32 where one is as exact, else
    the more exact half precision. 8 bits would lose what was computed."""
    if {torch.float64, torch.float32} & set(read):
        return torch.float32
    return torch.bfloat16 if torch.bfloat16 in read and torch.float16 not in read else torch.float16


def stored_as(dtype: torch.dtype, precision: Precision) -> torch.dtype:
    """The type that a tensor gets. Whole numbers and truth values keep theirs."""
    wanted = PRECISIONS[precision]
    return dtype if wanted is None or not dtype.is_floating_point else wanted
