"""A LoRA file, opened: which modules of which family it changes, by whatever names.

Read beside the four schemes of `layers`: diffusers' older names (`….processor.to_q_lora.down.weight`,
`….lora_linear_layer.up.weight`, `….lora.down.weight`), peft's own (`base_model.model.….lora_A.default.weight`), and
sd-scripts' for OFT (`oft_unet_…`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lib_trainer.families.detect import lora_of
from lib_trainer.families.family import Family
from lib_trainer.families.known import FAMILIES
from lib_trainer.networks.formats.lora_file import BUNDLED
from lib_trainer.refusals import ModelError
from lib_trainer.toolbox.adapters import EXACT, SUFFIXES, kind_of, needs_base, why_torn
from lib_trainer.toolbox.layers import SCHEMES, Layer, Scheme, by_name
from lib_trainer.toolbox.source import Source, open_source

MAGNITUDE = "lora_magnitude_vector"
ENDINGS: tuple[tuple[str, str], ...] = (
    (".lora_A.default.weight", "lora_down.weight"),
    (".lora_B.default.weight", "lora_up.weight"),
    (".lora_A.weight", "lora_down.weight"),
    (".lora_B.weight", "lora_up.weight"),
    (".lora.down.weight", "lora_down.weight"),
    (".lora.up.weight", "lora_up.weight"),
    (".lora_linear_layer.down.weight", "lora_down.weight"),
    (".lora_linear_layer.up.weight", "lora_up.weight"),
    ("_lora.down.weight", "lora_down.weight"),
    ("_lora.up.weight", "lora_up.weight"),
    (f".{MAGNITUDE}.default.weight", "dora_scale"),
    (f".{MAGNITUDE}.weight", "dora_scale"),
    (f".{MAGNITUDE}", "dora_scale"),
    *((f".{suffix}", suffix) for suffix in sorted(SUFFIXES, key=lambda one: (-len(one), one))),
)
"""What stands behind a module's name, and what it is called here."""

OLD_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""What diffusers once called the projections of a text encoder."""


@dataclass(frozen=True)
class Module:
    """`name`: as the file has it, without what stands behind. `tensors`: {suffix: the tensor's name in the file}."""

    layer: Layer
    name: str
    tensors: Mapping[str, str]


@dataclass(frozen=True)
class OpenLora:
    """modules     by layer, in the order of the family's list
    strange     tensors that belong to no module that is known
    embeddings  names of the embeddings that it brings along
    """

    source: Source
    family: Family
    modules: Mapping[Layer, Module]
    strange: tuple[str, ...]
    embeddings: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.source.metadata

    @property
    def scheme(self) -> Scheme:
        """The names that it has; of a mixture, those of its first module."""
        modules = list(self.modules.values())
        for some in (modules, modules[:1]):
            for scheme in SCHEMES:
                if all(module.name == module.layer.name(scheme) for module in some):
                    return scheme
        return "kohya"

    def own(self, layer: Layer) -> dict[str, torch.Tensor]:
        """A module's tensors by suffix, in the file's types. Raises `ModelError` for numbers that are none, and for
        tensors that do not fit each other."""
        found: dict[str, torch.Tensor] = {}
        for suffix, name in self.modules[layer].tensors.items():
            tensor = self.source.raw(name)
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ModelError("adapter_file.not_finite", path=self.path, name=name)
            found[suffix] = _by_output(tensor, found) if MAGNITUDE in name else tensor
        if (reason := why_torn(found)) is not None:
            raise ModelError("adapter_file.torn", path=self.path, name=self.modules[layer].name, reason=reason)
        return found

    def shapes(self, layer: Layer) -> dict[str, tuple[int, ...]]:
        return {suffix: self.source.tensors[name].shape for suffix, name in self.modules[layer].tensors.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The most exact type of its numbers; fp16 before bf16."""
        order = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        held = {self.source.tensors[name].dtype for one in self.modules.values()
                for suffix, name in one.tensors.items() if suffix not in EXACT}  # fmt: skip
        return next((one for one in order if one in held), torch.float16)

    @property
    def needing_base(self) -> list[Layer]:
        """Layers whose change depends on the model that it is added to."""
        return [layer for layer, module in self.modules.items() if needs_base(module.tensors)]


def _by_output(magnitude: torch.Tensor, own: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """peft's magnitudes, one for each output, as (out, 1, …)."""
    down = own.get("lora_down.weight")
    return magnitude.reshape(-1, *[1] * ((down.ndim if down is not None else 2) - 1))


def open_lora(path: Path, asked: Family | None = None) -> OpenLora:
    """Reads the header alone. `asked`: the family to take it for where it fits several and does not say.

    Raises `ModelError` naming a file that is no LoRA, or holds a kind that is not known.
    """
    source = open_source(path)
    names = [name for name in source.tensors if not name.startswith(BUNDLED)]
    family = family_of(source.shapes, source.metadata, asked)
    if family is None:
        raise ModelError("lora.not_one", path=source.path)
    told: dict[Layer, dict[str, dict[str, str]]] = {}
    strange: list[str] = []
    for name in names:
        found = read_name(name, family)
        if found is None:
            strange.append(name)
        else:
            layer, suffix, module = found
            told.setdefault(layer, {}).setdefault(module, {})[suffix] = name
    modules: dict[Layer, Module] = {}
    for layer in dict.fromkeys(by_name(family).values()):
        for module, tensors in told.get(layer, {}).items():
            kind = kind_of(tensors)
            if kind is None and set(tensors) <= {"alpha", "diff_b", "b_norm"}:
                strange += tensors.values()
            elif kind is None:
                raise ModelError("adapter_file.kind", path=source.path, name=module, tensors=sorted(tensors))
            elif layer in modules:
                raise ModelError("adapter_file.twice", path=source.path, one=modules[layer].name, other=module)
            else:
                modules[layer] = Module(layer, module, tensors)
    if not modules:
        raise ModelError("lora.not_one", path=source.path)
    brought = dict.fromkeys(name[len(BUNDLED) :].partition(".")[0] for name in source.tensors if name not in names)
    return OpenLora(source, family, modules, tuple(strange), tuple(brought))


def read_name(name: str, family: Family) -> tuple[Layer, str, str] | None:
    """A tensor's layer, what stands behind (as it is called here), and the module's name; None for no module's."""
    known = by_name(family)
    for ending, suffix in ENDINGS:
        if name.endswith(ending):
            module = name[: -len(ending)]
            for tried in _spellings(module, processor=ending.startswith("_lora")):
                if tried in known:
                    return known[tried], suffix, module
            return None
    module, _, rest = name.partition(".")
    return (known[module], rest, module) if module in known else None


def _spellings(module: str, *, processor: bool) -> Iterable[str]:
    """What a module may be called in the list of layers."""
    yield module
    if "." not in module:
        return
    plain = module.removeprefix("base_model.model.").replace(".processor.", ".")
    head, _, last = plain.rpartition(".")
    if processor:
        old = OLD_ATTENTION.get(last, last) if ".self_attn" in head else "to_out.0" if last == "to_out" else last
        plain = f"{head}.{old}"
    elif head.endswith(".self_attn") and last in OLD_ATTENTION:
        plain = f"{head}.{OLD_ATTENTION[last]}"
    yield plain
    yield f"unet.{plain}"
    yield f"text_encoder.{plain}"


def family_of(
    shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str], asked: Family | None = None
) -> Family | None:
    """The family of a LoRA file: the one that has its modules; of several the one whose widths it has.

    Where those do not tell, its metadata do, then `asked`, then the manner of its names.
    """
    read = {
        family.word: [
            (found[0], found[1], shape) for name, shape in shapes.items() if (found := read_name(name, family))
        ]
        for family in FAMILIES
    }
    most = max(len(found) for found in read.values())
    possible = [family for family in FAMILIES if most and len(read[family.word]) == most]
    if len(possible) < 2:
        return possible[0] if possible else None
    for family in possible:
        if _widths(read[family.word]) & {("unet", family.unet.context)}:
            return family
    widths = {width for part, width in _widths(read[possible[0].word]) if part == "te1"}
    by_text = [family for family in possible if {family.encoders[0].width} == widths]
    possible = by_text or possible
    says = any(name in metadata for name in ("ss_base_model_version", "ss_v2"))
    told = lora_of([name.partition(".")[0] for name in shapes], metadata)
    for one in (told if says else None, asked, told):
        if one is not None and any(one is family for family in possible):
            return one
    return possible[0]


def _widths(read: list[tuple[Layer, str, tuple[int, ...]]]) -> set[tuple[str, int]]:
    """What layers that read the text are told to read, and what the text encoder's read."""
    found: set[tuple[str, int]] = set()
    for layer, suffix, shape in read:
        cross = layer.home.endswith(("attn2.to_k", "attn2.to_v"))
        text = layer.part != "unet" and layer.published[0].endswith(("q_proj", "k_proj", "v_proj", "mlp.fc1"))
        if (cross or text) and suffix in ("lora_down.weight", "hada_w1_b", "diff") and len(shape) > 1:
            found.add((layer.part, shape[1]))
    return found
