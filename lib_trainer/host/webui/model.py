"""The WebUI's loaded checkpoint as the core's `LoadedModel`: its own modules, where they are."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from modules import devices, sd_hijack, sd_unet, shared
from modules.textual_inversion.textual_inversion import Embedding
from torch import nn

from lib_trainer.families.detect import LookedAt
from lib_trainer.families.family import Family
from lib_trainer.families.known import DEFAULT, checked
from lib_trainer.families.prediction import Prediction, Predicts
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.host.text.chunks import BACKTRACK
from lib_trainer.host.text.texts import Texts, made
from lib_trainer.host.webui.low_vram import check_comes
from lib_trainer.host.webui.words import known_to_prompts
from lib_trainer.memory import indexed
from lib_trainer.networks.formats.description import predicted_by
from lib_trainer.patching import attribute, replaced_forward
from lib_trainer.ports import NoiseSchedule, Rows, TrainingState
from lib_trainer.refusals import ModelError


class WebuiTexts(Texts):
    """Text encoders whose added words the WebUI's own prompts know as well, so that previews draw them."""

    @contextlib.contextmanager
    def extended(self, words: Mapping[str, Rows]) -> Iterator[None]:
        database = getattr(sd_hijack.model_hijack, "embedding_db", None)
        if not words or database is None:
            with super().extended(words):
                yield
            return
        own = [self._embedding(name, rows) for name, rows in words.items()]
        with known_to_prompts(database, shared.sd_model, own), super().extended(words):
            yield

    def _embedding(self, name: str, rows: Rows) -> Embedding:
        """As the WebUI holds one of this family, of the same memory: it learns along."""
        vectors = {one.rows: rows[one.part].detach() for one in self.family.encoders}
        embedding = Embedding(vectors if len(vectors) > 1 else next(iter(vectors.values())), name)
        embedding.vectors = len(next(iter(vectors.values())))
        embedding.shape = sum(one.shape[1] for one in vectors.values())
        return embedding


class WebuiModel(LdmModel):
    """An `LdmModel` over `shared.sd_model` that also sets aside what generation may have left on it."""

    def __init__(self, sd_model: Any) -> None:
        info, family = sd_model.sd_checkpoint_info, family_of(sd_model)
        super().__init__(
            unet=sd_model.model.diffusion_model,
            vae=sd_model.first_stage_model,
            text=WebuiTexts(text_roots(sd_model), tokenizer_of(sd_model), family, backtrack_of_prompts()),
            schedule=schedule_of(sd_model),
            latent_scale=float(sd_model.scale_factor),
            name=info.name_for_extra,
            file=Path(info.filename),
            file_hash=info.sha256 or "",
            devices=devices,
            family=family,
        )
        self.sd_model = sd_model
        self.drawn_on = indexed(torch.device(devices.device)) if rests(sd_model) else None
        for encoder in self.text.encoders:
            for attention in getattr(encoder, "attentions", ()):
                attention.refresh = bring_in_prompt_networks

    @contextlib.contextmanager
    def _set_aside(self, state: TrainingState) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(without_prompt_networks(self.sd_model))
            stack.enter_context(attribute(sd_unet, "current_unet", None))
            stack.enter_context(attribute(sd_hijack.model_hijack, "fixes", None))
            stack.enter_context(without_seams())
            stack.enter_context(super()._set_aside(state))
            yield


_looked_at = LookedAt()


def family_of(sd_model: Any) -> Family:
    """The family of a loaded checkpoint. Raises `ModelError` where it cannot be trained."""
    if not isinstance(sd_model, nn.Module):
        return DEFAULT
    file = getattr(getattr(sd_model, "sd_checkpoint_info", None), "filename", None)  # set when its weights are in
    return checked(_looked_at.model(sd_model, file) or DEFAULT)


def check_model(sd_model: Any) -> None:
    """Raise `ModelError` with the remedy unless this checkpoint can be trained as it is loaded."""
    if sd_model is None:
        raise ModelError("model.none_loaded")
    family = family_of(sd_model)
    if len(text_roots(sd_model)) != len(family.encoders) or not hasattr(sd_model, "first_stage_model"):
        raise ModelError("model.no_clip", family=family.word)
    if not rests(sd_model) and next(sd_model.model.parameters()).device.type != torch.device(devices.device).type:
        raise ModelError("model.unloaded")
    check_comes(sd_model)


def rests(sd_model: Any) -> bool:
    """Whether it is on the CPU but for the part at work: --medvram, --lowvram."""
    return bool(getattr(sd_model, "lowvram", False))


def roots_of(sd_model: Any) -> dict[str, nn.Module]:
    """The parts of a checkpoint that can be trained as it is loaded."""
    texts = zip(family_of(sd_model).encoders, text_roots(sd_model), strict=True)
    named: dict[str, nn.Module] = {encoder.part: root for encoder, root in texts}
    return {"unet": sd_model.model.diffusion_model, **named, "vae": sd_model.first_stage_model}


def text_roots(sd_model: Any) -> list[nn.Module]:
    """Of the loaded checkpoint's text encoders, in their order: transformers' CLIPTextModel, or open_clip's CLIP."""
    found: list[nn.Module] = []
    for embedder in _embedders(sd_model):
        transformer: Any = getattr(embedder, "transformer", None)
        model: Any = getattr(embedder, "model", None)
        if hasattr(transformer, "text_model"):
            found.append(transformer)
        elif hasattr(getattr(model, "transformer", None), "resblocks"):
            found.append(model)
    return found


def word_width(sd_model: Any) -> int:
    """How long one vector of an embedding is for a checkpoint that can be trained: for all text encoders together."""
    pairs = zip(text_roots(sd_model), family_of(sd_model).encoders, strict=True)
    return sum(int(made(*pair).vocabulary.shape[1]) for pair in pairs)


def tokenizer_of(sd_model: Any) -> Any:
    """transformers' tokenizer, of which every family has the same; open_clip's embedder alone has none."""
    known = (getattr(embedder, "tokenizer", None) for embedder in _embedders(sd_model))
    return next((tokenizer for tokenizer in known if tokenizer is not None), None) or load_tokenizer()


def backtrack_of_prompts() -> int:
    """How many tokens behind the last comma a full chunk of a prompt leaves to the next one: a setting."""
    found = getattr(shared.opts, "comma_padding_backtrack", None)
    return BACKTRACK if found is None else int(found)


def _embedders(sd_model: Any) -> list[Any]:
    """SDXL has several in its conditioner. The WebUI puts a module of its own around those that read text."""
    conditioner: Any = getattr(sd_model, "conditioner", None)
    held: list[Any] = (
        [getattr(sd_model, "cond_stage_model", None)] if conditioner is None else [*conditioner.embedders.children()]
    )
    return [one.wrapped for one in held if hasattr(one, "wrapped")]


PATCHED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)
"""Classes whose `forward` the built-in Lora extension replaces."""


@contextlib.contextmanager
def without_prompt_networks(sd_model: Any) -> Iterator[None]:
    """The model without the LoRAs of the last prompt: the weights bit for bit, and each layer's own forward.

    The built-in Lora extension merges LoRAs into the loaded weights and keeps backups; its restore copies in place and
    fails while gradients are on. Its forwards look for LoRAs at every call and break while "Reload UI" takes the
    extension out and puts it in again, so they are passed by. The next prompt that asks for a LoRA gets it again.
    """
    known = take_out_prompt_networks(sd_model)
    originals = getattr(sys.modules.get("networks"), "originals", None)
    with contextlib.ExitStack() as stack:
        for module in known:
            own = _own_forward(module, originals)
            if own is not None:
                stack.enter_context(replaced_forward(module, functools.partial(own, module)))
        yield


def take_out_prompt_networks(sd_model: Any) -> list[nn.Module]:
    """The weights as they are without the LoRAs of the last prompt. Returns the modules that LoRAs may change."""
    networks = sys.modules.get("networks")
    if not hasattr(networks, "network_apply_weights") or not hasattr(networks, "load_networks"):
        return []
    known = [module for module in sd_model.modules() if getattr(module, "network_layer_name", None) is not None]
    with torch.no_grad():
        networks.load_networks([])  # type: ignore[union-attr]
        for module in known:
            networks.network_apply_weights(module)  # type: ignore[union-attr]
    return known


def bring_in_prompt_networks(module: nn.Module) -> None:
    """What the Lora extension's own forward of an attention does first: the LoRAs of the prompt into the weights."""
    networks = sys.modules.get("networks")
    if hasattr(networks, "network_apply_weights") and getattr(module, "network_layer_name", None) is not None:
        networks.network_apply_weights(module)  # type: ignore[union-attr]


BACKUPS = ("network_weights_backup", "network_bias_backup")


@contextlib.contextmanager
def own_backups(sd_model: Any) -> Iterator[None]:
    """The Lora extension backs up the weights that are there now, and what it backed up before comes back.

    It keeps a backup for good. While a whole checkpoint is fine-tuned, the modules hold other weights than the loaded
    ones: an old backup would put those away, and a new one would later bring them back.
    """
    kept = []
    for module in sd_model.modules():
        kept.append((module, {name: module.__dict__.pop(name) for name in BACKUPS if name in module.__dict__}))
    try:
        yield
    finally:
        for module, backups in kept:
            for name in BACKUPS:
                module.__dict__.pop(name, None)
            module.__dict__.update(backups)


def _own_forward(module: nn.Module, originals: Any) -> Any:
    """The forward of the module's class that the Lora extension has replaced; None if there is none or one hides it."""
    if "forward" in vars(module):
        return None
    if isinstance(module, nn.GroupNorm) and type(module).__name__ == "GroupNorm32":
        return functools.partial(_in_fp32, getattr(originals, "GroupNorm_forward", None) or nn.GroupNorm.forward)
    kind = next((kind for kind in PATCHED if type(module).forward is kind.forward), None)
    return None if kind is None else getattr(originals, f"{kind.__name__}_forward", None)


def _in_fp32(forward: Callable[..., Any], norm: nn.Module, x: torch.Tensor) -> Any:
    """What `GroupNorm32` of ldm and sgm (modules/diffusionmodules/util.py) does; its own reaches for the class's."""
    return forward(norm, x.float()).type(x.dtype)


@contextlib.contextmanager
def without_seams() -> Iterator[None]:
    """Zero padding in the convolutions, where the last picture was a seamless tile."""
    hijack = sd_hijack.model_hijack
    circular = hijack.circular_enabled
    hijack.apply_circular(False)
    try:
        yield
    finally:
        hijack.apply_circular(circular)


def predicts_of(sd_model: Any) -> Predicts:
    """What a loaded checkpoint predicts, and why. Raises `ModelError` where it cannot be trained.

    The WebUI tries an SD 2.x without a .yaml, and takes all others for epsilon models unless their .yaml says v.
    """
    family = family_of(sd_model)
    drawn: Prediction = "v" if getattr(sd_model, "parameterization", "eps") == "v" else "epsilon"
    tried = drawn if family.v2 or drawn == "v" else None
    found = predicted_by(Path(sd_model.sd_checkpoint_info.filename), family, tried=tried)
    return dataclasses.replace(found, drawn_as=drawn)


def schedule_of(sd_model: Any) -> NoiseSchedule:
    """`alphas_cumprod` itself is overwritten at each generation by the downcast and zero-terminal-SNR options."""
    alphas = getattr(sd_model, "alphas_cumprod_original", None)
    if alphas is None:
        alphas = sd_model.alphas_cumprod
    found = predicts_of(sd_model)
    return NoiseSchedule(_unrounded(alphas.detach().cpu(), sd_model), found.prediction, found.zero_terminal)


def _unrounded(alphas: torch.Tensor, sd_model: Any) -> torch.Tensor:
    """ᾱ in float64. Where weights were in 8 bits when a checkpoint was loaded, the WebUI has rounded ᾱ to fp16, whose
    first step has 15 % more noise: then it is computed from the checkpoint's own description."""
    if alphas.dtype is not torch.float16 or not hasattr(sd_model, "linear_start"):
        return alphas.double()
    first, last = float(sd_model.linear_start), float(sd_model.linear_end)
    roots = torch.linspace(first**0.5, last**0.5, len(alphas), dtype=torch.float64)
    exact = torch.cumprod(1 - roots**2, 0).float()
    return (exact if torch.equal(exact.half(), alphas) else alphas).double()


ZERO_TERMINAL = "Zero Terminal SNR"
"""What the WebUI's setting `sd_noise_schedule` calls it."""


@contextlib.contextmanager
def drawn_as(sd_model: Any, schedule: NoiseSchedule) -> Iterator[None]:
    """The WebUI's samplers take the model for one that predicts as `schedule` says; its own ᾱ come back."""
    before = getattr(sd_model, "alphas_cumprod", None)
    with attribute(sd_model, "parameterization", "v" if schedule.prediction == "v" else "eps"):
        try:
            yield
        finally:
            if before is not None:
                sd_model.alphas_cumprod = before
