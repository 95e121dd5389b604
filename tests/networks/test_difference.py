"""The difference as a LoRA, against the best one there can be (Eckart & Young 1936), which the exact SVD gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_trainer.networks import low_rank as difference
from lib_trainer.networks.low_rank import difference_as_lora, largest_parts

RANK = 16


def error(matrix: torch.Tensor) -> tuple[float, float]:
    """(what a LoRA of rank 16 leaves, the least that any leaves), both as a share of the whole."""
    down, up = difference_as_lora(matrix, RANK)
    left = float((matrix - up.flatten(1) @ down.flatten(1)).norm() / matrix.norm())
    values = torch.linalg.svdvals(matrix.double())
    return left, float(values[RANK:].norm() / values.norm())


def test_noise_without_any_structure_is_the_worst_case() -> None:
    matrix = torch.randn(320, 288, generator=torch.Generator().manual_seed(1))
    found, best = error(matrix)
    assert best < found < 1.01 * best


def test_a_difference_that_is_nearly_of_low_rank() -> None:
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(320, RANK, generator=generator) @ torch.randn(RANK, 288, generator=generator)
    found, best = error(matrix + 1e-2 * torch.randn(320, 288, generator=generator))
    assert found < 1.0001 * best
    assert error(matrix)[0] < 1e-5


def test_a_convolution_and_a_small_matrix() -> None:
    kernel = torch.randn(160, 32, 3, 3, generator=torch.Generator().manual_seed(3))
    down, up = difference_as_lora(kernel, RANK)
    assert down.shape == (RANK, 32, 3, 3) and up.shape == (160, RANK, 1, 1)
    small = torch.randn(20, 12, generator=torch.Generator().manual_seed(4))
    found, best = error(small @ torch.eye(12, 40))
    assert found == pytest.approx(best, abs=1e-5), "small matrices are decomposed exactly"


def test_it_is_the_same_each_time_and_touches_no_generator() -> None:
    matrix, before = torch.randn(200, 200), torch.get_rng_state()
    first, second = largest_parts(matrix, 4), largest_parts(matrix, 4)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert torch.equal(before, torch.get_rng_state())
    assert difference.EXTRA == 16 and difference.ITERATIONS == 4, "the figures in its docstring"


def test_what_has_no_room_on_the_device_is_left_to_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    there: Any = SimpleNamespace(device=torch.device("cuda"), cpu=lambda: delta)
    real = difference.difference_as_lora

    def full(one: Any, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        if one is delta:
            return real(one, rank)
        raise one.error

    monkeypatch.setattr(difference, "difference_as_lora", full)
    there.error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    for one, wanted in zip(difference._on_some_device(there, 2), real(delta, 2), strict=True):
        assert torch.equal(one, wanted)
    there.error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        difference._on_some_device(there, 2)
