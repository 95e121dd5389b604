"""LoRA: adapters on a frozen model's Linear and Conv2d layers.

Initialisation and scale are those of the paper as sd-scripts reads them: `down` kaiming-uniform with a = √5 (which is
uniform in ±1/√fan_in), `up` zero, scale alpha / rank.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from lib_trainer.networks.functional import lora_conv2d, lora_linear
from lib_trainer.ports import AdaptableModule, Part


class LoraAdapter(nn.Module):
    """The low-rank addition to one layer. `down` and `up` are fp32 and live on the layer's device."""

    def __init__(self, target: AdaptableModule, rank: int, alpha: float) -> None:
        super().__init__()
        layer = target.module
        device = _weight(layer).device
        if isinstance(layer, nn.Conv2d):
            down: tuple[int, ...] = (rank, layer.in_channels // layer.groups, *layer.kernel_size)
            up: tuple[int, ...] = (layer.out_channels, rank, 1, 1)
        elif isinstance(layer, nn.Linear):
            down, up = (rank, layer.in_features), (layer.out_features, rank)
        else:
            raise TypeError(f"{target.key}: LoRA wraps Linear and Conv2d, not {type(layer).__name__}")
        self.down = nn.Parameter(torch.empty(down, device=device))
        self.up = nn.Parameter(torch.zeros(up, device=device))
        self.key, self.part, self.rank, self.alpha = target.key, target.part, rank, alpha
        self.scale = alpha / rank
        self._target = (layer,)  # in a tuple: the frozen layer is no submodule of the adapter

    @property
    def layer(self) -> nn.Module:
        return self._target[0]

    def reset(self, generator: torch.Generator) -> None:
        """Draw `down` from a CPU generator, so that every device starts from the same numbers."""
        bound = 1 / math.sqrt(self.down[0].numel())
        drawn = torch.empty(self.down.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            self.down.copy_(drawn)
            self.up.zero_()

    def wrap(
        self, base: Callable[[torch.Tensor], torch.Tensor], multiplier: float = 1.0
    ) -> Callable[..., torch.Tensor]:
        """A forward that adds this adapter times `multiplier` to `base`, the layer's forward as the host has it."""
        layer, scale = self.layer, self.scale * multiplier
        if isinstance(layer, nn.Conv2d):
            conv = layer
            return lambda input: lora_conv2d(base, conv, input, self.down, self.up, scale)
        return lambda input: lora_linear(base, input, self.down, self.up, scale)


class LoraNetwork(nn.Module):
    """Adapters on many layers, by key."""

    def __init__(self, adapters: Sequence[LoraAdapter]) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({adapter.key: adapter for adapter in adapters})

    @classmethod
    def create(
        cls, targets: Sequence[AdaptableModule], rank: int, alpha: float, generator: torch.Generator
    ) -> LoraNetwork:
        """Fresh adapters that change nothing yet. The same generator state gives the same network on every host."""
        network = cls([LoraAdapter(target, rank, alpha) for target in sorted(targets, key=lambda t: t.key)])
        for adapter in network:
            adapter.reset(generator)
        return network

    @classmethod
    def from_tensors(cls, targets: Sequence[AdaptableModule], tensors: Mapping[str, torch.Tensor]) -> LoraNetwork:
        """A network from the tensors of a LoRA file; ranks are read from the shapes.

        Keys that no target answers to are left out: `unmatched_keys` names them. Raises `ValueError` if a shape does
        not fit its layer or a module is not a plain pair.
        """
        by_key = {target.key: target for target in targets}
        adapters = []
        for key in sorted(module_keys(tensors) & by_key.keys()):
            down, up = tensors[f"{key}.lora_down.weight"], tensors.get(f"{key}.lora_up.weight")
            if up is None or f"{key}.lora_mid.weight" in tensors:
                raise ValueError(f"{key}: only pairs of lora_down and lora_up are read")
            alpha = tensors.get(f"{key}.alpha")
            adapter = LoraAdapter(by_key[key], down.shape[0], down.shape[0] if alpha is None else float(alpha))
            if adapter.down.numel() != down.numel() or adapter.up.numel() != up.numel():
                raise ValueError(f"{key}: {tuple(down.shape)} does not fit the layer's {tuple(adapter.down.shape)}")
            with torch.no_grad():
                adapter.down.copy_(down.reshape(adapter.down.shape))
                adapter.up.copy_(up.reshape(adapter.up.shape))
            adapters.append(adapter)
        return cls(adapters)

    def __iter__(self) -> Iterator[LoraAdapter]:
        yield from self.adapters.values()  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.adapters)

    def tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The network as a LoRA file holds it: `lora_down.weight`, `lora_up.weight` and `alpha` for each module."""
        out = {}
        for adapter in self:
            out[f"{adapter.key}.alpha"] = torch.tensor(adapter.alpha, dtype=dtype)
            for name, weight in (("lora_down", adapter.down), ("lora_up", adapter.up)):
                out[f"{adapter.key}.{name}.weight"] = weight.detach().to("cpu", dtype, copy=True).contiguous()
        return out

    def parameters_of(self, part: Part) -> list[nn.Parameter]:
        return [parameter for adapter in self if adapter.part == part for parameter in adapter.parameters()]

    def parts(self) -> dict[Part, int]:
        """How many modules of each part are adapted."""
        counts: dict[Part, int] = {}
        for adapter in self:
            counts[adapter.part] = counts.get(adapter.part, 0) + 1
        return counts

    @contextlib.contextmanager
    def applied(self, multiplier: float = 1.0) -> Iterator[None]:
        """Let the model run with these adapters; on leaving, each layer's forward is exactly what it was.

        The host's own forward of a layer is called for the frozen part, whatever class or patch it comes from. Networks
        may be nested.
        """
        with contextlib.ExitStack() as stack:
            for adapter in self:
                forward = adapter.wrap(adapter.layer.forward, multiplier)
                stack.enter_context(replaced_forward(adapter.layer, forward))
            yield


@contextlib.contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """Give one module instance another forward for a while."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


def module_keys(tensors: Mapping[str, torch.Tensor]) -> set[str]:
    """The modules of a LoRA file."""
    suffix = ".lora_down.weight"
    return {name[: -len(suffix)] for name in tensors if name.endswith(suffix)}


def unmatched_keys(targets: Sequence[AdaptableModule], tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Modules of a LoRA file that the model does not have."""
    return sorted(module_keys(tensors) - {target.key for target in targets})


def _weight(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight
