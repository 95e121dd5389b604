"""A scripted run and a host without a model: what the page's tests drive, through the real runner and monitor."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image, ImageDraw

from lib_trainer.config import JobConfig
from lib_trainer.families.family import Family
from lib_trainer.families.known import DEFAULT
from lib_trainer.families.prediction import Predicts
from lib_trainer.files import all_by_stem
from lib_trainer.host.folders import FoldersBelow
from lib_trainer.kinds.registry import kind_of
from lib_trainer.ports import Exchange, HeldPart, Host, Lease, LoadedModel, PreviewRequest
from lib_trainer.refusals import DatasetError, ModelError, Sentence, TrainerError
from lib_trainer.training.memory_need import outlook
from lib_trainer.training.preview_prompts import labels, preview_requests
from lib_trainer.training.preview_sheet import PreviewSheet
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control

if TYPE_CHECKING:
    from lib_trainer.training import desk as training_desk
    from lib_trainer.ui.generate import Generator


class FakeLease:
    interrupted = ""

    def progress(self, done: int, total: int, text: str) -> None: ...


NOISE = Predicts("epsilon", False, Sentence("prediction.by_family", family="SD 1.x"))


@dataclass
class FakeHost(FoldersBelow):
    """A host without a model."""

    root: Path
    description: str = "miniature <b>[879db523c3]</b> · SD 1.x"
    model_parts: dict[str, HeldPart] = field(default_factory=dict)
    predicted: Predicts = NOISE

    def check(self) -> None: ...

    def family(self) -> Family:
        return DEFAULT

    def inpaints(self) -> bool:
        return False

    def predicts(self) -> Predicts:
        return self.predicted

    def model(self) -> LoadedModel:
        raise ModelError("The fake host has no model.")

    @contextlib.contextmanager
    def lease(self, title: str, *, trains: bool = False) -> Iterator[Lease]:
        yield FakeLease()

    def preview(self, request: PreviewRequest) -> Image.Image:
        return picture(request.prompt, request.width, request.height)

    def describe(self) -> str:
        return self.description

    def parts(self) -> dict[str, HeldPart]:
        return self.model_parts

    def device(self) -> torch.device:
        return torch.device("cpu")

    def samplers(self) -> Sequence[str]:
        return ("Euler", "DPM++ 2M")

    def prompt_files(self, folder: Path, endings: Sequence[str]) -> dict[str, list[Path]]:
        return all_by_stem(folder, endings)

    def model_folders(self) -> dict[str, Sequence[Path]]:
        return {"checkpoints": [self.checkpoint_folder()], "loras": [self.lora_folder()], "vaes": [self.root / "VAE"]}

    exchanged: Sentence | None = None

    def exchange(self, told: Sentence) -> Exchange:
        raise ModelError("The fake host has no model.")

    def token_count(self, text: str) -> int:
        return len(text.split())

    def added(self, path: Path) -> None: ...


@dataclass
class FakeGenerator:
    asked: list[str] = field(default_factory=list)

    def generate(self, request: PreviewRequest) -> Image.Image:
        self.asked.append(request.prompt)
        if "<lora:absent" in request.prompt:
            raise TrainerError("There is no LoRA called absent: refresh the list.")
        if request.prompt == "broken":
            raise RuntimeError("oh <no>")
        return picture(request.prompt, request.width, request.height)

    def calls(self) -> Sequence[str]:
        return ("<lora:cat:1>", "<hypernet:dog:1>", "zorb")


HOLD_SECONDS = 120


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass(frozen=True)
class ScriptedPlan:
    job: JobConfig
    host: Host
    warnings: tuple[Sentence, ...] = ()


@dataclass
class Script:
    """Stands in for `prepare` and `run_plan` of `lib_trainer.training.run`.

    A test may clear `cached` or `finish` to hold a run at 12 of 40 cached pictures or before its last step: on a busy
    machine the browser may otherwise see it too late.
    """

    step_seconds: float = 0.02
    cache_seconds: float = 0.02
    fail_at: int = 0
    cached: threading.Event = field(default_factory=lambda: _set_event())
    finish: threading.Event = field(default_factory=lambda: _set_event())

    sheet: PreviewSheet | None = None
    settle: Callable[[JobConfig], JobConfig] = lambda job: job
    """What `prepare` makes of a job, or raises."""

    def prepare(self, job: JobConfig, host: Host) -> ScriptedPlan:
        job = self.settle(job)
        if not job.dataset.folder:
            raise DatasetError("option.empty", field="dataset.folder", allowed="a folder <that> holds your pictures")
        if not Path(job.dataset.folder).is_dir():
            raise DatasetError(f"There is no folder {job.dataset.folder}: check the path.")
        memory = outlook(job, host)
        warning = memory.warning() if memory else None
        return ScriptedPlan(job, host, (warning,) if warning else ())

    def run_plan(self, plan: ScriptedPlan, host: Host, control: Control, emit: ev.Listener) -> None:
        job = plan.job
        output = host.lora_folder() / f"{job.output.name}.safetensors"
        for done in range(41):
            emit(ev.Phase("Caching latents", done, 40))
            time.sleep(self.cache_seconds)
            if done == 12:
                self.cached.wait(HOLD_SECONDS)
        total = job.training.max_steps or 100
        emit(ev.Started(total, 1_594_368, {"unet": 192, "te1": 72}))
        emit(ev.Message("2 pictures have no caption & get the trigger word.", "warning"))
        for step in range(1, total + 1):
            time.sleep(self.step_seconds)
            if step == total:
                self.finish.wait(HOLD_SECONDS)
            loss = 0.14 * math.exp(-2 * step / total) + 0.03 + 0.025 * math.sin(step * 12.9898) ** 3
            rates = {"unet": job.optimizer.unet_lr * (1 - step / total), "te1": job.optimizer.text_encoder_lr}
            emit(ev.StepDone(step, total, 1 + step // 50, loss, rates, 0.9, self.step_seconds, 5 * 2**30))
            if step == self.fail_at:
                raise TrainerError("The loss is <not> a number: lower the learning rate.")
            if control.stopping:
                emit(ev.Saved(step, output, final=True))
                emit(ev.Finished(step, output, stopped=True))
                return
            if control.take_save():
                emit(ev.Saved(step, output.with_stem(f"{output.stem}-{step:06}"), final=False))
            due = job.preview.prompt and job.preview.every and step % job.preview.every == 0
            if control.take_sample() or due:
                self._draw(job, host, step, emit)
        emit(ev.Saved(total, output, final=True))
        emit(ev.Finished(total, output, stopped=False))

    def _draw(self, job: JobConfig, host: Host, step: int, emit: ev.Listener) -> None:
        """A grid grows where there are several prompts."""
        asked = preview_requests(job, kind_of(job))
        drawn = [picture(f"step {step}", 192, 192, step + 3 * place) for place in range(len(asked))]
        for number, (request, one) in enumerate(zip(asked, drawn, strict=True), 1):
            emit(ev.PreviewMade(step, one, request.prompt, number, len(asked)))
        if len(asked) > 1:
            self.sheet = self.sheet or PreviewSheet(host.cache_folder().parent / "previews", labels(job, kind_of(job)))
            grid = self.sheet.put(step, drawn)
            assert grid is not None
            emit(ev.PreviewGrid(step, grid))


def picture(text: str, width: int, height: int, number: int = 0) -> Image.Image:
    """A plain picture that tells itself from others."""
    image = Image.new("RGB", (width, height), ((number * 37) % 200, (number * 61) % 200, 120))
    ImageDraw.Draw(image).text((10, 10), text, fill="white")
    return image


class Trains(Protocol):
    """What the training desk takes from `lib_trainer.training.run`, and tests from a `Script`."""

    def prepare(self, job: JobConfig, host: Host) -> Any: ...

    def run_plan(self, plan: Any, host: Host, control: Control, emit: ev.Listener) -> None: ...


if TYPE_CHECKING:  # mypy holds the stand-ins to the ports, and the real thing to the same
    _HOST: Host = FakeHost(Path())
    _GENERATOR: Generator = FakeGenerator()
    _TRAINS: tuple[Trains, ...] = (Script(), training_desk)
