"""What is checked before any model is touched, beyond the bounds of the single fields."""

from __future__ import annotations

from pathlib import Path

from lib_trainer.config import JobConfig
from lib_trainer.errors import ConfigError
from lib_trainer.ports import Host
from lib_trainer.training.kinds import TRAINING_KINDS
from lib_trainer.training.optimizers import check_optimizer
from lib_trainer.training.precision import resolve_precision
from lib_trainer.training.prior import check_prior
from lib_trainer.training.words import word_names, word_path

UNET_STRIDE = 64
"""Pixels per cell of the UNet's coarsest level: the VAE's 8 times three halvings."""
FORBIDDEN_IN_NAMES = '<>:"/\\|?*'
"""What file systems forbid, and what would end `<lora:name:1>` early."""


LONGEST_NAME = 200
"""In bytes of UTF-8: file systems take 255, of which a step's number and a temporary file's ending need some."""


def check_job(job: JobConfig, host: Host) -> None:
    """Raise `ConfigError` for fields that contradict each other, the host or its device."""
    check_name(job.output.name)
    for field in ("width", "height"):
        size = getattr(job.dataset, field)
        if size % UNET_STRIDE:
            nearest = max(UNET_STRIDE, round(size / UNET_STRIDE) * UNET_STRIDE)
            raise ConfigError(f"dataset.{field} = {size} is not a multiple of {UNET_STRIDE}: take {nearest}.")
        preview = getattr(job.preview, field)
        if preview % 8 or 0 < preview < UNET_STRIDE:
            raise ConfigError(
                f"preview.{field} = {preview} is not 0 or a multiple of 8 from {UNET_STRIDE} on: take "
                f"{max(UNET_STRIDE, preview // 8 * 8)}."
            )
    check_prior(job)
    resolve_precision(job.training.precision, host.device())
    check_optimizer(job.optimizer.name, host.device())
    if job.preview.sampler and job.preview.sampler not in host.samplers():
        raise ConfigError(
            f"preview.sampler = {job.preview.sampler!r} is not known here: take one of {', '.join(host.samplers())}."
        )


def check_name(name: str) -> None:
    """Raise `ConfigError` unless `name` is a plain file name that a prompt can hold."""
    if not name.strip():
        raise ConfigError("output.name is empty: give the result a name.")
    bad = sorted({character for character in name if character in FORBIDDEN_IN_NAMES or not character.isprintable()})
    if bad:
        shown = " ".join(repr(character)[1:-1] for character in bad)
        raise ConfigError(
            f"output.name = {name!r} contains {shown}: take letters, digits, '-' and '_'; the folder has its own field."
        )
    if len(name.encode("utf-8", errors="surrogatepass")) > LONGEST_NAME:
        raise ConfigError(f"output.name is longer than a file's name may be ({LONGEST_NAME} bytes): shorten it.")
    if name != name.strip() or name.startswith(".") or name.endswith("."):
        raise ConfigError(f"output.name = {name!r} begins or ends with a dot or a space: remove it.")


def output_path(job: JobConfig, host: Host) -> Path:
    """Where the result goes. Raises `ConfigError` if that file or a step of it exists, or the folder cannot be one."""
    kind = TRAINING_KINDS[job.network.kind]
    folder = Path(job.output.folder).expanduser() if job.output.folder else kind.folder(host)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output.folder = {str(folder)!r} is a file: choose a folder.")
    path = folder / f"{job.output.name}{kind.ending(job)}"
    names = word_names(job) if job.network.kind == "embedding" else []
    paths = [path, *(word_path(path, name, job) for name in names)]
    taken = next((found for one in paths if (found := one if one.exists() else _existing_step(one))), None)
    if taken is not None:
        raise ConfigError(f"output.name = {job.output.name!r}: {taken} exists already: choose another name or move it.")
    return path


def result_path(path: Path, job: JobConfig) -> Path:
    """The file that a finished run is known by: of several embeddings the first."""
    return word_path(path, word_names(job)[0], job) if job.network.kind == "embedding" else path


def step_path(path: Path, step: int) -> Path:
    """The file of an intermediate step, beside the final one."""
    return path.with_name(f"{path.stem}-step{step:08d}{path.suffix}")


def _existing_step(path: Path) -> Path | None:
    prefix, length = f"{path.stem}-step", len(step_path(path, 0).name)
    if not path.parent.is_dir():
        return None
    for other in sorted(path.parent.iterdir()):
        if other.name.startswith(prefix) and len(other.name) == length and other.suffix == path.suffix:
            return other
    return None
