"""What a file is, as far as its header tells: what kind of file, for which family, what the model predicts."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from lib_trainer.families.detect import embedding_of, lora_of, model_of
from lib_trainer.families.family import VAE_PREFIX, Family, Part, Stranger
from lib_trainer.families.known import DEFAULT, FAMILIES, PREFIXES
from lib_trainer.families.prediction import EDM_KEYS, SD2_BIAS, V_KEY, ZERO_KEY, Clues, is_edm, predicts
from lib_trainer.networks.formats.description import read_description
from lib_trainer.networks.formats.lora_facts import BUNDLED
from lib_trainer.refusals import Joined, ModelError
from lib_trainer.toolbox.source import Source

Component = Part | Literal["vae"]
UNET = DEFAULT.unet.prefix
FIRST = f"{UNET}input_blocks.0.0.weight"
EDM = "EDM"
"""What models that are noised in another way are said to predict."""
MARKERS = (V_KEY, ZERO_KEY, *EDM_KEYS)
"""Tensors by which a checkpoint says what it predicts and how it is noised."""

ROWS = {encoder.rows for family in FAMILIES for encoder in family.encoders} | {"string_to_param.*"}
"""What the vectors of an embedding are called."""

ADAPTERS: tuple[tuple[str, str], ...] = (
    (r"\.hada_w1_a$", "LoHa"),
    (r"\.lokr_w1(_a)?$", "LoKr"),
    (r"\.oft_(blocks|diag)$", "OFT"),
    (r"\.(a1|b1)\.weight$", "GLoRA"),
    (r"\.on_input$", "IA³"),
    (r"\.lora_mid\.weight$", "LoCon"),
    (r"\.(lora_down|lora_up|lora_A|lora_B)(\.\w+)?\.weight$|[._]lora\.(down|up)\.weight$", "LoRA"),
    (r"\.diff$", "difference"),
)
"""What names tell of an adapter's kind, the most special first."""
OTHERS: tuple[tuple[str, str], ...] = (
    (r"^lora_controlnet$", "ControlNet LoRA"),
    (r"^(control_model\.|controlnet_)", "ControlNet"),
    (r"^(image_proj|ip_adapter)\.", "IP-Adapter"),
    (r"(^|\.)motion_modules\.", "motion module"),
    (r"^(adapter\.)?body\.\d+\.(block1|in_conv|resnets)", "T2I-Adapter"),
    (r"^(vision_model|visual)\.", "vision encoder"),
    (r"^(\d+)\.[01]\.linear\.", "hypernetwork"),
)


@dataclass(frozen=True)
class Facts:
    """What is known of a file.

    kind           "checkpoint", "UNet", "VAE", "text encoder", "embedding", "LoRA", "LoHa" …; "" for the unknown
    family         the one it is of or for; None where that cannot be told
    prediction     what the model predicts; None for what is no model or does not say
    zero_terminal  whether its noise schedule ends without signal
    channels       of the UNet's input
    components     what of a model it holds
    dora           of an adapter: whether it has magnitudes of its own
    """

    kind: str
    family: Family | Stranger | None = None
    prediction: str | None = None
    zero_terminal: bool = False
    channels: int = 0
    components: tuple[Component, ...] = ()
    dora: bool = False

    @property
    def is_model(self) -> bool:
        """Whether it is a model, or its UNet, by the names of a checkpoint."""
        return self.family is not None and "unet" in self.components

    @property
    def word(self) -> str:
        return self.family.word if self.family else ""


def facts_of(source: Source) -> Facts:
    """From names, shapes and metadata; of SD 2.x models one small tensor is read."""
    names = source.tensors
    kind = adapter_kind(names)
    if kind:
        told = source.metadata.get("modelspec.prediction_type", "")
        return Facts(
            kind,
            lora_of(names, source.metadata),
            "v" if told.startswith("v") else "epsilon" if told else None,
            source.metadata.get("ss_zero_terminal_snr") == "True",
            dora=any(name.endswith(".dora_scale") for name in names),
        )
    for pattern, word in OTHERS:
        if any(re.search(pattern, name) for name in names):
            return Facts(word)
    widths = {name: names[name].shape[-1] for name in names if name in ROWS and names[name].shape}
    if widths:
        return Facts("embedding", embedding_of(widths))
    return _model_facts(source)


def adapter_kind(names: Collection[str]) -> str:
    """What sort of adapter a file's names are of; empty for none."""
    own = [name for name in names if not name.startswith((BUNDLED, UNET))]
    for pattern, word in ADAPTERS:
        if any(re.search(pattern, name) for name in own):
            convolutions = word == "LoRA" and any("_resnets_" in name or "_in_layers_" in name for name in own)
            return "LoCon" if convolutions else word
    return ""


def _model_facts(source: Source) -> Facts:
    names = source.tensors
    family = model_of(source.shapes)
    if family is None:
        return Facts(*_alone(names))
    first = source.shapes.get(FIRST, ())
    components: list[Component] = ["unet"] if any(name.startswith(UNET) for name in names) else []
    if isinstance(family, Family):
        components += [
            one.part for one in family.encoders if any(name.startswith(one.root) and _is_weight(name) for name in names)
        ]
    if any(name.startswith(VAE_PREFIX) for name in names):
        components.append("vae")
    prediction, zero_terminal = prediction_of(source, family)
    kind = "UNet" if components == ["unet"] and isinstance(family, Family) else "checkpoint"
    channels = first[1] if len(first) == 4 else 0
    return Facts(kind, family, prediction, zero_terminal, channels, tuple(components))


def _is_weight(name: str) -> bool:
    return name.startswith(PREFIXES) and not name.endswith("position_ids")


def _alone(names: Collection[str]) -> tuple[str, None, None, bool, int, tuple[Component, ...]]:
    """A part of a model in a file of its own, in whichever names."""

    def any_with(*begins: str) -> bool:
        return any(name.startswith(begins) for name in names)

    if any_with("encoder.conv_in.", "decoder.conv_in.", f"{VAE_PREFIX}encoder.", f"{VAE_PREFIX}decoder."):
        return "VAE", None, None, False, 0, ("vae",)
    if (any_with("down_blocks.") and any_with("conv_in.")) or any_with("input_blocks.0.0."):
        return "UNet", None, None, False, 0, ("unet",)
    if any_with("text_model.", "transformer.resblocks.", "cond_stage_model.", "conditioner."):
        return "text encoder", None, None, False, 0, ()
    return "", None, None, False, 0, ()


def prediction_of(source: Source, family: Family | Stranger) -> tuple[str | None, bool]:
    """What a model predicts, and whether its schedule ends at zero signal; see `families.prediction`."""
    if is_edm(source.tensors):
        return EDM, False
    if not isinstance(family, Family):
        return None, ZERO_KEY in source.tensors
    deviation = float(source.number(SD2_BIAS).std(unbiased=False)) if SD2_BIAS in source.tensors else None
    described = {} if source.path.is_dir() else read_description(source.path)  # a folder's became marker tensors
    found = predicts(family, Clues(source.tensors.keys(), source.metadata, described, deviation=deviation))
    return found.prediction, found.zero_terminal


def check_alike(sources: Sequence[Source], *, channels: bool = True) -> list[Facts]:
    """Facts of checkpoints that are to be computed with together, of the first one's family.

    `channels`: their UNets read as many; else who asks sees to the first layer's weight.

    Raises `ModelError` naming the first that is no checkpoint, is of another family, predicts something else, has
    another number of channels, or has a tensor of another shape.
    """
    found: list[Facts] = []
    for source in sources:
        facts, first, path, other = facts_of(source), found[0] if found else None, source.path, sources[0].path
        differ = first is not None and facts.channels and first.channels and facts.channels != first.channels
        if channels and differ and first is not None:
            one, another = facts.channels, first.channels
            raise ModelError("toolbox.two_channels", path=path, other=other, one=one, another=another)
        if "unet" not in facts.components or not isinstance(facts.family, Family):
            raise ModelError("toolbox.no_checkpoint", path=path, found=facts.word or facts.kind or "?")
        found.append(facts)
        if first is not None:
            _check_pair(source, facts, sources[0], first, without=() if channels else (FIRST,))
    return found


def _check_pair(source: Source, facts: Facts, other: Source, first: Facts, *, without: Collection[str] = ()) -> None:
    """Raise `ModelError` where a checkpoint cannot be computed with together with the first one, but for the shapes of
    the tensors `without`."""
    path, beside = source.path, other.path
    if facts.family is not first.family:
        raise ModelError("toolbox.two_families", path=path, other=beside, one=facts.word, another=first.word)
    if facts.prediction != first.prediction:
        one, another = facts.prediction, first.prediction
        raise ModelError("toolbox.two_predictions", path=path, other=beside, one=one, another=another)
    if facts.zero_terminal != first.zero_terminal:
        raise ModelError("toolbox.two_schedules", path=path, other=beside)
    firsts = other.shapes
    for name, shape in source.shapes.items():
        wanted = firsts.get(name, shape) if _is_weight(name) and name not in without else shape
        if wanted != shape:
            told = Joined(shape, "×"), Joined(wanted, "×")
            raise ModelError("toolbox.two_shapes", path=path, other=beside, name=name, one=told[0], another=told[1])
