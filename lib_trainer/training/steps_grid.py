"""After a run: its saved files beside each other, a row for each step and a column for each weight, drawn by the host's
own sampler, which is called as prompts call it."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from PIL import Image

from lib_trainer.config import JobConfig
from lib_trainer.grids import MOST_PIXELS, write_painted
from lib_trainer.kinds.base import Kind
from lib_trainer.kinds.registry import kind_of
from lib_trainer.lettering import said
from lib_trainer.memory import release
from lib_trainer.ports import Host, Lease, PreviewRequest
from lib_trainer.refusals import ConfigError, Count, Field, ModelError, Problems, SaveError, Sentence, TrainerError
from lib_trainer.training.checks import check_drawing
from lib_trainer.training.preview_prompts import PROMPT, labels, preview_requests
from lib_trainer.training.results import Saved, saved_files
from lib_trainer.training.steps_grid_settings import StepsGridSettings
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from lib_trainer.work.job import new_id
from lib_trainer.work.meter import Meter


@dataclass(frozen=True)
class StepsGrid:
    """What will be drawn: `requests[row][column]`. `files` are those that the host must know."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    requests: tuple[tuple[PreviewRequest, ...], ...]
    files: tuple[Path, ...]
    path: Path
    name: str
    notes: tuple[Sentence, ...] = ()

    @property
    def title(self) -> Sentence:
        return Sentence("steps_grid.title", name=self.name)

    @property
    def count(self) -> int:
        """Pictures; those that are asked for alike are drawn once."""
        return len({request for row in self.requests for request in row})


def prepare_steps_grid(job: JobConfig, settings: StepsGridSettings, host: Host) -> StepsGrid:
    """Raises a `TrainerError` where a run of the job has left nothing that prompts would find. Touches no model."""
    kind, name = kind_of(job), job.output.name
    if kind.writes_model:
        raise ConfigError("steps_grid.whole_models")
    if settings.prompt.strip():
        job = msgspec.structs.replace(job, preview=msgspec.structs.replace(job.preview, prompt=settings.prompt))
    _check_prompts(job, host, "prompt" if settings.prompt.strip() else PROMPT)
    weights = _weights(settings.weights) if kind.weighs else [math.nan]
    host.check()
    found = saved_files(job, host)
    if not found:
        raise ConfigError("steps_grid.no_files", name=name, save_every=Field("output.save_every"))
    shown = _spread(found, settings.most)
    _check_found(kind, [file for row in shown for file in row.files], host)
    kind.check_family(found[0].files, host.family())
    asked, above = preview_requests(job, kind), labels(job, kind)
    requests = tuple(
        tuple(kind.drawn_with(job, one, row.files, weight) for one in asked for weight in weights) for row in shown
    )
    columns = tuple(_column(weight, label, len(asked)) for label in above for weight in weights)
    notes = () if kind.weighs else (Sentence("steps_grid.no_weights"),)
    if len(shown) < len(found):
        notes = (*notes, Sentence("steps_grid.left_out", shown=Count(len(shown)), count=Count(len(found))))
    path = host.cache_folder().parent / "grids" / f"{name}-{new_id()}.png"
    files = tuple(file for row in shown for file in row.files)
    return StepsGrid(columns, tuple(row.label for row in shown), requests, files, path, name, notes)


def draw_steps_grid(grid: StepsGrid, host: Host, control: Control, emit: ev.Listener) -> None:
    """Draw and write it. A Stop, and an error, which is raised, leave a grid of what is drawn by then."""
    emit(ev.Message(Sentence("steps_grid.pictures", count=Count(grid.count), name=grid.name, path=grid.path)))
    emit(ev.Phase(Sentence("phase.queue")))
    drawn: dict[PreviewRequest, Image.Image] = {}
    failed: TrainerError | None = None
    written: Path | None = None
    try:
        with host.lease(str(grid.title)) as lease:
            stopped = _draw(grid, host, lease, control, emit, drawn)
    except Exception as error:  # a host's sampler may raise anything
        failed, stopped = _told(error, host), True
    try:
        written = _written(grid, drawn) if drawn else None
    except SaveError as error:
        failed = failed or error
    if failed is not None:
        failed.kept = written
        try:
            raise failed
        finally:
            del failed  # its traceback holds this frame, and with it the pictures
    told = Sentence("steps_grid.stopped" if stopped else "trial.grid", path=grid.path) if written else ""
    emit(ev.Finished(path=written, stopped=stopped, told=told, notes=grid.notes))


def _draw(
    grid: StepsGrid,
    host: Host,
    lease: Lease,
    control: Control,
    emit: ev.Listener,
    drawn: dict[PreviewRequest, Image.Image],
) -> bool:
    """Whether it was stopped."""
    for path in {one.parent: one for one in grid.files}.values():  # a host reads a folder's list as a whole
        host.added(path)
    meter, total = Meter(), grid.count
    factor = _shrunk(grid)
    for request in dict.fromkeys(request for row in grid.requests for request in row):
        emit(meter.phase(Sentence("phase.drawing"), len(drawn), total, "pictures"))
        lease.progress(len(drawn), total, str(grid.title))
        if control.stopping or lease.interrupted:
            return True
        try:
            picture = host.preview(request)
        except TrainerError:
            if lease.interrupted:  # before there was anything to see
                return True
            raise
        if lease.interrupted:  # the host has cut that picture short
            return True
        drawn[request] = picture.convert("RGB").reduce(factor) if factor > 1 else picture
    emit(meter.phase(Sentence("phase.drawing"), total, total, "pictures"))
    return False


def _told(error: Exception, host: Host) -> TrainerError:
    if isinstance(error, TrainerError):
        return error
    trace = release(error, host.device())
    failed = ModelError("steps_grid.not_drawn", reason=" ".join(str(error).split()) or type(error).__name__)
    failed.trace = trace
    return failed


def _written(grid: StepsGrid, drawn: dict[PreviewRequest, Image.Image]) -> Path:
    cells = [[drawn.get(request) for request in row] for row in grid.requests]
    return write_painted(grid.path, grid.columns, grid.rows, cells)


def _shrunk(grid: StepsGrid) -> int:
    """By how much pictures are made smaller as they come, so that all of them fit into a picture, and the memory."""
    pixels = sum(request.width * request.height for row in grid.requests for request in row)
    return max(1, math.ceil(math.sqrt(pixels / MOST_PIXELS)))


def _check_prompts(job: JobConfig, host: Host, field: str) -> None:
    problems = Problems()
    check_drawing(job, host, problems, field)
    problems.raise_if_any()


def _check_found(kind: Kind, files: Sequence[Path], host: Host) -> None:
    """Raise `ConfigError` unless a prompt that calls each of these files gets that one."""
    folder = kind.folder(host)
    by_name = host.prompt_files(folder, kind.endings)
    for file in files:
        real = file.resolve()
        called = {path.resolve(): path for path in by_name.get(unicodedata.normalize("NFC", file.stem), ())}
        other = next((path for place, path in called.items() if place != real), None)
        if real not in called and (other is None or other.parent.resolve() != real.parent):
            raise ConfigError("steps_grid.elsewhere", folder=file.parent, prompts=folder)
        if other is not None:
            raise ConfigError("steps_grid.alike", name=file.stem, one=file, another=other)


def _weights(text: str) -> list[float]:
    try:
        found = [float(piece) for piece in text.replace(",", " ").split()]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise ConfigError("trial.weights", field="weights", text=text)
    return list(dict.fromkeys(found))


def _spread(found: Sequence[Saved], most: int) -> list[Saved]:
    """Evenly from the first to the last, and the best one."""
    steps, best = [one for one in found if not one.best], [one for one in found if one.best]
    if len(steps) <= most:
        return [*steps, *best]
    last = len(steps) - 1
    places = [round(number * last / (most - 1)) for number in range(most)] if most > 1 else [last]
    return [*(steps[place] for place in places), *best]


def _column(weight: float, label: str, prompts: int) -> str:
    if math.isnan(weight):
        return label if prompts > 1 else ""
    if prompts == 1:
        return said(Sentence("drawn.weight", weight=weight))
    return said(Sentence("drawn.weight_of", weight=weight, prompt=label))
