"""What a step of each kind of training keeps, measured on tensors without contents: the tables of the forecast.

    python -m bench.memory table sd1       make lib_trainer/training/memory_tables/sd1.json anew (minutes)
    python -m bench.memory table sdxl      the same for SDXL, and `sd2`
    python -m bench.memory table tiny      the same for the tests' miniature of SD1, and `tiny_xl` for SDXL's
    python -m bench.memory check sd1       forecast beside a measured step at the real size, or `sdxl`, or `sd2`

A step is the real one: the recipe, the session and the model's own modules, forward and backward, on torch's meta
device, which computes shapes and no numbers, under the device's rules of autocast. An allocation hook follows every
storage. So nothing depends on the machine, and no memory of the models' size is needed. Kernels' own workspaces are not
seen.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import sys
import types
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import torch
from torch import nn
from torch.utils._device import _device_constructors
from torch.utils.checkpoint import checkpoint

from bench.allocations import Allocations
from bench.count_step import CudaAutocast
from bench.labelled import labelled_unet
from bench.remembered import remembered
from bench.shapes import BIG_G, BIG_H, CLIP_L, SD1_UNET, VAE
from lib_trainer.config import JobConfig, from_values
from lib_trainer.families.family import Family, Part
from lib_trainer.families.known import DEFAULT
from lib_trainer.families.sd2 import SD2
from lib_trainer.families.sdxl import SDXL
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.quantised import is_quantised
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.host.text.texts import Texts
from lib_trainer.host.vector import SINES
from lib_trainer.host.weights import Bus
from lib_trainer.kinds.outputs import Outputs
from lib_trainer.kinds.registry import kind_of
from lib_trainer.networks.hypernetwork import attention_sizes
from lib_trainer.ports import Conditioning, NoiseSchedule, TrainingState
from lib_trainer.training.forecast import Place, forecast, learned_numbers, work_key
from lib_trainer.training.memory_table import FULL, TABLES, Layer, Table, Weights, Work, tables
from lib_trainer.training.objective import Noised, Objective
from lib_trainer.training.precision import DTYPES
from lib_trainer.training.session import Session

GIB = 2**30
CELL = DEFAULT.cell
ADAPTER_KINDS = ("lora", "locon", "loha", "lokr")
KINDS = ("lora", "loha", "lokr", "lora+dora", "locon", "embedding", "hypernetwork", "checkpoint")
XL_KINDS = tuple(kind for kind in KINDS if kind != "hypernetwork")
"""Hosts know no hypernetwork for SDXL."""
SHAPES = ("sd1", "sd2", "sdxl", "tiny", "tiny_xl")
NORMS = (torch.nn.functional.group_norm, torch.nn.functional.layer_norm, torch.group_norm, torch.layer_norm)
CONSTRUCTORS = _device_constructors()
"""What is told by `torch.device` where new tensors lie."""
TINY = Path(__file__).parents[1] / "tests" / "training"
PUBLISHED: dict[str, Any] = {"sd2": SD2.config, "sdxl": SDXL.config}
SD2_UNET, XL_UNET = (
    SD1_UNET | {"num_heads": -1} | config["model"]["params"]["unet_config"]["params"] for config in PUBLISHED.values()
)


@dataclass(frozen=True)
class Shape:
    """Configurations of the parts, the table's file, the side of the pictures that it is measured at, and the kinds."""

    unet: dict[str, Any]
    texts: tuple[dict[str, Any], ...]
    vae: dict[str, Any]
    file: Path
    side: int
    family: Family = DEFAULT
    on_cpu: bool = False
    kinds: tuple[str, ...] = KINDS
    full: tuple[str, ...] = ("lora", "checkpoint")
    """Kinds that are measured in fp32 too."""
    more: int = 0
    """As many times the pictures are taken throughout: on a small model one of them takes less than gradients do."""

    def told(self, batch: int, tokens: int) -> Conditioning:
        """What the UNet reads beside latents and timesteps."""
        context = torch.empty(batch, tokens, self.unet["context_dim"])
        return self.sized(Conditioning(context, torch.empty(batch, self._pooled) if self.family.sizes else None))

    def sized(self, told: Conditioning) -> Conditioning:
        """With the sizes of pictures, where the family's UNet reads them."""
        sizes = torch.empty(len(told.context), 6) if self.family.sizes else None
        return dataclasses.replace(told, sizes=sizes)

    @property
    def _pooled(self) -> int:
        return int(self.unet["adm_in_channels"]) - 6 * SINES


def shape_of(name: str) -> Shape:
    if name == "sd1":
        return Shape(SD1_UNET, (CLIP_L,), VAE, TABLES / "sd1.json", 512)
    if name == "sd2":
        return Shape(SD2_UNET, (BIG_H,), VAE, TABLES / "sd2.json", 768, SD2)
    if name == "sdxl":
        return Shape(XL_UNET, (CLIP_L, BIG_G), VAE, TABLES / "sdxl.json", 1024, SDXL, kinds=XL_KINDS)
    from tests import support, tiny_families

    tiny, xl = TINY / "memory_tiny.json", TINY / "memory_tiny_xl.json"
    if name == "tiny":
        return Shape(support.UNET, (support.CLIP,), support.VAE, tiny, 128, on_cpu=True)
    texts = (support.CLIP, tiny_families.OPEN_CLIP)
    return Shape(tiny_families.XL_UNET, texts, support.VAE, xl, 128, SDXL, True, ("lora", "embedding"), (), SMALL)


class _Bus(Bus):
    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.in_place = False


class _Text(Texts):
    def usual_norm(self) -> dict[Part, float]:
        """Numbers, which nothing has that has no contents."""
        return dict.fromkeys(self.parts(), 1.0)


class _Vae(nn.Module):
    """ldm's encoder and decoder as its AutoencoderKL holds them, with the fused attention that the hosts use."""

    def __init__(self, config: dict[str, Any]) -> None:
        from ldm.modules.diffusionmodules.model import Decoder, Encoder

        super().__init__()
        self.encoder, self.decoder = Encoder(**config), Decoder(**config)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)
        for block in (self.encoder.mid.attn_1, self.decoder.mid.attn_1):
            block.__dict__["forward"] = _fused_attention(block)

    def encode(self, pixels: torch.Tensor) -> Any:
        return types.SimpleNamespace(parameters=self.quant_conv(self.encoder(pixels)))


def _fused_attention(block: Any) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        h = block.norm(x)
        flat = [one(h).flatten(2).transpose(1, 2).unsqueeze(1) for one in (block.q, block.k, block.v)]
        out = nn.functional.scaled_dot_product_attention(*flat).squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + block.proj_out(out)

    return forward


def build(shape: Shape, make: type[LdmModel] = LdmModel) -> LdmModel:
    """The parts on the device that is entered, in fp32; the schedule on the CPU, where a run wants it."""
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    family = shape.family
    with contextlib.redirect_stdout(None):
        unet = labelled_unet(shape.unet) if family.sizes else UNetModel(**shape.unet)
        vae = _Vae(shape.vae).eval()
    texts = [
        (CLIPTextModelWithProjection if described.pooled else CLIPTextModel)(CLIPTextConfig(**config)).eval()
        for described, config in zip(family.encoders, shape.texts, strict=True)
    ]
    schedule = NoiseSchedule(torch.linspace(0.999, 0.01, 1000, dtype=torch.float64, device="cpu"), "epsilon")
    text = _Text(texts, load_tokenizer(), family)
    return make(unet.eval(), vae, text, schedule, family.latent_scale, family=family)


def job_of(side: int, **changes: Any) -> JobConfig:
    """`changes` are `section__field=value`."""
    values = {
        "output.name": "x",
        "embedding.names": "zork",
        "dataset.width": side,
        "dataset.height": side,
        "training.precision": "bf16",
        "optimizer.text_encoder_lr": 0.0,
    }
    return from_values(values | {name.replace("__", "."): value for name, value in changes.items()})


class _Model(LdmModel):
    """Nothing can be brought to the CPU that has no contents."""

    make_bus = _Bus

    def checkpoint_tensors(self, without: Collection[str] = ()) -> dict[str, torch.Tensor]:
        return {own.key: parameter for own in self.own_parameters() for parameter in [getattr(own.owner, own.name)]}


class _Autocast(CudaAutocast):
    """The rules of the device that a table is about; a CPU's norms stay in half precision. `dtype` fp32 is none.

    New tensors have no contents: `torch.device("meta")` would be a second mode around every operation.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__()
        self.on, self.caching, self._on_cpu = dtype is not torch.float32, True, shape.on_cpu

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._on_cpu and function in NORMS:
            return function(*args, **(kwargs or {}))
        if function in CONSTRUCTORS and (kwargs is None or kwargs.get("device") is None):
            kwargs = {**(kwargs or {}), "device": "meta"}
        return super().__torch_function__(function, types, args, kwargs)

    @contextlib.contextmanager
    def switched(self, kind: str, dtype: torch.dtype | None = None, enabled: bool = True) -> Iterator[None]:
        """Stands for `torch.autocast`, which knows no meta device."""
        before, self.on = self.on, self.on and enabled
        try:
            yield
        finally:
            self.on = before

    def checkpoint(self, forward: Any, *args: Any, **options: Any) -> Any:
        """Stands for torch's: the backward pass, in which a block is recomputed, is outside of every function mode."""

        def inside(*own: Any, **named: Any) -> Any:
            with self:
                return forward(*own, **named)

        return checkpoint(inside, *args, **options)

    def leave(self) -> None:
        """The forward pass is over: casts of weights live as long as the graph needs them."""
        self._cast.clear()
        self.caching = False

    def _as(self, dtype: torch.dtype, value: Any) -> Any:
        found = super()._as(dtype, value)
        if not self.caching:
            self._cast.clear()
        return found


class _Allocations(Allocations):
    called = staticmethod(remembered)


@functools.cache
def _model(file: Path) -> LdmModel:
    """Once in a process."""
    shape = next(shape for shape in map(shape_of, SHAPES) if shape.file == file)
    with torch.device("meta"):
        return build(shape, _Model)


@contextlib.contextmanager
def without_contents(shape: Shape, dtype: torch.dtype) -> Iterator[tuple[Allocations, LdmModel, _Autocast]]:
    """Tensors are made on the meta device. Checkpointing is told of a device that it knows."""
    model, mode = _model(shape.file), _Autocast(shape, dtype)
    known = mock.patch("torch.utils.checkpoint._infer_device_type", lambda *args: "cuda")
    off = mock.patch("torch.autocast", mode.switched)
    there = mock.patch("lib_trainer.autocasting.autocasts", lambda kind, dtype=None: True)
    again = mock.patch("lib_trainer.host.holding.checkpoint", mode.checkpoint)
    stay = mock.patch("lib_trainer.kinds.slots.moves", lambda device: False)
    with known, off, there, again, stay, mode.emulated(), _Allocations() as live:
        roots = model.roots().values()
        live.watch(tensor for root in roots for tensor in (*root.parameters(), *root.buffers()))
        yield live, model, mode


class Measured(NamedTuple):
    """Bytes: of the weights that a step uses, as they are held; of what learns; and at the step's peak beside both."""

    weights: int
    learned: int
    step: int


def measure_step(shape: Shape, job: JobConfig, chunks: int = 1) -> Measured:
    """One step of a job, forward and backward."""
    dtype = DTYPES[job.training.precision]
    batch, height, width = job.training.batch_size, job.dataset.height // CELL, job.dataset.width // CELL
    with without_contents(shape, dtype) as (live, model, mode):
        recipe = kind_of(job).recipe(job, model, Outputs((Path(),)))
        recomputed, replaced = job.training.gradient_checkpointing, frozenset(recipe.replaces)
        eight_bits = job.training.weights == "fp8"
        state = TrainingState(dtype, recomputed, recipe.trains_text_encoder, replaced, eight_bits=eight_bits)
        with Session(model, recipe, state) as session:
            session.train(text_encoder=recipe.trains_text_encoder)
            learns = [parameter for group in recipe.groups() for parameter in group["params"]]
            own = {id(parameter) for parameter in learns}
            roots = [model.unet, *(model.text.parts().values() if recipe.trains_text_encoder else [])]
            held = [one for root in roots for one in root.parameters() if id(one) not in own]
            saved = _saved_by_eight_bits(model.unet) if eight_bits else 0
            if not recipe.trains_text_encoder:
                told = shape.told(batch, 77 * chunks)
            before = live.now
            live.forget_peak()
            if recipe.trains_text_encoder:
                told = shape.sized(model.encode_text([_caption(chunks)] * batch, job.training.clip_skip, chunks))
            latents = torch.empty(batch, 4, height, width)
            timesteps = torch.zeros(batch, dtype=torch.int64)
            prediction = model.predict(latents, timesteps, told)
            mode.leave()
            loss = Objective(model.schedule).loss(prediction, Noised(latents, timesteps, torch.empty(prediction.shape)))
            del prediction, told
            torch.autograd.backward(loss)  # Tensor.backward would leave the mode
            del loss
            return Measured(_bytes(held) - saved, _bytes(learns), live.peak - before)


def _saved_by_eight_bits(unet: nn.Module) -> int:
    """Bytes of the parameters that a step has away, less those of the codes and fp32 scales that it reads instead."""
    weights: list[Any] = [module.weight for module in unet.modules() if is_quantised(module)]
    return _bytes(weights) - sum(weight.numel() + FULL * len(weight) for weight in weights)


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _caption(chunks: int) -> str:
    return " ".join(["zork", *["disc"] * (75 * chunks - 10)])


def measure_quiet(shape: Shape, side: int, what: str) -> int:
    """Bytes at the peak of encoding a picture, of decoding one, or of a sampler's step with guidance, in fp32."""
    with without_contents(shape, torch.float32) as (live, model, _), torch.no_grad():
        cells = side // CELL
        before = live.now
        live.forget_peak()
        if what == "encode":
            model.vae.quant_conv(model.vae.encoder(torch.empty(1, 3, side, side)))
        elif what == "decode":
            model.vae.decoder(model.vae.post_quant_conv(torch.empty(1, 4, cells, cells)))
        else:
            with model.training(TrainingState(torch.float32, False, False)):
                model.predict(torch.empty(2, 4, cells, cells), torch.zeros(2, dtype=torch.int64), shape.told(2, 77))
        return live.peak - before


Point = tuple[JobConfig, int]


def works(shape: Shape) -> Iterator[tuple[str, list[Point]]]:
    """Each kind of step by its key, and the jobs and chunks of captions that are measured for it."""
    full = tuple(kind for kind in shape.full if kind == "lora" or not shape.on_cpu)
    for precision, kinds in (("bf16", shape.kinds), ("fp32", full)):
        for recomputed in (False,) if shape.on_cpu and precision == "fp32" else (False, True):
            common = {"training__precision": precision, "training__gradient_checkpointing": recomputed}
            for kind in kinds:
                more = SMALL if shape.on_cpu and recomputed else 1
                points = _points(kind, shape.side, common, shape.more or more)
                if precision == "fp32":
                    points = points[:2]
                elif recomputed:
                    points = points[: 5 if kind in TOLD else 3 if kind in LARGE else 2]
                yield work_key(points[0][0], DTYPES[precision]), points


SMALL = 8
"""As many times the pictures are needed before a small model's recomputed steps take more than gradients do."""
TOLD = ("embedding", "hypernetwork")
"""Kinds whose steps cost what captions are long, text encoder or not."""
LARGE = ("loha", "lora+dora", "checkpoint")
"""Kinds of which what learns alone, its gradients or its weights put together, may be the most that a step of small
pictures takes."""


def _points(kind: str, side: int, common: dict[str, Any], more: int = 1) -> list[Point]:
    """Two sizes of the batch, and what else costs memory: captions, a wider network, gradients alone."""
    name, _, dora = kind.partition("+")
    own = common | {"network__kind": name, "network__dora": bool(dora)}
    counts = (4, 8) if kind in LARGE else (1, 2)
    points = [(job_of(side, **own, training__batch_size=more * count), 1) for count in counts]
    if kind == "lora":
        points.append((job_of(side, **own, optimizer__text_encoder_lr=1e-5, training__batch_size=more), 1))
    elif kind == "embedding":
        points.append((points[0][0], 3))
    elif kind == "hypernetwork":
        wide = job_of(side, **own, hypernetwork__layer_structure="1, 4, 4, 1", training__batch_size=more)
        points += [(wide, 1), (points[0][0], 3), (wide, 3)]
    elif kind in ("loha", "lora+dora"):
        points.append((job_of(64, **own), 1))
    elif kind == "checkpoint":
        trained = job_of(side, **own, finetune__text_encoder_lr=1e-6, training__batch_size=4)
        points += [(job_of(64, **own), 1), (trained, 1)]
    return points


def fitted(table: Table, points: list[Point], sizes: list[int]) -> Work:
    """What a step costs by pictures' size, what learns and captions, through the measured points."""
    first, second = (job for job, _ in points[:2])
    kind, batch, (low, high) = kind_of(first).memory.measured_as(first), first.training.batch_size, sizes[:2]
    cell = (high - low) / (cells_of(second) - cells_of(first))
    fixed = low - cell * cells_of(first)
    learned = FULL * sum(learned_numbers(first, table).values())
    if kind == "embedding":  # its pictures' captions were counted with their cells
        text = (sizes[2] - low) / (points[2][1] - 1) / batch
        return Work(fixed=fixed, cell=cell - text * batch / cells_of(first), text=text)
    if kind == "hypernetwork":
        return _of_hypernetwork(table, points, sizes)
    share = max(fixed, 0.0) / learned
    text = 0.0
    trained = {"lora": 2, "checkpoint": 3}.get(kind, 9)
    if len(sizes) > trained:
        more = FULL * sum(learned_numbers(points[trained][0], table).values()) - learned
        text = max(0.0, sizes[trained] - low - share * more) / batch
    least = sizes[2] / learned if kind in LARGE and len(sizes) > 2 else 0.0
    if kind == "lokr":
        return Work(fixed=fixed, cell=cell)
    return Work(learned=share, cell=cell, text=text, least=least)


WIDER = 12
"""As many more `kept_widths` as '1, 2, 1' has '1, 4, 4, 1', at swish."""


def _of_hypernetwork(table: Table, points: list[Point], sizes: list[int]) -> Work:
    """What it reads of the picture and of the caption apart, each by the widths of its layers."""
    (first, _), (second, _) = points[:2]
    cells, learned = cells_of(first), FULL * sum(learned_numbers(first, table).values())
    cell = (sizes[1] - sizes[0]) / (cells_of(second) - cells)
    share = max(0.0, sizes[0] - cell * cells) / learned
    more = FULL * sum(learned_numbers(points[2][0], table).values()) - learned
    units = WIDER * first.training.batch_size
    text = (sizes[3] - sizes[0]) / 2 / first.training.batch_size
    told = (sizes[4] - sizes[3] - (sizes[2] - sizes[0])) / 2 / units
    wide = (sizes[2] - sizes[0] - share * more - told * units) / WIDER / cells
    return Work(learned=share, cell=cell - text / cells * first.training.batch_size, text=text, wide=wide, told=told)


def completed(table: Table, kinds: tuple[str, ...]) -> None:
    """Steps that were not measured, from those that are alike."""
    steps, new = table.steps, msgspec.structs.replace
    for kind in ("loha", "lokr", "lora+dora", "locon"):  # their text encoder is as LoRA's
        if kind in kinds:
            steps[f"{kind} half kept"] = new(steps[f"{kind} half kept"], text=steps["lora half kept"].text)
    for kind in kinds:
        kept, other = steps[f"{kind} half kept"], steps[f"{kind} half recomputed"]
        if kind not in TOLD:
            steps[f"{kind} half recomputed"] = new(other, text=kept.text * other.cell / kept.cell)
    for memory in ("kept", "recomputed"):
        plain, all_kinds = steps[f"lora half {memory}"], kinds
        if {"locon", "lora+dora"} <= set(kinds):
            one, two = (steps[f"{kind} half {memory}"] for kind in ("locon", "lora+dora"))
            steps[f"locon+dora half {memory}"] = new(one, cell=one.cell + two.cell - plain.cell, text=two.text)
            all_kinds = (*kinds, "locon+dora")
        if f"lora full {memory}" not in steps:
            continue
        ratio = steps[f"lora full {memory}"].cell / plain.cell
        for kind in all_kinds:
            half = steps[f"{kind} half {memory}"]
            scaled = {name: getattr(half, name) * ratio for name in ("fixed", "cell", "text", "wide", "told")}
            full = steps.get(f"{kind} full {memory}", new(half, **scaled))
            steps[f"{kind} full {memory}"] = new(full, text=scaled["text"], least=half.least)


def cells_of(job: JobConfig) -> int:
    return job.training.batch_size * (job.dataset.width // CELL) * (job.dataset.height // CELL)


def layers_of(shape: Shape) -> tuple[list[Layer], dict[str, Weights], list[int]]:
    """The adaptable layers, alike ones together; the parts' sizes; the widths that attentions read."""
    with without_contents(shape, torch.float32) as (_, model, _), torch.no_grad():
        targets = model.adaptable_modules()
        seen: dict[int, float] = {}
        cells = (shape.side // CELL) ** 2

        def look(module: Any, inputs: Any, out: torch.Tensor) -> None:
            seen[id(module)] = out.numel() / module.weight.shape[0] / cells

        hooks = [target.module.register_forward_hook(look) for target in targets if target.part == "unet"]
        with model.training(TrainingState(torch.float32, False, False)):
            side = shape.side // CELL
            model.predict(torch.empty(1, 4, side, side), torch.zeros(1, dtype=torch.int64), shape.told(1, 77 * 64))
        for hook in hooks:
            hook.remove()
        counted: Counter[Layer] = Counter()
        for target in targets:
            module: Any = target.module
            share = seen.get(id(module), 0.0)
            told_layer = target.part != "unet" or ("attn2_to_" in target.key and target.key[-1] in "kv")
            kernel, stride = (module.kernel_size[0], module.stride[0]) if isinstance(module, nn.Conv2d) else (0, 1)
            out, inner = module.weight.shape[:2]
            layer = Layer(
                target.part, target.group, target.block, inner, out, kernel, stride, 0.0 if told_layer else share
            )
            counted[layer] += 1
        layers = [msgspec.structs.replace(layer, count=count) for layer, count in counted.items()]
        weights = {part: _weights(root) for part, root in model.roots().items()}
        return layers, weights, attention_sizes(targets)


def _weights(root: nn.Module) -> Weights:
    products = sum(
        parameter.numel()
        for module in root.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        for parameter in module.parameters(recurse=False)
    )
    return Weights(products, sum(parameter.numel() for parameter in root.parameters()) - products)


class Points:
    """Measured steps by what they are, kept in a file from one start to the next; without one they are not kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.is_file() else []
        self._known: dict[str, int] = {name: size for line in lines for name, size in json.loads(line).items()}

    def lacking(self, points: Sequence[tuple[str, JobConfig, int]]) -> list[tuple[str, JobConfig, int]]:
        return [point for point in points if _told(point) not in self._known]

    def keep(self, point: tuple[str, JobConfig, int], size: int) -> None:
        self._known[_told(point)] = size
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({_told(point): size}) + "\n")

    def __getitem__(self, point: tuple[str, JobConfig, int]) -> int:
        return self._known[_told(point)]


def _told(point: tuple[str, JobConfig, int]) -> str:
    name, job, chunks = point
    wide = f", structure {job.hypernetwork.layer_structure}" if job.network.kind == "hypernetwork" else ""
    return f"{name}: {in_words(job, shape_of(name).family)}{wide}, chunks {chunks}"


def make_table(name: str, processes: int, known: Points) -> Table:
    shape = shape_of(name)
    layers, weights, sizes = layers_of(shape)
    family = shape.family
    table = Table(layers, weights, sizes, sum(one["hidden_size"] for one in shape.texts), {}, {}, family.memory)
    for what in ("encode", "decode", "sample"):
        per = (shape.side // CELL) ** 2
        low, high = (measure_quiet(shape, side, what) for side in (shape.side, 2 * shape.side))
        table.quiet[what] = Work(cell=(high - low) / (3 * per), fixed=max(0.0, low - (high - low) / 3))
    planned = list(works(shape))
    points = [(name, job, chunks) for _, own in planned for job, chunks in own]
    lacking = known.lacking(points)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for point, size in zip(lacking, pool.imap(_measured, lacking)):
            known.keep(point, size)
            print(f"{_told(point)}: {size / 2**20:.1f} MiB", flush=True)
    for key, own in planned:
        table.steps[key] = fitted(table, own, [known[name, job, chunks] for job, chunks in own])
        print(f"{key} → {table.steps[key]}")
    completed(table, shape.kinds)
    return table


def _measured(point: tuple[str, JobConfig, int]) -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    name, job, chunks = point
    return measure_step(shape_of(name), job, chunks).step


CACHED = {"optimizer__text_encoder_lr": 0.0}
CHECKED: tuple[dict[str, Any], ...] = (
    {"network__kind": "lora"},
    {"network__kind": "lora", "training__batch_size": 4},
    {"network__kind": "lora", "side": 768, "training__gradient_checkpointing": True, "training__batch_size": 4},
    {"network__kind": "lora", "training__precision": "fp32", "network__rank": 128},
    {"network__kind": "lora", "optimizer__text_encoder_lr": 0.0, "optimizer__name": "AdamW8bit", "side": 768},
    {"network__kind": "lora", "network__dora": True, "training__batch_size": 2},
    {"network__kind": "locon", "side": 768},
    {"network__kind": "loha", "training__batch_size": 4},
    {"network__kind": "loha", "training__gradient_checkpointing": True, "side": 768},
    {"network__kind": "lokr", "training__batch_size": 4},
    {"network__kind": "embedding", "training__batch_size": 4},
    {"network__kind": "hypernetwork", "side": 768},
    {"network__kind": "checkpoint"},
    {"network__kind": "checkpoint", "training__batch_size": 4, "optimizer__name": "AdamW8bit"},
    {"network__kind": "checkpoint", "side": 768, "training__gradient_checkpointing": True, "optimizer__ema": True},
    {"network__kind": "checkpoint", "training__precision": "fp32", "finetune__text_encoder_lr": 1e-6},
    {"network__kind": "embedding", "training__batch_size": 4, "training__weights": "fp8"},
)
"""Jobs beside those that the tables are made from."""
CHECKED_XL: tuple[dict[str, Any], ...] = (
    {"training__gradient_checkpointing": True, **CACHED},
    {"training__gradient_checkpointing": True, "training__weights": "fp8", **CACHED},
    {"training__gradient_checkpointing": True, "training__batch_size": 4},
    {"training__weights": "fp8", "side": 768},
    {"training__batch_size": 2, "optimizer__name": "AdamW8bit", **CACHED},
    {"training__gradient_checkpointing": True, "optimizer__text_encoder_2_lr": 0.0, "side": 768},
    {"network__rank": 128, "training__batch_size": 2},
    {"network__dora": True, "training__gradient_checkpointing": True, "training__batch_size": 4, **CACHED},
    {"network__kind": "locon", "training__gradient_checkpointing": True, "side": 768},
    {"network__kind": "loha", "training__batch_size": 2, "side": 768, **CACHED},
    {"network__kind": "lokr", "training__gradient_checkpointing": True, "training__batch_size": 4, **CACHED},
    {"network__kind": "embedding", "training__gradient_checkpointing": True, "training__batch_size": 4},
    {"network__kind": "checkpoint", "training__gradient_checkpointing": True},
    {"network__kind": "checkpoint", "training__batch_size": 2, "optimizer__name": "AdamW8bit", "side": 768},
    {"training__precision": "fp32", "training__gradient_checkpointing": True, "side": 768},
)
"""The same for SDXL. The first two are what the project's issue on SDXL names: at most 8 and 6 GiB."""
CHECKED_SD2: tuple[dict[str, Any], ...] = (
    {"network__kind": "lora"},
    {"network__kind": "lora", "side": 512, "training__gradient_checkpointing": True, "training__batch_size": 4},
    {"network__kind": "lora", "training__precision": "fp32", "network__rank": 128, "side": 512},
    {"network__kind": "lora", "network__dora": True, "training__batch_size": 2, "side": 512},
    {"network__kind": "locon", "side": 512},
    {"network__kind": "loha", "training__batch_size": 4, "side": 512},
    {"network__kind": "lokr", "training__batch_size": 4, "side": 512},
    {"network__kind": "embedding", "training__batch_size": 4},
    {"network__kind": "hypernetwork", "side": 512},
    {"network__kind": "checkpoint", "training__gradient_checkpointing": True, "optimizer__ema": True},
)
"""The same for SD 2.x."""
CHECKS = {"sdxl": CHECKED_XL, "sd2": CHECKED_SD2}


def checked(changes: dict[str, Any], name: str = "sd1") -> tuple[str, int, int]:
    """A job in words, and the forecast and the measured bytes of its training on a card whose host holds fp16.

    What is measured is the step; the optimizer's state and an average are arithmetic on both sides.
    """
    shape, table, own = shape_of(name), tables()[name], {"optimizer__text_encoder_lr": 1e-5} | changes
    job = job_of(own.pop("side", shape.side), **own)
    place = Place(torch.device("cuda", 0), DTYPES[job.training.precision], dict.fromkeys(table.weights, torch.float16))
    foreseen = forecast(job, table, place)
    training = next(need for need in foreseen.phases if need.phase == "training")
    found = measure_step(shape, job)
    beside = training.items["optimizer"] + training.items["EMA"]
    return in_words(job, shape.family), training.total, sum(found) + beside


def in_words(job: JobConfig, family: Family) -> str:
    told = [job.network.kind + (" + DoRA" if job.network.dora else ""), f"{job.dataset.width}²"]
    told += [f"batch {job.training.batch_size}", job.training.precision]
    if job.network.rank != 32:
        told.append(f"rank {job.network.rank}")
    if job.network.kind in ("checkpoint", *ADAPTER_KINDS) and not kind_of(job).memory.trains_text_encoder(job, family):
        told.append("without text encoder" + "s" * (len(family.encoders) > 1))
    elif len(family.encoders) > 1 and job.optimizer.text_encoder_2_lr == 0:
        told.append("first text encoder alone")
    if job.training.weights == "fp8":
        told.append("fp8 weights")
    if job.network.kind == "checkpoint" and job.optimizer.ema:
        told.append("EMA")
    if job.training.gradient_checkpointing:
        told.append("checkpointing")
    return ", ".join(told + ([job.optimizer.name] if job.optimizer.name != "AdamW" else []))


def check(name: str) -> None:
    """Print a table of docs/memory.md."""
    print("| job | forecast, GiB | measured, GiB | ratio |\n|---|---|---|---|")
    for changes in CHECKS.get(name, CHECKED):
        words, foreseen, found = checked(changes, name)
        print(f"| {words} | {foreseen / GIB:.2f} | {found / GIB:.2f} | {foreseen / found:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("table", "check"))
    parser.add_argument("shape", choices=SHAPES, nargs="?", default="sd1")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--points", type=Path, help="a file that keeps each measured step: what is in it is not run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "check":
        check(options.shape)
    if options.command == "table":
        table = make_table(options.shape, options.processes, Points(options.points))
        path = shape_of(options.shape).file
        path.write_text(json.dumps(msgspec.to_builtins(table), indent=1) + "\n", encoding="utf-8")
        print(path, file=sys.stderr)


if __name__ == "__main__":
    main()
