"""Full fine-tuning and DreamBooth (Ruiz et al. 2023, arXiv:2208.12242): the model's own weights, on copies of them.

The loaded model keeps its weights. While the run goes, its modules hold fp32 copies that learn, and the originals wait
beside them (on the CPU, if the model is on a GPU); on leaving they are put back as they were, the same objects.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib_trainer.config import JobConfig
from lib_trainer.config.fields import option_of
from lib_trainer.families.detect import inpaints, model_of
from lib_trainer.families.family import Family, Part
from lib_trainer.families.open_clip import joined
from lib_trainer.kinds.adapters import rates_by_part
from lib_trainer.kinds.base import CONTINUE, Kind
from lib_trainer.kinds.memory import Batch, Changes, KindMemory
from lib_trainer.kinds.outputs import Outputs
from lib_trainer.kinds.recipe import Progress, Recipe
from lib_trainer.kinds.slots import Slot, give_back, make_room, parameter_of, whole_weight
from lib_trainer.networks.formats.checkpoint_file import read_checkpoint, read_shapes, write_checkpoint
from lib_trainer.networks.formats.description import beside, carry_description, write_description
from lib_trainer.networks.formats.lora_file import write_lora
from lib_trainer.networks.fused import SlicedLinear
from lib_trainer.networks.low_rank import lora_of_differences
from lib_trainer.ports import Host, LoadedModel, OwnParameter
from lib_trainer.refusals import ConfigError, Field, MemoryExhausted, ModelError, Problems, SaveError, Sentence
from lib_trainer.training.memory_table import Table, Work
from lib_trainer.training.optimizers import Shapes, lighter, wants_average
from lib_trainer.training.precision import DTYPES
from lib_trainer.training.prediction import marks, schedule_of

logger = logging.getLogger(__name__)


TEXT_RATES = ("finetune.text_encoder_lr", "finetune.text_encoder_2_lr")
DIFFERENCE = "LoRA of the difference"


class CheckpointMemory(KindMemory):
    """Of copies of whole parts, beside which the originals wait."""

    def learned(self, job: JobConfig, table: Table) -> dict[str, int]:
        return {part: table.weights[part].all for part in _learning_parts(job, table.family)}

    def groups(self, job: JobConfig, table: Table) -> Sequence[Shapes]:
        """Of the layers. Of a text encoder's other numbers nearly all are one table of tokens; the UNet's are small."""
        found: list[Shapes] = []
        for part, numbers in self.learned(job, table).items():
            layers = [layer for layer in table.layers if layer.part == part]
            own = [((one.out, one.inner, *(2 * [one.kernel] if one.kernel else [])), one.count) for one in layers]
            rest, width = numbers - sum(math.prod(shape) * count for shape, count in own), layers[0].inner
            others = ((width,), rest // width) if part == "unet" else ((rest // width, width), 1)
            found.append([*own, others])
        return found

    def trains_text_encoder(self, job: JobConfig, family: Family) -> bool:
        return any(part != "unet" for part in _learning_parts(job, family))

    def measured_as(self, job: JobConfig) -> str:
        """Where the UNet does not learn, a step goes through it as an embedding's does."""
        return super().measured_as(job) if job.finetune.unet_lr else "embedding"

    def activations(self, job: JobConfig, table: Table, work: Work, dtype: torch.dtype, batch: Batch) -> float:
        """Of a text encoder that learns alone: copies of its weights in the run's precision."""
        if job.finetune.unet_lr or dtype is torch.float32:
            return 0.0
        return dtype.itemsize * sum(table.weights[part].products for part in _learning_parts(job, table.family))

    def least_share(self, job: JobConfig, work: Work, *, again: bool = False) -> float:
        """Each gradient arrives by itself, and stays."""
        return 0.0 if again else max(work.least, 1.0)

    def replaces(self, job: JobConfig, family: Family) -> frozenset[str]:
        return frozenset(_learning_parts(job, family))

    def to_lower(self, job: JobConfig, device: torch.device) -> list[Sentence]:
        tuning, found = job.finetune, []
        if tuning.unet_lr:
            found += [Sentence("lower.to_zero", option=Field(path)) for path in TEXT_RATES if option_of(job, path) > 0]
        if wants_average(job.optimizer):
            found.append(Sentence("lower.leave_out", option=Field("optimizer.ema")))
        if lighter(job.optimizer, device):
            found.append(Sentence("lower.smaller_optimizer", option=Field("optimizer.name")))
        return [*found, Sentence("lower.lora")]

    def mild_remedies(self, job: JobConfig) -> Iterator[Changes]:
        if wants_average(job.optimizer):
            yield [{"optimizer.ema": False}]
        rates = {path: 0.0 for path in TEXT_RATES if option_of(job, path) > 0}
        if rates and job.finetune.unet_lr:
            yield [rates]

    def hard_remedies(self, job: JobConfig) -> Iterator[Changes]:
        yield [{"network.kind": "lora"}]


class CheckpointKind(Kind):
    """A whole checkpoint, and on demand its difference to the loaded one as a LoRA."""

    name, call = "checkpoint", ""
    rates = ("finetune.unet_lr", "finetune.text_encoder_lr")
    writes_model = True
    memory = CheckpointMemory("checkpoint")

    def folder(self, host: Host) -> Path:
        return host.checkpoint_folder()

    def outputs(self, job: JobConfig, folder: Path, host: Host) -> Outputs:
        """With the .yaml beside it that some checkpoints have."""
        whole = super().outputs(job, folder, host).result
        beside = {"yaml": whole.with_suffix(".yaml")}
        if job.finetune.difference_rank:
            beside[DIFFERENCE] = host.lora_folder() / f"{job.output.name}.safetensors"
        return Outputs((whole,), beside)

    def card_words(self, job: JobConfig) -> list[str]:
        return []

    def check(self, job: JobConfig, host: Host, problems: Problems) -> None:
        """Rates, and the file to continue from."""
        with problems.at():
            if not any(_rates(job, host.family()).values()):
                raise ConfigError(
                    "rates.none", field="finetune.unet_lr", text_encoder_lr=Field("finetune.text_encoder_lr")
                )
        if job.network.continue_from:
            with problems.at(CONTINUE):
                _check_start(job.network.continue_from, host.family(), inpaints_here=host.inpaints())
        with problems.at():
            if not host.parts():
                raise ModelError("checkpoint.no_single_file")

    def why_no_fp8(self, job: JobConfig) -> Sentence | None:
        return Sentence("weights.trained") if job.finetune.unet_lr > 0 else None

    def why_no_bare_model(self) -> Sentence | None:
        return Sentence("preserve.whole_model", prompt=Field("prior.class_prompt"))

    def recipe(self, job: JobConfig, model: LoadedModel, outputs: Outputs) -> Recipe:
        return CheckpointRecipe(job, model, outputs.beside.get(DIFFERENCE))

    def rates_told(self, job: JobConfig, recipe: Recipe, family: Family) -> dict[str, object]:
        return rates_by_part(_rates(job, family), recipe)


def _check_start(path: str, family: Family, *, inpaints_here: bool) -> None:
    shapes = read_shapes(Path(path).expanduser())
    found = model_of(shapes)
    if found is not None and found is not family:
        raise ConfigError("continue.other_family", field=CONTINUE, path=path, family=family.word)
    if not any(name.startswith(family.unet.prefix) for name in shapes):
        raise ModelError("checkpoint.no_unet", path=path)
    if inpaints(shapes) and not inpaints_here:
        raise ConfigError("continue.inpaints", field=CONTINUE, path=path)
    if inpaints_here and not inpaints(shapes):
        raise ConfigError("continue.does_not_inpaint", field=CONTINUE, path=path)


def _learning_parts(job: JobConfig, family: Family) -> list[Part]:
    return [part for part, rate in _rates(job, family).items() if rate > 0]


def _rates(job: JobConfig, family: Family) -> dict[Part, float]:
    own = job.finetune
    return family.rates(own.unet_lr, own.text_encoder_lr, own.text_encoder_2_lr)


class CheckpointRecipe(Recipe):
    """`difference_path` is where the difference is saved as a LoRA beside the whole checkpoint, if at all."""

    network_module = "checkpoint"

    def __init__(self, job: JobConfig, model: LoadedModel, difference_path: Path | None = None) -> None:
        self._model, self._job, self._difference = model, job, difference_path
        self._rates = _rates(job, model.family)
        self._owned = [own for own in model.own_parameters() if self._rates.get(own.part, 0) > 0]
        self.trains_text_encoder = any(rate for part, rate in self._rates.items() if part != "unet")
        start = _read_start(job)
        self.replaces = tuple({own.part: None for own in self._owned})
        self._rest = _apart(model, sorted({own.place.name for own in self._owned}))
        self.learned = {own.key: nn.Parameter(_copied(own, start, model.device)) for own in self._owned}
        schedule = schedule_of(model.schedule, job)
        self._marks, self._prediction = marks(schedule), schedule.prediction
        self._waiting: dict[str, torch.Tensor] = {}
        self._left: list[Slot] = []
        self._lost = False

    def groups(self) -> list[dict[str, Any]]:
        tuning = self._job.finetune
        share = tuning.text_encoder_share if tuning.text_encoder_lr else 1.0
        return [
            {
                "params": [self.learned[own.key] for own in self._owned if own.part == part],
                "lr": rate,
                "name": part,
                "until": 1.0 if part == "unet" else share,
            }
            for part, rate in self._rates.items()
            if rate > 0
        ]

    def modules(self) -> dict[str, int]:
        counts: dict[str, set[int]] = {}
        for own in self._owned:
            counts.setdefault(own.part, set()).add(id(own.owner))
        return {part: len(owners) for part, owners in counts.items()}

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The weights that learn, in fp32. After an error, and where the device is full, they are on the CPU then."""
        self._check_there()
        slots = self._left = self._slots()
        try:
            for slot in slots:
                slot.take(self.learned[slot.own.key])
            yield
        except BaseException:
            give_back(slots, clear=True)
            raise
        else:
            give_back(slots, clear=False)
        finally:
            self._lost = self._lost or any(slot.lost for slot in slots)

    @contextlib.contextmanager
    def previewed(self) -> Iterator[None]:
        """In the host's own precision."""
        self._check_there()
        result = self._result()
        slots = self._slots()
        try:
            for slot in slots:
                slot.take_copy(result[slot.own.key])
            yield
        finally:
            give_back(slots, clear=False)

    def make_room(self) -> None:
        make_room(self._left)

    def bare(self) -> contextlib.AbstractContextManager[None]:
        """Nobody asks for it: see `CheckpointKind.why_no_bare_model`."""
        raise NotImplementedError

    def _check_there(self) -> None:
        """Nothing is learned, drawn or written on from what has taken the place of lost weights."""
        if self._lost:
            raise MemoryExhausted("memory.lost")

    def _slots(self) -> list[Slot]:
        return [Slot(own, self._waiting, self._model.device) for own in self._owned]

    def _result(self) -> dict[str, torch.Tensor]:
        return {key: parameter.detach() for key, parameter in self.learned.items()}

    def save(self, files: Sequence[Path], facts: dict[str, str], *, overwrite: bool) -> Sentence | None:
        self._check_there()
        dtype = DTYPES[self._job.output.precision]
        result = self._result()
        learned = joined({own.place: result[own.key] for own in self._owned})
        tensors = self._rest | learned | self._marks
        write_checkpoint(files[0], tensors, dtype, facts, overwrite=overwrite)
        base = self._model.file
        lacking = None if base is None else carry_description(base, files[0], self._prediction)
        return lacking or self._described(files[0])

    def _described(self, path: Path) -> Sentence | None:
        """Hosts take a file without a .yaml for an epsilon model. What is to be said where none could be written."""
        described = self._model.family.config and not self._model.inpaints
        try:
            if self._prediction == "v" and described and not beside(path).exists():
                write_description(path, self._model.family, self._prediction)
        except SaveError as error:
            reason = error.sentence.facts["reason"]
            return Sentence("description.not_made", path=path, yaml=beside(path), reason=reason)
        return None

    def finish(
        self, facts: dict[str, str], phase: Callable[[Sentence], Progress], stopping: Callable[[], bool]
    ) -> None:
        """The difference to the loaded checkpoint as a LoRA, if the job wants it."""
        if self._difference is None:
            return
        result, device = self._result(), self._model.device
        owned = {(id(own.owner), own.name): own for own in self._owned}
        kept = {target.key: _kept_in(target.module) for target in self._model.adaptable_modules()}
        targets = {key: (owned[place], rows) for key, (place, rows) in kept.items() if place in owned}

        def changed() -> Iterator[tuple[str, torch.Tensor]]:
            progress = phase(Sentence("phase.difference"))
            for done, (key, (own, rows)) in enumerate(targets.items()):
                if stopping():
                    return
                progress(done, len(targets))
                yield key, result[own.key][rows].to(device) - whole_weight(own)[rows].to(device).float()
            progress(len(targets), len(targets))

        tensors = lora_of_differences(changed(), self._job.finetune.difference_rank, torch.float16)
        if stopping():
            logger.info("The LoRA of the difference is left out: Stop was pressed while it was made")
        elif tensors:
            write_lora(self._difference, tensors, {**facts, "ss_network_module": "networks.lora"}, overwrite=False)


def _kept_in(layer: nn.Module) -> tuple[tuple[int, str], slice]:
    """The module, by its id, and the name of the parameter that holds a layer's weight, and its rows there."""
    owner, name, rows = layer.kept_in if isinstance(layer, SlicedLinear) else (layer, "weight", slice(None))
    return (id(owner), name), rows


def _apart(model: LoadedModel, without: list[str]) -> dict[str, torch.Tensor]:
    """What is not trained, as it is now: later the host may hold it in another precision, in the same memory."""
    tensors = model.checkpoint_tensors(without)
    return {key: tensor.clone() for key, tensor in tensors.items()} if model.device.type == "cpu" else tensors


def _copied(own: OwnParameter, start: dict[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    original, stored = parameter_of(own), start.get(own.place.name)
    if stored is None:
        return whole_weight(own).to(device, torch.float32, copy=True)
    found = own.place.read(stored)
    if found.shape != original.shape:
        raise ModelError(
            "continue.shape",
            field="network.continue_from",
            key=own.key,
            there=str(tuple(found.shape)),
            here=str(tuple(original.shape)),
        )
    return found.to(device, torch.float32, copy=True, memory_format=torch.contiguous_format)


def _read_start(job: JobConfig) -> dict[str, torch.Tensor]:
    if not job.network.continue_from:
        return {}
    return read_checkpoint(Path(job.network.continue_from).expanduser())
