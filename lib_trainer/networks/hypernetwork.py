"""Hypernetworks: small residual networks in front of every attention's keys and values (the WebUI's kind).

x → x + strength·f(x) on what `to_k` and `to_v` read, with one pair of f for each width of input. As these are the
inputs of two linear layers on every host, nothing of an attention has to be replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lib_trainer.patching import attribute, replaced_forward
from lib_trainer.ports import AdaptableModule
from lib_trainer.refusals import Reason

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,  # the WebUI's swish
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "mish": nn.Mish,
    "softsign": nn.Softsign,
    **{
        kind.__name__.lower(): kind
        for kind in (
            nn.CELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LogSigmoid, nn.ReLU6,
            nn.SELU, nn.SiLU, nn.Softplus, nn.Softshrink, nn.Tanhshrink,
        )
    },
}  # fmt: skip
"""The WebUI calls torch's own activations by their lower-case names; the form offers the first nine."""


@dataclass(frozen=True)
class Structure:
    """`layers`: widths as multiples of the input's; `dropouts`: as many probabilities, 0 at both ends."""

    layers: tuple[float, ...] = (1, 2, 1)
    activation: str = "linear"
    initialisation: str = "Normal"
    layer_norm: bool = False
    activate_output: bool = False
    dropouts: tuple[float, ...] = ()

    def module(self, width: int) -> nn.Sequential:
        """Layers in the WebUI's order, which its files count: Linear, activation, norm, dropout."""
        sizes = [int(width * factor) for factor in self.layers]
        last = len(sizes) - 2
        parts: list[nn.Module] = []
        for index in range(last + 1):
            parts.append(nn.Linear(sizes[index], sizes[index + 1]))
            if self.activation != "linear" and (index < last or self.activate_output):
                parts.append(ACTIVATIONS[self.activation]())
            if self.layer_norm:
                parts.append(nn.LayerNorm(sizes[index + 1]))
            if self.dropouts and self.dropouts[index + 1] > 0:
                parts.append(nn.Dropout(self.dropouts[index + 1]))
        return nn.Sequential(*parts)


class Hypernetwork(nn.Module):
    """A pair of networks for each width. Parameters are fp32."""

    def __init__(self, structure: Structure, sizes: Sequence[int]) -> None:
        super().__init__()
        self.structure, self.sizes = structure, tuple(sorted(sizes))
        self.on = True
        self.keys = nn.ModuleDict({str(size): structure.module(size) for size in self.sizes})
        self.values = nn.ModuleDict({str(size): structure.module(size) for size in self.sizes})

    def reset(self, generator: torch.Generator) -> None:
        """Draw all layers from a CPU generator; norms start as nearly nothing, as the WebUI's do."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                with torch.no_grad():
                    kind = "Normal" if isinstance(module, nn.LayerNorm) else self.structure.initialisation
                    weight = torch.empty(module.weight.shape)
                    module.weight.copy_(_drawn(weight, kind, self.structure.activation, generator))
                    module.bias.zero_()

    def load(self, stored: Mapping[int, tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]]) -> None:
        """Take the weights of a file's pairs. Raises `ValueError` where they do not fit."""
        for size in self.sizes:
            for mine, theirs in zip((self.keys[str(size)], self.values[str(size)]), stored[size], strict=True):
                plain = {name.removeprefix("linear."): tensor for name, tensor in theirs.items()}
                try:
                    mine.load_state_dict(plain)
                except RuntimeError as error:
                    raise Reason("hypernetwork.layers", size=size) from error

    def stored(self) -> dict[int, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
        """Pairs as a file holds them: the tensors themselves, wherever they are."""

        def named(module: nn.Module) -> dict[str, torch.Tensor]:
            return {f"linear.{name}": t.detach() for name, t in module.state_dict().items()}

        return {size: (named(self.keys[str(size)]), named(self.values[str(size)])) for size in self.sizes}

    @contextlib.contextmanager
    def applied(self, targets: Sequence[AdaptableModule], multiplier: float = 1.0) -> Iterator[None]:
        """Let every attention of the UNet read through these networks; dropouts act while gradients are on."""
        with contextlib.ExitStack() as stack:
            for target, network in self._pairs(targets):
                wrapped = self._wrap(target.module.forward, network, multiplier)
                stack.enter_context(replaced_forward(target.module, wrapped))
            yield

    def off(self) -> contextlib.AbstractContextManager[None]:
        """While `applied`: the attentions as they are without these networks. No gradients may be on."""
        return attribute(self, "on", False)

    def _wrap(
        self, base: Callable[..., torch.Tensor], network: nn.Module, multiplier: float
    ) -> Callable[..., torch.Tensor]:
        dtype = next(network.parameters()).dtype

        def forward(input: torch.Tensor) -> torch.Tensor:
            if not self.on:
                return base(input)
            if network.training != torch.is_grad_enabled():
                network.train(torch.is_grad_enabled())
            added = network(input.to(dtype))
            return base(input + (added * multiplier).to(input.dtype))

        return forward

    def _pairs(self, targets: Sequence[AdaptableModule]) -> Iterator[tuple[AdaptableModule, nn.Module]]:
        for target in targets:
            networks = {"to_k": self.keys, "to_v": self.values}.get(target.key[-4:])
            if networks is not None and target.part == "unet":
                width = str(_inputs(target.module))
                if width in networks:
                    yield target, networks[width]


def attention_sizes(targets: Sequence[AdaptableModule]) -> list[int]:
    """Widths of what the UNet's attentions read: of the picture at each level, and of the text."""
    return sorted(
        {_inputs(target.module) for target in targets if target.part == "unet" and target.key.endswith("to_k")}
    )


def _inputs(layer: Any) -> int:
    return int(layer.in_features)


def _drawn(weight: torch.Tensor, kind: str, activation: str, generator: torch.Generator) -> torch.Tensor:
    """nn.init's formulas with a generator of their own (torch 2.1's take none)."""
    if kind == "Normal":
        return weight.normal_(0, 0.01, generator=generator)
    fan_out, fan_in = weight.shape
    if kind.startswith("Xavier"):
        deviation = (2 / (fan_in + fan_out)) ** 0.5
    else:
        gain = nn.init.calculate_gain("leaky_relu" if activation == "leakyrelu" else "relu", 0)
        deviation = gain / fan_in**0.5
    if kind.endswith("Uniform"):
        return weight.uniform_(-(3**0.5) * deviation, 3**0.5 * deviation, generator=generator)
    return weight.normal_(0, deviation, generator=generator)
