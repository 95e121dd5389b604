"""One LoRA file out of one or several: each layer's modules added with their strengths, whole or at a smaller rank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lib_trainer.refusals import Field, Joined, ModelError
from lib_trainer.toolbox.adapters import EXACT, Kind, Own, bias_difference, difference, kind_of, needs_base, product
from lib_trainer.toolbox.decompose import Parts, Wanted, energy, join, lost, lost_between, split
from lib_trainer.toolbox.factors import factors, scaled
from lib_trainer.toolbox.figures import Figures, LayerFigure
from lib_trainer.toolbox.layers import Layer
from lib_trainer.toolbox.opened import OpenLora
from lib_trainer.toolbox.source import Source


@dataclass(frozen=True)
class Term:
    """A module of a file, and how strongly it is taken."""

    lora: OpenLora
    strength: float


@dataclass(frozen=True)
class Mixer:
    """terms   for each layer of the result
    wanted  the rank that is asked for; None: all that there is, exactly
    dtype   of the result
    base    the checkpoint that changes which depend on a model are computed for
    """

    terms: Mapping[Layer, Sequence[Term]]
    wanted: Wanted | None
    dtype: torch.dtype
    base: Source | None
    figures: Figures

    def made(self, layer: Layer) -> dict[str, torch.Tensor]:
        """The layer's tensors by suffix, in the result's type."""
        terms = self.terms[layer]
        owned = [(term.lora.own(layer), term.strength) for term in terms]
        _check_alike(layer, terms, [own for own, _ in owned])
        try:
            found = self._alone(layer, *owned[0]) if len(owned) == 1 else None
            return found if found is not None else self._joined(layer, owned)
        except ValueError as error:
            paths = list(dict.fromkeys(term.lora.path for term in terms))
            raise ModelError("adapter_file.misfit", paths=paths, name=layer.name("kohya"), reason=error) from error

    def _alone(self, layer: Layer, own: Own, strength: float) -> dict[str, torch.Tensor] | None:
        """Of one module: in its own kind where nothing is to be smaller; DoRA keeps its magnitudes."""
        if self.wanted is None or _is_of_a_norm(own):
            kept = scaled(own, strength)
            return None if kept is None else {name: self._stored(name, one) for name, one in kept.items()}
        if "dora_scale" in own and strength == 1 and self.base is None:
            inner = {name: one for name, one in own.items() if name != "dora_scale"}
            return {**self._joined(layer, [(inner, 1.0)]), "dora_scale": own["dora_scale"]}
        return None

    def _stored(self, suffix: str, tensor: torch.Tensor) -> torch.Tensor:
        """Scales and magnitudes are stored as exactly as they were."""
        plain = suffix in EXACT or not tensor.is_floating_point()
        return tensor if plain else tensor.to(self.dtype)

    def _joined(self, layer: Layer, owned: Sequence[tuple[Own, float]]) -> dict[str, torch.Tensor]:
        if any(_is_of_a_norm(own) for own, _ in owned):
            return self._norms(owned)
        biases = [(moved, strength) for own, strength in owned if (moved := bias_difference(own)) is not None]
        pairs = [factors(own) for own, _ in owned]
        if not biases or self.wanted is not None:
            self.figures.biases += bool(biases)
            known = [pair for pair in pairs if pair is not None]
            if len(known) == len(pairs):
                up = torch.cat([pair[0] * strength for pair, (_, strength) in zip(known, owned, strict=True)], 1)
                down = torch.cat([pair[1] for pair in known])
                if found := self._of_factors(layer, up, down):
                    return found
        delta = self._whole(layer, owned)
        if self.wanted is not None:
            return self._of_whole(layer, delta)
        whole = {"diff": delta.to(self.dtype)}
        if biases:
            whole["diff_b"] = (
                torch.stack([moved.float() * strength for moved, strength in biases]).sum(0).to(self.dtype)
            )
        self.figures.layers[layer.name("kohya")] = LayerFigure(0, energy(delta), 0.0, 0)
        return whole

    def _norms(self, owned: Sequence[tuple[Own, float]]) -> dict[str, torch.Tensor]:
        """Differences of one dimension add up as they are. The WebUI reads no weight without a bias."""
        found: dict[str, torch.Tensor] = {}
        for own, strength in owned:
            moved = {"w_norm": own.get("w_norm", own.get("diff")), "b_norm": bias_difference(own)}
            for name, one in moved.items():
                if one is not None:
                    found[name] = found.get(name, torch.zeros(one.shape)) + one.float() * strength
        found.setdefault("b_norm", torch.zeros_like(found["w_norm"]))
        return {name: one.to(self.dtype) for name, one in found.items()}

    def _of_factors(self, layer: Layer, up: torch.Tensor, down: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """As they are, or smaller; None where the weight itself takes less room."""
        rows, width = up.shape[0], down.shape[1]
        if self.wanted is None:
            if up.shape[1] * (rows + width) > rows * width:
                return None
            stored = self._pair(layer, up, down)
            rank, whole = up.shape[1], float(((up.t() @ up).double() * (down @ down.t()).double()).sum())
            self._note(layer, Parts(up, down, max(whole, 0.0), rank), stored, (up, down))
            return stored
        parts = join(up, down, self.wanted)
        stored = self._pair(layer, parts.up, parts.down)
        self._note(layer, parts, stored, (up, down))
        return stored

    def _of_whole(self, layer: Layer, delta: torch.Tensor) -> dict[str, torch.Tensor]:
        assert self.wanted is not None
        parts = split(delta.flatten(1), self.wanted)
        stored = self._pair(layer, parts.up, parts.down)
        missing = lost(delta.flatten(1), stored["lora_up.weight"].flatten(1), stored["lora_down.weight"].flatten(1))
        self.figures.layers[layer.name("kohya")] = LayerFigure(parts.rank, parts.total, missing, parts.advised)
        return stored

    def _note(self, layer: Layer, parts: Parts, stored: Own, whole: tuple[torch.Tensor, torch.Tensor]) -> None:
        kept = stored["lora_up.weight"].flatten(1), stored["lora_down.weight"].flatten(1)
        missing = lost_between(whole, kept)
        self.figures.layers[layer.name("kohya")] = LayerFigure(parts.rank, parts.total, missing, parts.advised)

    def _pair(self, layer: Layer, up: torch.Tensor, down: torch.Tensor) -> dict[str, torch.Tensor]:
        return lora_tensors(layer, up, down, self.dtype)

    def _whole(self, layer: Layer, owned: Sequence[tuple[Own, float]]) -> torch.Tensor:
        """The sum as a weight's difference; each module changes what those before it have left, as in a prompt."""
        if not any(needs_base(own) for own, _ in owned):
            total: torch.Tensor | None = None
            for own, strength in owned:
                one = flat_difference(own) * strength
                total = one if total is None else total + one
            assert total is not None
            return total.reshape(layer.shape(total.shape[0], total.numel()))
        weight = base_weight(self.base, layer, self.terms[layer][0].lora)
        total = torch.zeros_like(weight)
        for own, strength in owned:
            total = total + difference(own, weight + total, tuple(weight.shape)) * strength
        return total


def _check_alike(layer: Layer, terms: Sequence[Term], owned: Sequence[Own]) -> None:
    """Raise `ModelError` naming the file whose module is for a weight of another size than most of the others'."""
    known = [(size, term.lora.path) for own, term in zip(owned, terms, strict=True) if (size := _size(own)) is not None]
    counted = Counter(size for size, _ in known)
    if len(counted) < 2:
        return
    usual = counted.most_common(1)[0][0]
    of_most = next(path for size, path in known if size == usual)
    size, path = next((size, path) for size, path in known if size != usual)
    raise ModelError(
        "adapter_file.other_size", path=path, other=of_most, name=layer.name("kohya"), size=Joined(size, "×"),
        other_size=Joined(usual, "×"),
    )  # fmt: skip


def _size(own: Own) -> tuple[int, ...] | None:
    """(out, n) of the weight that a module is for, (n,) of a norm's; None where the tensors do not say."""
    kind = kind_of(own)
    if kind is None or kind is Kind.OFT:
        return None
    if _is_of_a_norm(own):
        return (int(own["w_norm" if kind is Kind.NORM else "diff"].numel()),)
    try:
        rows = _rows(own, kind)
        numbers = product({name: one.to("meta") for name, one in own.items()}, kind).numel()
    except (RuntimeError, IndexError):
        return None  # it fits not even itself
    return rows, numbers // rows if rows else 0


def _is_of_a_norm(own: Own) -> bool:
    """Whether its weight has one dimension, under LyCORIS' name for that or as any difference."""
    kind = kind_of(own)
    return kind is Kind.NORM or (kind is Kind.DIFF and own["diff"].ndim == 1)


def lora_tensors(layer: Layer, up: torch.Tensor, down: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A module of a file from up (out, r) and down (r, n); alpha is the rank."""
    rank = down.shape[0]
    shape = layer.shape(rank, down.numel())
    return {
        "lora_up.weight": up.to(dtype).reshape(-1, rank, *[1] * (len(shape) - 2)).contiguous(),
        "lora_down.weight": down.to(dtype).reshape(shape).contiguous(),
        "alpha": torch.tensor(
            float(rank), dtype=dtype if float(torch.tensor(rank).to(dtype)) == rank else torch.float32
        ),
    }


def flat_difference(own: Own) -> torch.Tensor:
    """(out, n), of a kind that depends on no model."""
    kind = kind_of(own)
    assert kind is not None
    rows = _rows(own, kind)
    shape = tuple(product({name: one.to("meta") for name, one in own.items()}, kind).shape)
    return difference(own, None, (rows, math.prod(shape) // rows))


def _rows(own: Own, kind: Kind) -> int:
    if kind is Kind.LORA:
        return int(own["lora_up.weight"].shape[0])
    if kind is Kind.LOHA:
        return int(own["hada_w1_a"].shape[1 if "hada_t1" in own else 0])
    if kind is Kind.LOKR:
        w1 = own.get("lokr_w1", own.get("lokr_w1_a"))
        w2 = own.get("lokr_w2", own.get("lokr_w2_a"))
        assert w1 is not None and w2 is not None
        return int(w1.shape[0] * w2.shape[1 if "lokr_t2" in own else 0])
    return int(own["diff"].shape[0])


def base_weight(base: Source | None, layer: Layer, asked: OpenLora) -> torch.Tensor:
    """A layer's weight in fp32 from a checkpoint. Raises `ModelError` where there is none."""
    name = layer.tensor()
    if base is None:
        raise ModelError("adapter_file.needs_base", path=asked.path, name=asked.modules[layer].name,
                         base=Field("base", "--base"))  # fmt: skip
    if name not in base.tensors:
        raise ModelError("adapter_file.base_lacks", path=base.path, name=name, lora=asked.path)
    return rows_of(base.number(name), layer)


def rows_of(tensor: torch.Tensor, layer: Layer) -> torch.Tensor:
    """The layer's rows of a tensor that open_clip fuses: a view."""
    return tensor if layer.third is None else tensor.unflatten(0, (3, -1))[layer.third]
