"""Things that a user's earlier doings leave on the host, put there and taken away again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from modules import devices, lowvram, sd_hijack, sd_models, sd_unet, shared
from torch import nn

CHECKS = ("leave", "tidy", "make_hypernetwork", "make_embedding", "remove_embedding")
_left: list[contextlib.ExitStack] = []


def leave(kind: str) -> None:
    """Put one of `KINDS` there until `tidy`."""
    stack = contextlib.ExitStack()
    stack.enter_context(contextlib.contextmanager(KINDS[kind])())
    _left.append(stack)


def tidy() -> int:
    """Take everything away again; how much there was."""
    count = len(_left)
    while _left:
        _left.pop().close()
    return count


def make_hypernetwork(name: str) -> None:
    """A file with random weights for the widths of the miniature's attention."""
    from modules.hypernetworks.hypernetwork import Hypernetwork

    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Hypernetwork(name, enable_sizes=[32, 64], layer_structure=[1, 2, 1], weight_init="XavierNormal")
        folder = Path(shared.cmd_opts.hypernetwork_dir)
        folder.mkdir(parents=True, exist_ok=True)
        network.save(str(folder / f"{name}.pt"))
    shared.reload_hypernetworks()


def make_embedding(name: str) -> list[str]:
    """Install an embedding of one vector; the names that are known then."""
    vector = torch.randn(1, 32, generator=torch.Generator().manual_seed(5))
    data = {"string_to_token": {"*": 265}, "string_to_param": {"*": vector}, "name": name, "step": 1}
    path = _embedding(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(data, path)
    return _reload()


def remove_embedding(name: str) -> list[str]:
    _embedding(name).unlink(missing_ok=True)
    return _reload()


def _embedding(name: str) -> Path:
    return Path(shared.cmd_opts.embeddings_dir, f"{name}.pt")


def _reload() -> list[str]:
    database = sd_hijack.model_hijack.embedding_db
    database.load_textual_inversion_embeddings(force_reload=True)
    return sorted(database.word_embeddings)


class StrayUnet(sd_unet.SdUnet):
    """An accelerated UNet that another extension has put in the model's place."""

    option = sd_unet.SdUnetOption()

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros_like(x)


def _unet() -> Iterator[None]:
    before = sd_unet.current_unet
    sd_unet.current_unet = StrayUnet()
    try:
        yield
    finally:
        sd_unet.current_unet = before


def _checkpointing_flags() -> Iterator[None]:
    """As a checkpoint's own yaml may set them."""
    flags = [
        (module, name, getattr(module, name))
        for module in sd_models.model_data.sd_model.model.diffusion_model.modules()
        for name in ("use_checkpoint", "checkpoint")
        if isinstance(getattr(module, name, None), bool)
    ]
    for module, name, _ in flags:
        setattr(module, name, True)
    try:
        yield
    finally:
        for module, name, value in flags:
            setattr(module, name, value)


def _fp8() -> Iterator[None]:
    """As `load_model_weights` stores the weights when Settings, FP8 weight, is on: all but the VAE's."""
    model = sd_models.model_data.sd_model
    parts = (model.model, model.cond_stage_model)
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    originals = [(parameter, parameter.data) for layer in layers for parameter in layer.parameters(recurse=False)]
    option = shared.opts.data.get("fp8_storage", "Disable")
    for parameter, data in originals:
        parameter.data = data.to(torch.float8_e4m3fn)
    devices.fp8, shared.opts.data["fp8_storage"] = True, "Enable"
    try:
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data
        devices.fp8, shared.opts.data["fp8_storage"] = False, option


def _rounded_schedule() -> Iterator[None]:
    """As `load_model_weights` leaves it where weights were in 8 bits before: `model.half()` takes buffers along."""
    model = sd_models.model_data.sd_model
    before = model.alphas_cumprod_original
    model.alphas_cumprod_original = before.half()
    try:
        yield
    finally:
        model.alphas_cumprod_original = before


def _menu() -> Iterator[None]:
    """Undoes what the command "fp8" of a run has chosen."""
    option = shared.opts.data.get("fp8_storage", "Disable")
    try:
        yield
    finally:
        shared.opts.data["fp8_storage"] = option


def _reloading() -> Iterator[None]:
    """The moment of "Reload UI" in which the Lora extension's forwards are still called and know no originals."""
    import networks

    with contextlib.ExitStack() as stack:
        for kind in ("Linear", "Conv2d", "GroupNorm", "LayerNorm"):
            stack.enter_context(mock.patch.object(networks.originals, f"{kind}_forward", None))
        yield


def _low_vram(flag: str) -> Callable[[], Iterator[None]]:
    """As `load_model` does it when the WebUI was started with the flag. On a CPU its hooks move nothing."""

    def left() -> Iterator[None]:
        model = sd_models.model_data.sd_model
        known = set(vars(model))
        hijacked = model.cond_stage_model  # as it is loaded: the WebUI applies the flag first and hijacks then
        with mock.patch.object(shared.cmd_opts, flag, True):
            model.cond_stage_model = hijacked.wrapped
            try:
                lowvram.apply(model)
            finally:
                model.cond_stage_model = hijacked
        try:
            yield
        finally:
            lowvram.send_everything_to_cpu()
            for module in model.modules():
                for key in low_vram_hooks(module):
                    del module._forward_pre_hooks[key]
            for name in ("encode", "decode"):
                del vars(model.first_stage_model)[name]
            for name in set(vars(model)) - known:
                delattr(model, name)
            model.lowvram, shared.parallel_processing_allowed = False, True

    return left


def low_vram_hooks(module: nn.Module) -> list[int]:
    return [key for key, hook in module._forward_pre_hooks.items() if hook.__module__ == "modules.lowvram"]


KINDS: dict[str, Callable[[], Iterator[None]]] = {
    "unet": _unet,
    "checkpointing flags": _checkpointing_flags,
    "fp8": _fp8,
    "fp8 menu": _menu,
    "rounded schedule": _rounded_schedule,
    "half-way reload": _reloading,
    "medvram": _low_vram("medvram"),
    "lowvram": _low_vram("lowvram"),
}
