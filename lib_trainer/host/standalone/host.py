"""The standalone host: one checkpoint, one device, one folder for results."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from lib_trainer.families.detect import inpaints, model_of
from lib_trainer.families.family import Family, Stranger
from lib_trainer.families.known import DEFAULT, checked
from lib_trainer.families.prediction import Predicts
from lib_trainer.files import by_stem, found
from lib_trainer.host.exchanged import Exchanged, Exchanging
from lib_trainer.host.folders import FoldersBelow
from lib_trainer.host.standalone.checkpoint import folder_inpaints, model_of_folder
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.host.standalone.sampling import SAMPLERS, PromptNetwork, draw_seeds, split_prompt
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.networks.formats.checkpoint_file import count_parameters, read_shapes, whole_family_of
from lib_trainer.networks.formats.description import predicted_by
from lib_trainer.networks.formats.embedding_file import ENDINGS, read_embedding
from lib_trainer.networks.formats.hypernetwork_file import read_hypernetwork
from lib_trainer.networks.formats.lora_file import LORA_ENDINGS, LoraFile, read_lora
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.ports import HeldPart, PreviewRequest, Rows
from lib_trainer.refusals import ConfigError, Field, ModelError, Sentence
from lib_trainer.toolbox.duplicates import models_beside

ACCEPTED_SIZES = range(64, 4097)
T = TypeVar("T")


class StandaloneHost(FoldersBelow, Exchanging):
    """Implements `ports.Host`. The checkpoint is loaded at its first use and kept."""

    def __init__(self, checkpoint: Path | None, root: Path, device: torch.device | None = None) -> None:
        self.checkpoint, self.root = checkpoint, root
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: DiffusersModel | None = None
        self._busy = threading.Lock()

    def check(self) -> None:
        if self.checkpoint is None:
            raise ModelError("checkpoint.none_given", checkpoint=Field("model.checkpoint"))
        if self._model is None and not os.path.lexists(found(self.checkpoint)):
            raise ModelError("checkpoint.missing", path=self.checkpoint)
        if self._model is None and (path := found(self.checkpoint)).is_file():
            _whole_file(path, path.stat().st_mtime_ns)
        checked(self._found(), self.checkpoint)

    def device(self) -> torch.device:
        return self._device

    def family(self) -> Family:
        model = self._found()
        return model if isinstance(model, Family) and model.trainable else DEFAULT

    def inpaints(self) -> bool:
        if self._model is not None:
            return self._model.inpaints
        return self._described(folder_inpaints, _file_inpaints, False)

    def predicts(self) -> Predicts:
        if self._model is not None and self._model.said is not None:
            return self._model.said
        self.check()
        assert self.checkpoint is not None  # check() has seen to it
        return predicted_by(self.checkpoint, self.family())

    def _found(self) -> Family | Stranger:
        if self._model is not None:
            return self._model.family
        otherwise: Family | Stranger = DEFAULT
        return self._described(model_of_folder, _model_of_file, otherwise)

    def _described(self, of_folder: Callable[[Path], T], of_file: Callable[[Path, int], T], otherwise: T) -> T:
        """What a folder's description, or the names in a file of a date, tell of a model that is not loaded yet."""
        path = found(self.checkpoint) if self.checkpoint else None
        if path is not None and path.is_dir():
            return of_folder(path)
        if path is None or not path.is_file():
            return otherwise
        return of_file(path, path.stat().st_mtime_ns)

    def model(self) -> DiffusersModel:
        self.check()
        if self._model is None:
            assert self.checkpoint is not None  # check() has seen to it
            self._model = DiffusersModel.load(self.checkpoint, self._device)
        return self._model

    @contextlib.contextmanager
    def lease(self, title: str, *, trains: bool = False) -> Iterator[StandaloneLease]:
        with self._busy:
            self._put_back()
            yield StandaloneLease()

    def exchange(self, told: Sentence) -> Exchanged:
        self._exchange = Exchanged(told)
        return self._exchange

    def preview(self, request: PreviewRequest) -> Image.Image:
        """Draw with the model as it stands.

        `<lora:name:weight>` and `<hypernet:name:weight>` marks and names of embeddings in the prompts are applied.
        """
        return self.draw_seeds(request, [request.seed])[0]

    def draw_seeds(self, request: PreviewRequest, seeds: Sequence[int]) -> list[Image.Image]:
        """`preview` once for each seed, in one batch."""
        model = self.model()
        prompt, wanted = split_prompt(request.prompt)
        for field in ("width", "height"):
            size = getattr(request, field)
            if size not in ACCEPTED_SIZES or size % 8:
                raise ConfigError("size.of_picture", name=field, size=size)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            words = self._embeddings(model, f"{prompt} {request.negative_prompt}")
            for one in wanted:
                if one.kind == "hypernet":
                    if not model.family.hypernetworks:
                        raise ConfigError("prompt.hypernetwork_family", name=one.name, family=model.family.word)
                    stack.enter_context(self._hypernetwork(model, one))
                else:
                    file, network = self._network(model, one)
                    stack.enter_context(network.applied(one.weight))
                    own = file.embeddings(model.family)
                    words |= {name: rows for name, rows in own.items() if name not in words}
            stack.enter_context(model.tokens().extended(words))
            return draw_seeds(model, replace(request, prompt=prompt), seeds)

    def generate(self, request: PreviewRequest) -> Image.Image:
        """`preview` for a person: waits until no training run holds the model."""
        with self._busy:
            return self.preview(request)

    def loras(self) -> Sequence[str]:
        """Names that `<lora:name:1>` understands."""
        return sorted(by_stem(self.lora_folder(), LORA_ENDINGS))

    def calls(self) -> Sequence[str]:
        """What a prompt can say to use a trained file: LoRAs, then hypernetworks, then embeddings."""
        hypernetworks = by_stem(self.hypernetwork_folder(), (".pt",)) if self.family().hypernetworks else {}
        nets, words = sorted(hypernetworks), sorted(self._words())
        return [*(f"<lora:{name}:1>" for name in self.loras()), *(f"<hypernet:{name}:1>" for name in nets), *words]

    def describe(self) -> str:
        if self.checkpoint is None:
            return "no checkpoint"
        model = self._found()
        try:
            line = self.predicts().line
        except ModelError as error:
            return f"{self.checkpoint.stem} · {error}"
        word = f"{model.word}, inpainting" if self.inpaints() else model.word
        return f"{self.checkpoint.stem} · {word} · {self._device} · {line}"

    def samplers(self) -> Sequence[str]:
        return list(SAMPLERS)

    def prompt_files(self, folder: Path, endings: Sequence[str]) -> Mapping[str, Sequence[Path]]:
        """Not what lies in folders below."""
        return {name: [path] for name, path in by_stem(folder, endings).items()}

    def model_folders(self) -> Mapping[str, Sequence[Path]]:
        """Beside the checkpoint there may be anything: the models there, without what is below."""
        beside = models_beside(self.checkpoint) if self.checkpoint is not None else []
        return {
            "checkpoints": [self.checkpoint_folder(), *beside],
            "loras": [self.lora_folder()],
            "vaes": [self.root / "vae"],
        }

    def token_count(self, text: str) -> int:
        ids = load_tokenizer()(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return len(ids)

    def parts(self) -> Mapping[str, HeldPart]:
        """Of the file where nothing is loaded yet; it will be held in fp32."""
        if self._model is None:
            if not self.checkpoint or not found(self.checkpoint).is_file():
                return {}
            counts = count_parameters(found(self.checkpoint))
            return {part: HeldPart(numbers, torch.float32) for part, numbers in counts.items()}
        return {part: HeldPart.of(root, self._device) for part, root in self._model.roots().items()}

    def added(self, path: Path) -> None:
        """Folders are read at every prompt."""

    def _embeddings(self, model: DiffusersModel, text: str) -> dict[str, Rows]:
        """Rows of the embeddings whose name occurs in a prompt. Files that are none, or of another width, are not."""
        wanted = unicodedata.normalize("NFC", text).lower()
        found: dict[str, Rows] = {}
        widths = model.tokens().widths
        for name, path in self._words().items():
            if name.lower() in wanted:
                rows = read_embedding(path, model.family)
                if any(own.shape[1] != widths[part] for part, own in rows.items()):
                    word = model.family.word
                    raise ModelError("embedding.other_family", path=path, family=word)
                found[name] = rows
        return found

    def _words(self) -> dict[str, Path]:
        """Embeddings by name. A picture is one only where it carries one."""
        return by_stem(self.embedding_folder(), ENDINGS)

    def _hypernetwork(self, model: DiffusersModel, wanted: PromptNetwork) -> contextlib.AbstractContextManager[None]:
        folder = self.hypernetwork_folder()
        path = by_stem(folder, (".pt",)).get(unicodedata.normalize("NFC", wanted.name))
        if path is None:
            raise ConfigError("prompt.no_hypernetwork", name=wanted.name, folder=folder)
        network = read_hypernetwork(path).to(model.device)
        return network.applied(model.adaptable_modules(), wanted.weight)

    def _network(self, model: DiffusersModel, wanted: PromptNetwork) -> tuple[LoraFile, LoraNetwork]:
        path = by_stem(self.lora_folder(), LORA_ENDINGS).get(unicodedata.normalize("NFC", wanted.name))
        if path is None:
            raise ConfigError("prompt.no_lora", name=wanted.name, folder=self.lora_folder())
        file = read_lora(path)
        try:
            network = LoraNetwork.from_tensors(model.adaptable_modules(), file.tensors)
        except ValueError as error:
            raise ModelError("lora.misfit", path=path, reason=error) from error
        if not len(network):
            word = model.family.word
            raise ModelError("lora.other_model", path=path, family=word)
        return file, network


@functools.lru_cache(maxsize=8)
def _model_of_file(path: Path, changed: int) -> Family | Stranger:
    """A file that cannot be read, or is no model, says so when it is loaded."""
    try:
        return model_of(read_shapes(path)) or DEFAULT
    except ModelError:
        return DEFAULT


@functools.lru_cache(maxsize=8)
def _whole_file(path: Path, changed: int) -> Family:
    """What could be loaded. Raises `ModelError`, and is not remembered then."""
    return whole_family_of(path, read_shapes(path))


@functools.lru_cache(maxsize=8)
def _file_inpaints(path: Path, changed: int) -> bool:
    try:
        return inpaints(read_shapes(path))
    except ModelError:
        return False


class StandaloneLease:
    """Nobody else shows progress or interrupts here: the listener and the control do."""

    interrupted = ""

    def progress(self, done: int, total: int, text: str) -> None:
        return None
