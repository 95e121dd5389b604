"""Layers that somebody has changed: an encoder or decoder whose modules no longer do what their weights say.

Extensions change layers in place: a `forward` or `_conv_forward` of the instance, a hook, a subclass. Bands are
computed from weights alone and would pass such a change by. Parametrizations are honoured: a layer's `weight` is then
what they make of it; weight_norm of the older form works by a hook.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

METHODS = ("forward", "_conv_forward", "_call_impl")
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
PLAIN = (nn.Conv2d, nn.Linear, nn.GroupNorm)


def changed_layers(module: nn.Module) -> Iterator[str]:
    """A few words for each layer inside `module` that does something else than its class says.

    `module` itself is left out: whoever calls it runs its hooks, and may have replaced its forward.
    """
    for name, layer in module.named_modules():
        change = _change(layer) if layer is not module else ""
        if change:
            yield f"{name} has {change}"


def has_own_forward(module: nn.Module) -> bool:
    """Whether the instance hides its class's forward."""
    own = vars(module).get("forward")
    return own is not None and not _is_the_class_own(own, type(module), "forward")


def _change(layer: nn.Module) -> str:
    for method in METHODS:
        own = vars(layer).get(method)
        if own is not None and not _is_the_class_own(own, type(layer), method):
            return f"a {method} of its own"
    for hooks in HOOKS:
        if getattr(layer, hooks, None):
            return "a hook"
    plain = next((kind for kind in PLAIN if isinstance(layer, kind)), None)
    if plain is None:
        return ""
    if type(layer).forward is not plain.forward and not _is_plain_lora_layer(layer):
        return f"the forward of {type(layer).__name__}"
    if plain is nn.Conv2d and not _is_torch_own(type(layer)._conv_forward):  # type: ignore[attr-defined]
        return "a _conv_forward that somebody put into its class"
    return ""


def _is_the_class_own(own: Any, kind: type, method: str) -> bool:
    """Whether an instance attribute is only the class's method bound anew, as some extensions leave it when off."""
    return getattr(own, "__func__", None) is getattr(kind, method, own)


def _is_torch_own(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("torch.")


def _is_plain_lora_layer(layer: Any) -> bool:
    """Older diffusers build layers that could hold a LoRA of their own; most hold none."""
    return type(layer).__module__.startswith("diffusers.") and getattr(layer, "lora_layer", layer) is None
