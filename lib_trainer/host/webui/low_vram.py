"""The WebUI's --lowvram, --medvram and --medvram-sdxl, set aside while a run has the model.

`modules/lowvram.py` keeps the model on the CPU and moves one part at a time to the device, by hooks that run before a
part's forward. A backward pass needs all of it there, so for a run the hooks are off. The weights of the parts stay on
the CPU until a state of the run needs them (`host/weights.py`): not all of SDXL may fit a card that is driven so. A
preview is drawn with the hooks, as every picture.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from modules import devices, lowvram
from torch import nn

from lib_trainer.memory import release
from lib_trainer.refusals import ModelError
from lib_trainer.transfer import moves

METHODS = ("encode", "decode")
"""Of the VAE: these have no forward, so the WebUI puts functions of its own in their place."""


def check_comes(sd_model: Any) -> None:
    """Raise `ModelError` where the model is kept on the CPU and its parameters cannot come to the device.

    The WebUI's hooks make new parameters there, at every turn; a run's must stay the same objects.
    """
    device = torch.device(devices.device)
    if getattr(sd_model, "lowvram", False) and device.type != "cpu" and not moves(device):
        raise ModelError("model.stays_on_cpu", device=device.type)


class LowVram:
    """What the WebUI has put on one model. Does nothing for a model that is not kept on the CPU."""

    def __init__(self, sd_model: Any, roots: Iterable[nn.Module] = ()) -> None:
        """`roots`: parts whose weights come to the device by themselves."""
        self._model = sd_model
        self._coming = {id(own) for root in roots for own in root.parameters()}
        self._on = bool(getattr(sd_model, "lowvram", False))
        self._hooks: list[tuple[nn.Module, dict[int, Any]]] = []
        self._methods: dict[str, Any] = {}
        self._places: list[tuple[dict[str, Any], str, torch.Tensor, torch.device]] = []
        self._told: list[tuple[dict[str, Any], torch.device]] = []

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Without the hooks, and on the device all that comes there by nobody else; afterwards as it was."""
        if not self._on:
            yield
            return
        lowvram.send_everything_to_cpu()
        modules = list(self._model.modules())
        self._hooks = [(module, dict(module._forward_pre_hooks)) for module in modules if _own_hooks(module)]
        vae = vars(self._model.first_stage_model)
        self._methods = {name: vae[name] for name in METHODS if _is_theirs(vae.get(name))}
        self._places = [
            (holder, name, own, own.device)
            for module in modules
            for holder in (module._parameters, module._buffers)
            for name, own in holder.items()
            if own is not None
        ]
        self._told = [(one.__dict__, one.__dict__["_device"]) for one in modules if "_device" in one.__dict__]
        try:
            self._take()
            yield
        finally:
            self._give_back()

    @contextlib.contextmanager
    def as_the_host_draws(self) -> Iterator[None]:
        """Inside `set_aside`: the hooks again, for a picture, however that ends."""
        if not self._on:
            yield
            return
        self._give_back()
        try:
            yield
        except Exception as error:
            release(error, torch.device(devices.device))  # what it holds would be in the model's way back
            raise
        finally:
            lowvram.send_everything_to_cpu()
            self._take()

    def _take(self) -> None:
        for module, _ in self._hooks:
            for key in _own_hooks(module):
                del module._forward_pre_hooks[key]
        for name, function in self._methods.items():
            _unwrap(self._model.first_stage_model, name, function)
        for holder, name, own, _ in self._places:
            there = holder.get(name)
            if id(own) in self._coming or there is None:
                continue
            if isinstance(there, nn.Parameter):
                there.data = there.data.to(devices.device)
            else:
                holder[name] = there.to(devices.device)
        for noted, _ in self._told:
            noted["_device"] = torch.device(devices.device)

    def _give_back(self) -> None:
        """Hooks in the order in which they were, those that came meanwhile behind them.

        A parameter keeps its object when a module is moved, and a buffer gets another. What has taken a parameter's
        place for a preview waits where that one would. Lightning's modules also note where they were sent (`_device`).
        """
        for module, before in self._hooks:
            now = dict(module._forward_pre_hooks)
            module._forward_pre_hooks.clear()
            module._forward_pre_hooks.update({**before, **now})
        vars(self._model.first_stage_model).update(self._methods)
        for holder, name, own, place in self._places:
            there = holder.get(name)
            if there is None or there.device == place:
                continue
            if there is not own and own.device == place and not isinstance(own, nn.Parameter):
                holder[name] = own
            else:
                there.data = there.data.to(place)
        for kept, device in self._told:
            kept["_device"] = device
        lowvram.module_in_gpu = None


def _own_hooks(module: nn.Module) -> list[int]:
    return [key for key, hook in module._forward_pre_hooks.items() if _is_theirs(hook)]


def _is_theirs(function: Any) -> bool:
    return bool(getattr(function, "__module__", "") == lowvram.__name__)


def _unwrap(vae: Any, name: str, function: Any) -> None:
    """What the WebUI's function calls is in its closure: the class's own method, or what another has put there."""
    inner = inspect.getclosurevars(function).nonlocals.get(f"first_stage_model_{name}")
    if inner is None or getattr(inner, "__func__", None) is getattr(type(vae), name, None):
        del vars(vae)[name]
    else:
        vars(vae)[name] = inner
