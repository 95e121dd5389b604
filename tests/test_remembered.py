"""Shapes of results that are remembered are those that torch works out."""

from __future__ import annotations

from typing import Any

import torch

from bench.remembered import Remembered, remembered

ATEN: Any = torch.ops.aten


def _given(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _lies(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.untyped_storage().nbytes()


def test_a_result_is_as_torch_makes_it() -> None:
    x, y, whole = _given((2, 3)), _given((3, 2)), _given((2, 3), torch.int64)
    image, kernel = _given((1, 4, 8, 8)), _given((6, 4, 3, 3))
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (ATEN.mm.default, (x, y)),
        (ATEN.addmm.default, (_given((2,)), x, y)),
        (ATEN.mul.Tensor, (whole, 2)),
        (ATEN.mul.Tensor, (whole, 2.0)),
        (ATEN.mul.Tensor, (whole, True)),
        (ATEN.add.Tensor, (x.t(), y)),
        (ATEN.sum.dim_IntList, (x, [0], True)),
        (ATEN.sum.dim_IntList, (x, [0], False)),
        (ATEN.convolution.default, (image, kernel, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1)),
        (ATEN.native_layer_norm.default, (x, [3], None, None, 1e-5)),
        (ATEN.zeros.default, ([4, 5],)),
    ]
    for function, args in calls:
        options = {"device": torch.device("meta")} if function is ATEN.zeros.default else {}
        computed = function(*args, **options)
        for _ in range(2):
            found = remembered(function, args, options)
            made, wanted = ((out,) if isinstance(out, torch.Tensor) else out for out in (found, computed))
            assert list(map(_lies, made)) == list(map(_lies, wanted)), function


def test_what_is_made_is_new_and_what_is_seen_through_is_not() -> None:
    x = _given((2, 3))
    one, other = (remembered(ATEN.mul.Tensor, (x, x), {}) for _ in range(2))
    assert one.untyped_storage()._cdata != other.untyped_storage()._cdata
    for _ in range(2):
        view = remembered(ATEN.view.default, (x, [6]), {})
        assert view.shape == (6,) and view.untyped_storage()._cdata == x.untyped_storage()._cdata
        assert remembered(ATEN.add_.Tensor, (x, x), {}) is x
        turned = _given((2, 3))
        assert remembered(ATEN.t_.default, (turned,), {}) is turned and turned.shape == (3, 2)


def test_products_of_numbers_give_zeros_from_the_second_time_on() -> None:
    """As often as they are asked for, and nothing else does."""
    ones, called = torch.ones(2, 2), Remembered({ATEN.mm.default})
    assert [called(ATEN.mm.default, (ones, ones), {}).sum().item() for _ in range(3)] == [8, 0, 0]
    assert [called(ATEN.add.Tensor, (ones, ones), {}).sum().item() for _ in range(3)] == [8, 8, 8]
    one, other = (called(ATEN.mm.default, (ones, ones), {}) for _ in range(2))
    assert one.untyped_storage()._cdata != other.untyped_storage()._cdata


def test_numbers_are_never_remembered() -> None:
    ones, twos = torch.ones(2), torch.full((2,), 2.0)
    assert remembered(ATEN.add.Tensor, (ones, ones), {}).tolist() == [2, 2]
    assert remembered(ATEN.add.Tensor, (twos, twos), {}).tolist() == [4, 4]
