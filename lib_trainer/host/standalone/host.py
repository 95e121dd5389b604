"""The standalone host: one checkpoint, one device, one folder for results."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from lib_trainer.errors import ConfigError, ModelError
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.host.standalone.sampling import SAMPLERS, PromptNetwork, draw_seeds, split_prompt
from lib_trainer.networks.formats.lora_file import read_lora
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.ports import PreviewRequest

ACCEPTED_SIZES = range(64, 4097)


class StandaloneHost:
    """Implements `ports.Host`. The checkpoint is loaded at its first use and kept."""

    def __init__(self, checkpoint: Path | None, root: Path, device: torch.device | None = None) -> None:
        self.checkpoint, self.root = checkpoint, root
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: DiffusersModel | None = None
        self._busy = threading.Lock()

    def check(self) -> None:
        if self.checkpoint is None:
            raise ModelError("No checkpoint is given: set model.checkpoint in the job, or pass --checkpoint.")
        if self._model is None and not self.checkpoint.exists():
            raise ModelError(
                f"There is no checkpoint {self.checkpoint}: give a .safetensors file or a diffusers folder."
            )

    def device(self) -> torch.device:
        return self._device

    def model(self) -> DiffusersModel:
        self.check()
        if self._model is None:
            assert self.checkpoint is not None  # check() has seen to it
            self._model = DiffusersModel.load(self.checkpoint, self._device)
        return self._model

    @contextlib.contextmanager
    def lease(self, title: str) -> Iterator[StandaloneLease]:
        with self._busy:
            yield StandaloneLease()

    def preview(self, request: PreviewRequest) -> Image.Image:
        """Draw with the model as it stands; `<lora:name:weight>` marks in the prompt are applied."""
        return self.draw_seeds(request, [request.seed])[0]

    def draw_seeds(self, request: PreviewRequest, seeds: Sequence[int]) -> list[Image.Image]:
        """`preview` once for each seed, in one batch."""
        model = self.model()
        prompt, wanted = split_prompt(request.prompt)
        for field in ("width", "height"):
            size = getattr(request, field)
            if size not in ACCEPTED_SIZES or size % 8:
                raise ConfigError(f"{field} = {size} is not allowed: it must be a multiple of 8 from 64 to 4096.")
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for one in wanted:
                stack.enter_context(self._network(model, one).applied(one.weight))
            return draw_seeds(model, replace(request, prompt=prompt), seeds)

    def generate(self, request: PreviewRequest) -> Image.Image:
        """`preview` for a person: waits until no training run holds the model."""
        with self._busy:
            return self.preview(request)

    def loras(self) -> Sequence[str]:
        """Names that `<lora:name:1>` understands."""
        return sorted(path.stem for path in self.lora_folder().glob("*.safetensors"))

    def describe(self) -> str:
        return "no checkpoint" if self.checkpoint is None else f"{self.checkpoint.stem} · SD 1.x · {self._device}"

    def samplers(self) -> Sequence[str]:
        return list(SAMPLERS)

    def lora_folder(self) -> Path:
        return self.root / "lora"

    def cache_folder(self) -> Path:
        return self.root / "cache"

    def _network(self, model: DiffusersModel, wanted: PromptNetwork) -> LoraNetwork:
        if wanted.name not in self.loras():
            raise ConfigError(f"<lora:{wanted.name}:…> names no file in {self.lora_folder()}: correct the name.")
        path = self.lora_folder() / f"{wanted.name}.safetensors"
        file = read_lora(path)
        try:
            network = LoraNetwork.from_tensors(model.adaptable_modules(), file.tensors)
        except ValueError as error:
            raise ModelError(f"{path} does not fit this checkpoint ({error}): choose a LoRA made for it.") from error
        if not len(network):
            raise ModelError(f"{path} has no module that this checkpoint has: choose a LoRA made for SD 1.x.")
        return network


class StandaloneLease:
    """Nobody else shows progress or interrupts here: the listener and the control do."""

    interrupted = False

    def progress(self, done: int, total: int, text: str) -> None:
        return None
