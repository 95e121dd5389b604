"""The files that a job will write, what of them is there already, and what is done then (`output.existing`)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_trainer.config import JobConfig
from lib_trainer.families.prediction import Predicts
from lib_trainer.files import plain, to_trash
from lib_trainer.kinds.outputs import Outputs, best_path, step_path
from lib_trainer.kinds.registry import kind_of
from lib_trainer.lettering import said
from lib_trainer.networks.formats.description import ENDINGS as CHECKPOINTS
from lib_trainer.networks.formats.description import beside, described_by
from lib_trainer.networks.formats.embedding_file import ENDINGS
from lib_trainer.networks.formats.picture_embedding import PICTURES, carried_name
from lib_trainer.ports import Host, LoadedModel
from lib_trainer.refusals import ConfigError, Field, NameTaken, SaveError, Sentence
from lib_trainer.training.card import sidecars
from lib_trainer.training.checks import check_names, output_folder

MOST = 10_000
"""Numbers that are tried for a free name."""


@dataclass(frozen=True)
class Settled:
    """A job with names that it may write. `replaced` files go to the trash when their successors are written."""

    job: JobConfig
    replaced: tuple[Path, ...] = ()
    note: Sentence | None = None


def settle(job: JobConfig, host: Host) -> Settled:
    """Raise `NameTaken` for a name that is taken, or do what `output.existing` says of it. Touches no file."""
    taken = taken_files(job, host)
    if not taken:
        return Settled(job)
    if job.output.existing == "number":
        free = with_next_free_name(job, host)
        note = Sentence("name.numbered", path=taken[0], name=free.output.name)
        return Settled(free, note=note)
    elsewhere = next((path for path in taken if not _written_here(path, job, host)), None)
    if job.output.existing == "replace" and elsewhere is None:
        cards = (card for path in taken for card in sidecars(path) if os.path.lexists(card))
        return Settled(job, (*taken, *cards))  # the new file gets a card of its own
    path = elsewhere or _newest(taken, outputs_of(job, host))
    field, name = (
        ("output.name", job.output.name) if elsewhere is None else (kind_of(job).names_field(job), elsewhere.stem)
    )
    next_free = next_free_name(job, host)
    raise NameTaken(
        "name.taken",
        field=field,
        name=name,
        taken=path,
        free=next_free,
        replaceable=elsewhere is None,
        existing=Field("output.existing"),
    )


def _newest(taken: Sequence[Path], outputs: Outputs) -> Path:
    """What a run would go on from: the end of the one before, else its last step. The best is chosen by name alone."""
    ends = [path for path in taken if plain(path.name) == plain(outputs.result.name)]
    steps = [path for path in taken if path.parent == outputs.result.parent and "-step" in path.stem]
    return next(iter(ends), max(steps, key=lambda path: path.name, default=taken[0]))


def outputs_of(job: JobConfig, host: Host) -> Outputs:
    """Every file that a finished run of this job leaves. Raises `ConfigError` for a folder that cannot be one."""
    kind = kind_of(job)
    return kind.outputs(job, output_folder(job, kind, host), host)


@dataclass(frozen=True)
class Saved:
    """The results of one step of a run, in the order of `Outputs.results`. `label` is what a picture of them says."""

    label: str
    files: tuple[Path, ...]
    best: bool = False


def saved_files(job: JobConfig, host: Host) -> list[Saved]:
    """What runs of a job have left: its steps in their order, the end, and the best. Raises as `outputs_of` does."""
    outputs = outputs_of(job, host)
    pattern = re.compile(rf"{re.escape(outputs.result.stem)}-step(\d{{8}}){re.escape(outputs.result.suffix)}")
    try:
        names = os.listdir(outputs.result.parent)
    except OSError:
        return []
    steps = sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)
    found = [Saved(said(Sentence("drawn.step", step=step)), outputs.of_step(step).results) for step in steps]
    found.append(Saved(said(Sentence("drawn.end")), outputs.results))
    found.append(Saved(said(Sentence("drawn.best")), outputs.best.results, best=True))
    return [one for one in found if all(path.is_file() for path in one.files)]


def newest_run(job: JobConfig, host: Host) -> JobConfig:
    """The job under the name of the run that has written last, where `output.existing` numbers them; else as it is."""
    if job.output.existing != "number":
        return job
    kind, folder = kind_of(job), outputs_of(job, host).result.parent
    try:
        names = os.listdir(folder)
    except OSError:
        return job
    numbers = {int(found) for name in names for found in re.findall(r"-(\d{1,4})(?=[-.])", name)}
    runs = [job, *(kind.numbered(job, number) for number in sorted(numbers) if 1 < number < MOST)]
    saved = [(one, [path for step in saved_files(one, host) for path in step.files]) for one in reversed(runs)]
    written = ((max(map(os.path.getmtime, paths)), one) for one, paths in saved if paths)
    return max(written, key=lambda found: found[0], default=(0.0, job))[1]


def taken_files(job: JobConfig, host: Host) -> list[Path]:
    """What is there under these names, or under those of steps and of the best one where the job keeps it, in any case
    of letters.

    Also embeddings anywhere in the host's folder that a prompt would find by the name of one that is to be learned.
    """
    found = [there for path in outputs_of(job, host).all for there in _alike(path, best=keeps_best(job))]
    words = (existing_embedding(host.embedding_folder(), name) for name in kind_of(job).words(job))
    found += [path for path in words if path is not None]
    return list(dict.fromkeys(found))


def next_free_name(job: JobConfig, host: Host) -> str:
    """The name with the lowest number under which nothing that this job writes exists."""
    return with_next_free_name(job, host).output.name


def with_next_free_name(job: JobConfig, host: Host) -> JobConfig:
    """The job under the next free name. The words of embeddings get the number too, except those of a LoRA's file.

    Raises `ConfigError` where none of many numbers is free.
    """
    for number in range(2, MOST):
        numbered_job = kind_of(job).numbered(job, number)
        if not taken_files(numbered_job, host):
            return numbered_job
    raise ConfigError("name.no_number", field="output.name", name=job.output.name)


def discard(paths: Iterable[Path]) -> dict[Path, Path]:
    """Move what is to be replaced into the trash folder beside it: {what was there: where it is now}.

    Raises `SaveError`; then all is where it was.
    """
    paths = [path for path in paths if os.path.lexists(path)]
    if not paths:
        return {}
    try:
        return dict(zip(paths, to_trash(paths), strict=True))
    except OSError as error:
        raise SaveError("trash.failed", path=paths[0], reason=error.strerror or error) from error


@contextlib.contextmanager
def making_way(paths: Iterable[Path]) -> Iterator[None]:
    """What is to be replaced goes to the trash, and what takes its place is written inside. Where that fails, all that
    has no successor comes back. Raises `SaveError`, as `discard`."""
    moved = discard(paths)
    try:
        yield
    except BaseException:
        for path, place in moved.items():
            with contextlib.suppress(OSError):
                if not os.path.lexists(path):
                    os.rename(place, path)
                place.parent.rmdir()
        raise


def discard_taken(job: JobConfig, host: Host) -> list[Path]:
    """Move what is there under a job's names to the trash, steps and cards too. Returns what was moved.

    Raises `ConfigError` for a name that is none, for a file that is none of this job's results, or that is loaded, and
    `SaveError` where one cannot be moved; then all is where it was.
    """
    kind = kind_of(job)
    check_names(job, kind)
    taken = taken_files(job, host)
    for path in taken:
        if not _written_here(path, job, host):
            raise ConfigError("trash.elsewhere", field=kind.names_field(job), path=path)
    if host.parts():
        check_replaced(taken, host.model())
    check_described(taken)
    moved = [*taken, *(card for path in taken for card in sidecars(path) if os.path.lexists(card))]
    discard(moved)
    return moved


def takes_the_place_of(outputs: Outputs, path: Path) -> bool:
    """Whether a file of an earlier run has the name of one of these, or of what lies beside it: a card, a .yaml."""
    names = {plain(one.name) for result in outputs.results for one in (result, beside(result), *sidecars(result))}
    return plain(path.name) in names


def check_replaced(replaced: Iterable[Path], model: LoadedModel) -> None:
    """Raise `ConfigError` if the checkpoint that is loaded, or its .yaml, would be moved away under the run, or the
    .yaml of another one."""
    replaced = list(replaced)
    if model.file is not None:
        loaded = os.path.realpath(model.file)
        described = {os.path.realpath(beside(model.file)), os.path.realpath(beside(Path(loaded)))}
        for path in replaced:
            if os.path.realpath(path) == loaded:
                raise ConfigError("name.loaded", field="output.name", path=path)
            if os.path.realpath(path) in described:
                raise ConfigError("name.describes_loaded", field="output.name", path=path)
    check_described(replaced)


def check_described(replaced: Sequence[Path]) -> None:
    """Raise `ConfigError` if a .yaml would be moved away from a checkpoint that stays."""
    for path in replaced:
        others = described_by(path, *replaced) if path.suffix.lower() == ".yaml" else []
        if others:
            raise ConfigError("name.describes_other", field="output.name", path=path, other=others[0])


def check_neighbours(job: JobConfig, outputs: Outputs, host: Host, found: Predicts) -> None:
    """Raise `ConfigError` if the .yaml that is written beside a checkpoint would describe another one too, which has
    the same name but for its ending, and none of its own."""
    if not kind_of(job).writes_model or not _is_described(job, host, found):
        return
    result = outputs.result
    for ending in CHECKPOINTS:
        others = [] if ending == result.suffix else _alike(result.with_suffix(ending), best=keeps_best(job))
        for other in others:
            if not beside(other).exists():
                raise ConfigError("name.would_describe", field="output.name", path=result, other=other)


def _is_described(job: JobConfig, host: Host, found: Predicts) -> bool:
    """Whether a checkpoint that is trained gets a .yaml: its base has one, or hosts would take it for another."""
    if found.file is not None and beside(found.file).is_file():
        return True
    prediction = found.prediction if job.model.prediction == "auto" else job.model.prediction
    return prediction == "v" and bool(host.family().config) and not host.inpaints()


def existing_embedding(folder: Path, name: str) -> Path | None:
    """The file by which a prompt would find that name already. A picture is one only where it carries an embedding."""
    if not folder.is_dir():
        return None
    wanted = plain(name)
    for path in sorted(folder.rglob("*")):
        ending = path.suffix.lower()
        if ending in ENDINGS and plain(path.stem) == wanted and path.is_file():
            return path
        if ending in PICTURES and not path.stem.lower().endswith(".preview"):
            carried = carried_name(path, pixels=plain(path.stem) == wanted)
            if carried is not None and plain(carried) == wanted:
                return path
    return None


def keeps_best(job: JobConfig) -> bool:
    """Whether a run writes the step with the lowest held-out loss under a name of its own."""
    return job.validation.keep_best and job.validation.pictures != "none"


def _alike(path: Path, *, best: bool) -> list[Path]:
    """The file itself, those of steps and on demand the best, as file systems compare names that fold case and
    composition."""
    step = re.escape(plain(step_path(path, 0).name)).replace("0" * 8, r"\d{8}")
    others = [re.escape(plain(one.name)) for one in (path, *([best_path(path)] if best else []))]
    pattern = re.compile("|".join([step, *others]))
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return []
    return [path.parent / name for name in names if pattern.fullmatch(plain(name))]


def _written_here(path: Path, job: JobConfig, host: Host) -> bool:
    """Whether a file is one of this job's own results; others are never moved."""
    return path.is_file() and any(path in _alike(one, best=keeps_best(job)) for one in outputs_of(job, host).all)
