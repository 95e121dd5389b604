"""What a run shows of itself at the core's edges: to its host, to its model, to torch's optimizer, and on the disk.

Nothing inside the core is replaced, so the tables outlive its redesign. Pictures that the host is asked to draw are
blank: what is asked for is what counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from PIL import Image, ImageDraw
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lib_trainer.config import from_values
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.ports import PreviewRequest, TrainingState
from lib_trainer.refusals import TrainerError
from lib_trainer.training import graphs
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.work import events as ev
from tests.support import job_values

PATIENCE = 120.0


@dataclass
class Group:
    """A parameter group at a step of the optimizer; `gradients` in its parameters' order, None where there are none."""

    name: str
    rate: float
    decay: float
    gradients: list[torch.Tensor | None]
    kind: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The optimizer's class, and all that it holds of the group beside parameters."""


@dataclass
class Seen:
    """Everything that one run has shown. `files` are all that it left: {path below its root: path}."""

    root: Path
    refused: str = ""
    previews: list[PreviewRequest] = field(default_factory=list)
    states: list[TrainingState] = field(default_factory=list)
    texts: list[tuple[tuple[str, ...], int, int]] = field(default_factory=list)
    """(captions, clip skip, chunks) of each call of the text encoder."""
    pixels: list[torch.Tensor] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)
    timesteps: list[int] = field(default_factory=list)
    steps: list[list[Group]] = field(default_factory=list)
    recorders: list[torch.device] = field(default_factory=list)
    """What was asked whether it records passes."""
    events: list[ev.Event] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def total(self) -> int:
        return self.of(ev.Started)[0].total_steps

    @property
    def captions(self) -> set[str]:
        return {caption for captions, _, _ in self.texts for caption in captions}

    def rates(self) -> list[dict[str, float]]:
        return [{group.name: group.rate for group in groups} for groups in self.steps]

    def gradient(self, step: int) -> torch.Tensor:
        """All gradients of a step (from 1 on) in one row, as the optimizer is given them."""
        given = [one for group in self.steps[step - 1] for one in group.gradients if one is not None]
        return torch.cat([one.flatten() for one in given])

    def essence(self) -> dict[str, Any]:
        """What must be the same in two runs of which an option that neither reads is all that differs."""
        return {
            "refused": self.refused,
            "previews": self.previews,
            "states": self.states,
            "texts": self.texts,
            "rates": self.rates(),
            "decays": [[group.decay for group in groups] for groups in self.steps],
            "files": sorted(self.files),
            "parameters": self.of(ev.Started)[0].trained_parameters,
            "picture shapes": [tuple(one.shape) for one in self.pixels],
            "latents": [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in self.latents],
        }


class SeenModel:
    """The host's model, whose calls are noted."""

    def __init__(self, model: Any, seen: Seen) -> None:
        self._model, self._seen = model, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def holding(self, state: TrainingState, make_room: Callable[[], None]) -> Any:
        self._seen.states.append(state)
        return self._model.holding(state, make_room)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Any) -> torch.Tensor:
        self._seen.latents.append(latents.detach().clone())
        self._seen.timesteps += timesteps.tolist()
        return self._model.predict(latents, timesteps, conditioning)

    def encode_text(self, captions: Any, clip_skip: int, max_chunks: int, **more: bool) -> Any:
        self._seen.texts.append((tuple(captions), clip_skip, max_chunks))
        return self._model.encode_text(captions, clip_skip, max_chunks, **more)

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        self._seen.pixels.append(pixels.clone())
        return self._model.encode_images(pixels)


class SeenHost(StandaloneHost):
    def __init__(self, checkpoint: Path, root: Path, model: Any, seen: Seen) -> None:
        super().__init__(checkpoint, root, torch.device("cpu"))
        self._model, self._shown = model, SeenModel(model, seen)
        self._seen = seen

    def model(self) -> Any:
        return self._shown

    def preview(self, request: PreviewRequest) -> Image.Image:
        self._seen.previews.append(request)
        return Image.new("RGB", (request.width, request.height), (90, 60, 30))


class Lab:
    """Runs of the tiny model, each made once and kept; bases in `apart` are runs of another one."""

    def __init__(
        self,
        model: Any,
        checkpoint: Path,
        root: Path,
        bases: Mapping[str, Mapping[str, Any]],
        apart: Mapping[str, tuple[Any, Path]] = MappingProxyType({}),
    ) -> None:
        self._apart = apart
        self.model, self.checkpoint, self.root, self._bases = model, checkpoint, root, bases
        self._known: dict[str, Seen] = {}
        for name, colour in (("pictures", "red"), ("others", "blue")):
            _draw(root / name, colour)
        _draw(root / "shapes", "red")
        _draw(root / "masked", "red")
        for index in range(3):
            _mask(root / "masked" / f"{index}.mask.png", 24)
            _mask(root / "masks" / f"{index}.png", 40)
        for index, size in enumerate(((128, 64), (200, 64))):
            _disc("red", 0).resize(size).save(root / "shapes" / f"{index}.png")
        (root / "template.txt").write_text("[name] seen from afar\n", encoding="utf-8")
        (root / "after").mkdir()
        _disc("red", 0).save(root / "after" / "0.png")
        (root / "after" / "0.txt").write_text("disc", encoding="utf-8")
        for name, colour in (("before", "green"), ("earlier", "white")):
            _disc(colour, 0).save(root / f"{name}.png")

    def base(self, name: str) -> Seen:
        return self.run(name, {})

    def run(self, base: str, changes: Mapping[str, Any]) -> Seen:
        """The base's job with `changes` {path: value}. `ROOT` in a text is this lab's folder, `FILE:name` is what the
        base of that name has written."""
        own = base.partition(":")[0]
        key = f"{base} {sorted(changes.items())}"
        if key not in self._known:
            values = {path: self._filled(value) for path, value in {**self._bases[own], **changes}.items()}
            self._known[key] = self._started(job_values(self.root / "pictures") | values, own)
        return self._known[key]

    def _filled(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.startswith("FILE:"):
            made = self.base(value.removeprefix("FILE:"))
            return str(made.of(ev.Finished)[0].path)
        return value.replace("ROOT", str(self.root))

    def _started(self, values: dict[str, Any], base: str) -> Seen:
        model, checkpoint = self._apart.get(base, (self.model, self.checkpoint))
        seen = Seen(self.root / f"run-{len(self._known)}-{len(list(self.root.iterdir()))}")
        host = SeenHost(checkpoint, seen.root, model, seen)
        host.lora_folder().mkdir(parents=True)
        if base == "taken":
            (host.lora_folder() / "learned.safetensors").write_bytes(b"mine")
        desk = TrainingDesk(host)
        asked = mock.patch.object(graphs, "recorder_for", seen.recorders.append)
        with _noted_steps(seen), asked:
            try:
                desk.start(from_values(values), seen.events.append)
            except TrainerError as error:
                seen.refused = str(error)
            view = desk.wait(PATIENCE)
        assert not desk.running
        assert view is None or view.state == "finished", view and (view.state, view.error)
        for path in sorted(seen.root.rglob("*")):
            if path.is_file():
                seen.files[path.relative_to(seen.root).as_posix()] = path
        return seen


def _noted_steps(seen: Seen) -> Any:
    def note(optimizer: Any, args: Any, kwargs: Any) -> None:
        groups = []
        for group in optimizer.param_groups:
            given = [None if one.grad is None else one.grad.detach().clone() for one in group["params"]]
            settings = {name: value for name, value in group.items() if name != "params"}
            decay = float(group.get("weight_decay", 0.0))
            groups.append(Group(group["name"], float(group["lr"]), decay, given, type(optimizer).__name__, settings))
        seen.steps.append(groups)

    return _Hook(note)


class _Hook:
    def __init__(self, note: Callable[..., None]) -> None:
        self._note = note

    def __enter__(self) -> None:
        self._handle = register_optimizer_step_pre_hook(self._note)

    def __exit__(self, *error: object) -> None:
        self._handle.remove()


def _draw(folder: Path, colour: str) -> None:
    folder.mkdir(parents=True)
    for index in range(3):
        _disc(colour, index).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"{colour} disc {index}\nround thing {index}\n", encoding="utf-8")
        (folder / f"{index}.cap").write_text("other", encoding="utf-8")


def _mask(path: Path, width: int) -> None:
    """White on the left."""
    path.parent.mkdir(exist_ok=True)
    image = Image.new("L", (64, 64))
    image.paste(255, (0, 0, width, 64))
    image.save(path)


def _disc(colour: str, index: int) -> Image.Image:
    image = Image.new("RGB", (64, 64), (250, 250, 40 * index))
    ImageDraw.Draw(image).ellipse((4 + index, 8, 44 + index, 50), fill=colour)
    return image
