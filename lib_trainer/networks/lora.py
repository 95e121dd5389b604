"""Networks: adapters on many layers of a frozen model, from a job or from a file.

Initialisation and scale are those of the papers as sd-scripts and LyCORIS read them; for LoRA `down` is kaiming-uniform
with a = √5 (which is uniform in ±1/√fan_in), `up` zero, the scale alpha / rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lib_trainer.families.family import Part
from lib_trainer.networks.adapters import Adapter, AdapterSpec, LoraAdapter
from lib_trainer.networks.flat import Flat
from lib_trainer.networks.fused import SlicedLinear
from lib_trainer.networks.lycoris import LohaAdapter, LokrAdapter
from lib_trainer.patching import attribute, replaced_forward
from lib_trainer.ports import AdaptableModule

__all__ = ["LoraAdapter", "LoraNetwork", "make_adapter", "module_keys", "unmatched_keys"]

Forward = Callable[..., Any]
FIRST_TENSORS = ("lora_down.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a")
"""By which a module of a file is known, kind by kind."""


class LoraNetwork(nn.Module):
    """Adapters on many layers, by key."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({adapter.key: adapter for adapter in adapters})
        self._flats: list[Flat] = []
        self._on = True

    @classmethod
    def create(
        cls, targets: Sequence[AdaptableModule], rank: int, alpha: float, generator: torch.Generator
    ) -> LoraNetwork:
        """Fresh LoRA adapters that change nothing yet. The same generator gives the same network on every host."""
        spec = AdapterSpec("lora", rank, alpha)
        return cls.build([(target, spec) for target in targets], generator)

    @classmethod
    def build(cls, planned: Sequence[tuple[AdaptableModule, AdapterSpec]], generator: torch.Generator) -> LoraNetwork:
        """Fresh adapters of any kind, each after its own specification."""
        pairs = sorted(planned, key=lambda pair: pair[0].key)
        network = cls([make_adapter(target, spec) for target, spec in pairs])
        for adapter in network:
            adapter.reset(generator)
        return network

    @classmethod
    def from_tensors(cls, targets: Sequence[AdaptableModule], tensors: Mapping[str, torch.Tensor]) -> LoraNetwork:
        """A network from the tensors of a file; kinds and ranks are read from names and shapes.

        Keys that no target answers to are left out: `unmatched_keys` names them. Raises `ValueError` if a shape does
        not fit its layer or a module is of no kind that is known here.
        """
        by_key = {target.key: target for target in targets}
        own: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            key, _, suffix = name.partition(".")
            own.setdefault(key, {})[suffix] = tensor
        wanted = sorted(module_keys(tensors) & by_key.keys())
        return cls([_read_adapter(by_key[key], own[key]) for key in wanted])

    def __iter__(self) -> Iterator[Adapter]:
        yield from self.adapters.values()  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.adapters)

    def tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The network as a file holds it: for LoRA `lora_down.weight`, `lora_up.weight` and `alpha` of each module.

        An alpha that `dtype` does not hold exactly stays fp32, and so do DoRA's magnitudes: these multiply the whole
        weight, where rounding the factors moves what was learned alone.
        """
        out = {}
        for adapter in self:
            alpha = torch.tensor(adapter.alpha)  # a rounded one would scale all that was learned
            out[f"{adapter.key}.alpha"] = alpha.to(dtype) if torch.equal(alpha.to(dtype).float(), alpha) else alpha
            for suffix, weight in adapter.file_tensors().items():
                stored = torch.float32 if suffix == "dora_scale" else dtype
                out[f"{adapter.key}.{suffix}"] = weight.detach().to("cpu", stored, copy=True).contiguous()
        return out

    def flatten(self, adapters: Sequence[Adapter], *, whole: bool) -> list[nn.Parameter]:
        """Put parameters of `adapters` into one buffer; returns what an optimizer is to be given for all of them.

        That is the buffer itself where `whole`, for optimizers whose update looks at single numbers, else the tensors.
        Their values, places in files and gradients are what they were. Adapters with dropouts, which may leave
        parameters out of a step, and DoRA, whose magnitudes need fp32, keep their own. Called before `applied`.
        """
        lying = [adapter for adapter in adapters if adapter.can_be_flat]
        others = [adapter for adapter in adapters if not adapter.can_be_flat]
        leaves = [parameter for adapter in others for parameter in adapter.parameters()]
        if not lying:
            return leaves
        flat = Flat([getattr(adapter, name) for adapter in lying for name in adapter.names], whole=whole)
        place = 0
        for adapter in lying:
            adapter.lie_in(flat, place)
            place += len(adapter.names)
        self._flats.append(flat)
        return [*flat.leaves, *leaves]

    @property
    def flat_leaves(self) -> list[nn.Parameter]:
        """What gradients of flattened adapters arrive at."""
        return [leaf for flat in self._flats for leaf in flat.leaves]

    def learn(self, on: bool) -> None:
        """Whether gradients arrive at what `flatten` has returned, or at the parameters where it was not called."""
        for flat in self._flats:
            flat.learn(on)
        for adapter in self:
            if not adapter.is_flat:
                adapter.requires_grad_(on)

    def bound(self, norm: float) -> None:
        """Scale what each module adds to its layer down to this Frobenius norm, where it is larger; 0 leaves all.

        Called after every step: packages that change a parameter's bytes do not tell the copies that are kept of it,
        and a recorded pass leaves them where they are.
        """
        for flat in self._flats:
            flat.forget()
        if norm:
            with torch.no_grad():
                for adapter in self:
                    adapter.bound(norm)

    def parts(self) -> dict[Part, int]:
        """How many modules of each part are adapted."""
        counts: dict[Part, int] = {}
        for adapter in self:
            counts[adapter.part] = counts.get(adapter.part, 0) + 1
        return counts

    @contextlib.contextmanager
    def applied(self, multiplier: float = 1.0) -> Iterator[None]:
        """Let the model run with these adapters; on leaving, each layer's forward is exactly what it was.

        The host's own forward of a layer is called for the frozen part, whatever class or patch it comes from; a fused
        attention computes through its parts where one is adapted. Networks may be nested.
        """
        with contextlib.ExitStack() as stack:
            sliced = [adapter.layer for adapter in self if isinstance(adapter.layer, SlicedLinear)]
            for fused in dict.fromkeys(layer.fused for layer in sliced):
                stack.enter_context(fused.called())
            for adapter in self:
                own = adapter.layer.forward
                wrapped = partial(self._called, own, adapter.wrap(own, multiplier))
                stack.enter_context(replaced_forward(adapter.layer, wrapped))
            for flat in self._flats:
                stack.callback(flat.forget)
            yield

    def _called(self, own: Forward, wrapped: Forward, *args: Any, **kwargs: Any) -> Any:
        return (wrapped if self._on else own)(*args, **kwargs)

    def off(self) -> contextlib.AbstractContextManager[None]:
        """While `applied`: the model as it is without these adapters. No gradients may be on."""
        return attribute(self, "_on", False)


def make_adapter(target: AdaptableModule, spec: AdapterSpec) -> Adapter:
    """An adapter as it is before `reset`."""
    alpha = spec.stored_alpha
    if spec.kind == "lokr":
        adapter: Adapter = LokrAdapter(target, spec.rank, alpha, spec.factor, spec.both)
    else:
        adapter = (LohaAdapter if spec.kind == "loha" else LoraAdapter)(target, spec.rank, alpha)
    adapter.dropouts = spec.dropouts
    if spec.dora:
        adapter.decompose()
    return adapter


def _read_adapter(target: AdaptableModule, own: dict[str, torch.Tensor]) -> Adapter:
    stored = own.get("alpha")
    alpha = None if stored is None else float(stored)
    kinds: dict[str, type[Adapter]] = {"lora_down.weight": LoraAdapter, "hada_w1_b": LohaAdapter}
    first = next((name for name in kinds if name in own), None)
    if first is not None:
        rank = own[first].shape[0]
        adapter = kinds[first](target, rank, float(rank) if alpha is None else alpha)
    else:
        adapter = LokrAdapter.of_tensors(target, own, alpha)
    if "dora_scale" in own:
        adapter.decompose()
    parameters = adapter.file_tensors()
    strange = (own.keys() - parameters.keys() - {"alpha"}) | (parameters.keys() - own.keys())
    if strange:
        known = "pairs of lora_down and lora_up, LoHa and LoKr without Tucker's form"
        raise ValueError(f"{target.key}: {min(strange)} is not as expected: only {known} are read")
    for suffix, parameter in parameters.items():
        by_output = suffix == "dora_scale" and own[suffix].ndim > 1 and len(own[suffix]) > 1
        if by_output or parameter.numel() != own[suffix].numel():
            raise ValueError(
                f"{target.key}: {tuple(own[suffix].shape)} does not fit the layer's {tuple(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(own[suffix].reshape(parameter.shape))
    return adapter


def module_keys(tensors: Mapping[str, torch.Tensor]) -> set[str]:
    """The modules of a network's file."""
    found = (name.partition(".") for name in tensors)
    return {key for key, _, suffix in found if suffix in FIRST_TENSORS}


def unmatched_keys(targets: Sequence[AdaptableModule], tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Modules of a LoRA file that the model does not have."""
    return sorted(module_keys(tensors) - {target.key for target in targets})
