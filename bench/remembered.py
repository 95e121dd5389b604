"""Operations of which only the result's shape matters: how it lies is worked out once.

Most of torch's meta kernels are written in Python and cost as much as a small product. What one gives hangs on its
operands' shapes, strides and types and on plain numbers, so a model of seventy equal blocks asks a few hundred
different questions tens of thousands of times. The same is true of products on a CPU where nobody looks at numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from bench.allocations import tensors_of

ATEN: Any = torch.ops.aten
PRODUCTS = frozenset(
    {
        ATEN.mm.default,
        ATEN.addmm.default,
        ATEN.addmm_.default,
        ATEN.bmm.default,
        ATEN.baddbmm.default,
        ATEN.convolution.default,
        ATEN.convolution_backward.default,
        ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default,
    }
)
"""What takes a CPU most of a step's time."""


class _Like(NamedTuple):
    """How a new tensor lies."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def made(self) -> torch.Tensor:
        """Of zeros, where there are numbers."""
        new = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)
        return new if new.is_meta else new.zero_()


_FIRST, _UNKNOWN = "the first operand, changed in place", "computed each time"


class Remembered:
    """Called as (operator, its arguments, its options), gives what the operator gives. Views are always computed.

    On the meta device any operator is remembered. With contents those of `uncomputed` are: each is computed once for
    operands of a shape, and from then on gives zeros.
    """

    def __init__(self, uncomputed: Collection[Any] = ()) -> None:
        self._uncomputed, self._known = uncomputed, dict[Any, Any]()
        self._never: dict[Any, bool] = {}
        """Whether an operator is computed each time, whatever it is given."""

    def __call__(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        never = self._never.get(function)
        if never is None:
            never = self._never[function] = _is_view(function)
        if never:  # two thirds of all calls
            return function(*args, **kwargs)
        key = (function, *map(_key, args), *((name, _key(value)) for name, value in kwargs.items()))
        known = self._known.get(key)
        if known is None:
            out = function(*args, **kwargs)
            self._known[key] = self._facts(out, function, key[1] if args else None, (*args, *kwargs.values()))
            return out
        if known is _UNKNOWN:
            return function(*args, **kwargs)
        if known is _FIRST:
            return args[0] if args[0].is_meta else args[0].zero_()
        if type(known) is _Like:
            return known.made()
        return type(known)(one if one is None else one.made() for one in known)

    def _facts(self, out: Any, function: Any, first: Any, operands: Any) -> Any:
        """`first`: the first operand's key before the operation, which may have changed how it lies."""
        tensors, schema = list(tensors_of(operands)), function._schema
        if function not in self._uncomputed and not all(one.is_meta for one in (*tensors, *tensors_of([out]))):
            return _UNKNOWN
        if tensors and out is tensors[0] is operands[0] and schema.name.endswith("_") and _key(out) == first:
            return _FIRST
        if _aliases(function):
            return _UNKNOWN
        held = {tensor.untyped_storage()._cdata for tensor in tensors}
        if isinstance(out, torch.Tensor):
            return _like(out, held) or _UNKNOWN
        if isinstance(out, (list, tuple)) and all(isinstance(one, torch.Tensor) for one in out if one is not None):
            found = [None if one is None else _like(one, held) for one in out]
            known = all((one is None) == (like is None) for one, like in zip(out, found, strict=True))
            return type(out)(found) if known else _UNKNOWN
        return _UNKNOWN


remembered = Remembered()
"""For the meta device."""


def _is_view(function: Any) -> bool:
    """Whether its result lies in what it is given, and nothing is written there."""
    return _aliases(function) and not function._schema.name.endswith("_")


def _aliases(function: Any) -> bool:
    return any(one.alias_info is not None for one in (*function._schema.arguments, *function._schema.returns))


def _key(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.is_meta
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    return type(value), value  # 1 and 1.0 are equal, and promote to different types


def _like(out: torch.Tensor, held: set[int]) -> _Like | None:
    """None where a tensor made alike would not be."""
    storage = out.untyped_storage()
    if storage._cdata in held or out.storage_offset() or type(out) is not torch.Tensor:
        return None
    held.add(storage._cdata)  # two results in one storage are no two new tensors
    like = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device="meta")
    if like.untyped_storage().nbytes() != storage.nbytes():
        return None
    return _Like(tuple(out.shape), out.stride(), out.dtype, out.device)
