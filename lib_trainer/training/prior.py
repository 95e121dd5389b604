"""Class pictures for prior preservation (Ruiz et al. 2023, arXiv:2208.12242, section 3.3).

Class pictures are drawn by the host with the model as it is before training, so that what it knew is shown beside what
it learns.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from lib_trainer.config import JobConfig
from lib_trainer.dataset.folder import list_folder, trained_pictures
from lib_trainer.dataset.pictures import PictureError, load_picture
from lib_trainer.dataset.scan import Sample, is_told, scan_folder
from lib_trainer.files import write_atomically
from lib_trainer.kinds.base import Kind
from lib_trainer.ports import Host, LoadedModel, PreviewRequest
from lib_trainer.refusals import ConfigError, Field, ModelError, Sentence
from lib_trainer.training.failures import short_of_memory


def wants_class_pictures(job: JobConfig, kind: Kind) -> bool:
    return bool(job.prior.class_prompt) and kind.has_class_pictures


def check_prior(job: JobConfig, kind: Kind) -> None:
    """Raise `ConfigError` for a class prompt that calls what is learned, and for a folder that cannot be one."""
    prior = job.prior
    if not kind.has_class_pictures:
        return
    word = next((word for word in kind.trigger_words(job) if is_told(word, prior.class_prompt)), None)
    if word is not None:
        raise ConfigError("prior.trigger", field="prior.class_prompt", word=word)
    if not prior.class_folder:
        return
    if not prior.class_prompt:
        raise ConfigError("prior.no_prompt", field="prior.class_prompt", class_folder=Field("prior.class_folder"))
    folder = Path(prior.class_folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError("prior.a_file", field="prior.class_folder", folder=folder)
    places = (folder, *folder.absolute().parents)  # the last is not there either on a drive that is away (Windows)
    existing = next((place for place in places if place.exists()), places[-1])
    if not os.access(existing, os.W_OK) and len(_pictures(folder)) < prior.class_pictures:
        raise ConfigError("prior.locked", field="prior.class_folder", folder=folder)


def class_folder(job: JobConfig, host: Host, model: LoadedModel) -> Path:
    """The job's folder, or one of the trainer's own for this prompt, size, clip skip and model, whatever the model is
    called."""
    if job.prior.class_folder:
        return Path(job.prior.class_folder).expanduser()
    data = job.dataset
    facts = f"{job.prior.class_prompt}\n{data.width}x{data.height}\n{_model_digest(model)}"
    if (asked := (job.model.prediction, job.model.zero_terminal_snr)) != ("auto", "auto"):
        facts += f"\n{asked}"
    if model.family.clip_skip and job.training.clip_skip > 1:
        facts += f"\nclip skip {job.training.clip_skip}"
    return host.cache_folder() / "class" / hashlib.sha256(facts.encode()).hexdigest()[:16]


def class_samples(
    job: JobConfig,
    host: Host,
    model: LoadedModel,
    progress: Callable[[int, int], None],
    stopping: Callable[[], bool],
    tell: Callable[[str | Sentence], None],
) -> list[Sample]:
    """The class pictures, of which the missing ones are drawn now, under names that are free; what lies there stays.

    Pictures that cannot be read do not count; `tell` is given a sentence for each, and for what is not read. Raises
    `ModelError` if they cannot be made.
    """
    folder, wanted = class_folder(job, host, model), job.prior.class_pictures
    broken = {path: reason for path in _pictures(folder) if (reason := _trouble(path))}
    for path, reason in broken.items():
        tell(Sentence("prior.unreadable", path=path, reason=reason))
    there = len(_pictures(folder)) - len(broken)
    numbers = _free_numbers(folder)
    for done in range(there, wanted):
        if stopping():
            return []
        progress(done, wanted)
        _draw(job, host, folder, next(numbers))
    if there < wanted:
        progress(wanted, wanted)
    return _read(job, folder, broken, tell)


def class_samples_there(
    job: JobConfig, host: Host, model: LoadedModel, tell: Callable[[str | Sentence], None]
) -> list[Sample]:
    """As `class_samples`, but none are drawn, and nothing is written."""
    folder = class_folder(job, host, model)
    broken = [path for path in _pictures(folder) if _trouble(path)]
    return _read(job, folder, broken, tell) if len(_pictures(folder)) > len(broken) else []


def _read(
    job: JobConfig, folder: Path, broken: Container[Path], tell: Callable[[str | Sentence], None]
) -> list[Sample]:
    scan = scan_folder(folder, trigger_word=job.prior.class_prompt, repeats=1)
    for note in scan.notes:
        tell(note)
    return [replace(sample, role="class") for sample in scan.samples if sample.path not in broken]


def _free_numbers(folder: Path) -> Iterator[int]:
    """Numbers of class pictures that no picture has, whatever its ending."""
    names = list_folder(folder).pictures if folder.is_dir() else ()
    taken = {name.partition(".")[0].casefold() for name in names}
    return (number for number in itertools.count() if f"class-{number:05}" not in taken)


def _trouble(path: Path) -> Sentence | None:
    """Why a picture cannot be used; None where it can. It is decoded: a header alone promises too much."""
    try:
        load_picture(path)
    except PictureError as error:
        return error.reason
    return None


def _model_digest(model: LoadedModel) -> str:
    """What tells a model from others of its name: the hash of its file, or some of its weights where it has none."""
    if model.file_hash:
        return model.file_hash
    digest = hashlib.sha256()
    if model.file is not None and model.file.is_file():
        with model.file.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    digest.update(f"{model.name}\n{model.vae_fingerprint()}".encode())
    for one in model.own_parameters():
        values = getattr(one.owner, one.name).detach().flatten()[:16]
        digest.update(one.key.encode() + values.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _draw(job: JobConfig, host: Host, folder: Path, number: int) -> None:
    preview, data = job.preview, job.dataset
    request = PreviewRequest(
        prompt=job.prior.class_prompt,
        width=data.width,
        height=data.height,
        steps=preview.steps,
        cfg_scale=preview.cfg_scale,
        sampler=preview.sampler,
        seed=(job.training.seed + number) % 2**32,
        clip_skip=job.training.clip_skip,
        prediction=job.model.prediction,
        zero_terminal_snr=job.model.zero_terminal_snr,
    )
    try:
        image = host.preview(request)
        buffer = BytesIO()
        image.save(buffer, "PNG")
        write_atomically(folder / f"class-{number:05}.png", buffer.getvalue(), overwrite=False)
    except Exception as error:  # a host's sampler may raise anything
        if short_of_memory(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            "prior.not_drawn",
            number=number + 1,
            count=job.prior.class_pictures,
            reason=reason,
            prompt=job.prior.class_prompt,
            folder=folder,
            class_prompt=Field("prior.class_prompt"),
        ) from error


def _pictures(folder: Path) -> list[Path]:
    return trained_pictures(folder) if folder.is_dir() else []
